"""One example of instruction tuning, in any of the common shapes, as a text and the parts of it that are learned.

- `messages`: a conversation, rendered by the tokenizer's chat template; learned are the assistant's turns.
- `prompt` and `completion`: two texts, taken as they stand, or two lists of messages; learned is the completion.
- `instruction`, `input` and `output` (Alpaca): by the chat template, or without one by Alpaca's own prompt.
- `text`: learned as a whole.

Where there is no template the text begins and ends with the tokenizer's own tokens for that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from rankwise.tasks.files import Shape
from rankwise.tasks.source import as_text, is_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPES = (
    Shape(("messages",)),
    Shape(("prompt", "completion")),
    Shape(("instruction", "output"), optional=("input",)),
    Shape(("text",)),
)

# Source: Taori et al. 2023, "Stanford Alpaca", the prompts of its training data.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}{given}\n\n### Response:\n"
)

Message = dict[str, str]


class BadExample(Exception):
    """An example that cannot be learned from; the message says why."""


@dataclass(frozen=True)
class Rendered:
    """A text with the special tokens in it, and its learned parts as (start, end), in characters and in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


def render(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A row of one of the shapes. Raises `BadExample`."""
    if "messages" in row:
        return _render_messages(_messages(row["messages"], "messages"), 0, tokenizer)
    if "text" in row:
        return _whole("", _text(row["text"], "text"), tokenizer)
    if "prompt" in row:
        if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
            prompt = _messages(row["prompt"], "prompt")
            completion = _messages(row["completion"], "completion")
            return _render_messages([*prompt, *completion], len(prompt), tokenizer)
        return _whole(_text(row["prompt"], "prompt"), _text(row["completion"], "completion"), tokenizer)
    instruction, output = _text(row["instruction"], "instruction"), _text(row["output"], "output")
    given = "" if _is_blank(row["input"]) else _text(row["input"], "input")
    if tokenizer.chat_template is None:
        prompt_text = _ALPACA.format(
            paired=", paired with an input that provides further context" if given else "",
            instruction=instruction,
            given=f"\n\n### Input:\n{given}" if given else "",
        )
        return _whole(prompt_text, output, tokenizer)
    asked = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
    return _render_messages([asked, {"role": "assistant", "content": output}], 0, tokenizer)


def _whole(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    before = _begin(tokenizer) + prompt
    text = before + completion + (tokenizer.eos_token or "")
    return Rendered(text, ((len(before), len(text)),))


def _begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts before a text by itself."""
    begins = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def _render_messages(messages: list[Message], first: int, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Learned are the assistant's turns from the message `first` on; what follows the last of them is left out."""
    turns = [index for index, message in enumerate(messages) if index >= first and message["role"] == "assistant"]
    if not turns:
        raise BadExample("there is no turn of the assistant")
    if any(not messages[turn]["content"].strip() for turn in turns):
        raise BadExample("a turn of the assistant is empty")
    text = _templated(tokenizer, messages[: turns[-1] + 1])
    spans = []
    for turn in turns:
        before = _templated(tokenizer, messages[:turn], add_generation_prompt=True)
        until = text if turn == turns[-1] else _templated(tokenizer, messages[: turn + 1])
        # Some templates leave out the reasoning of earlier turns: those are read then, and not learned.
        if text.startswith(before) and text.startswith(until):
            spans.append((len(before), len(until)))
    if not spans or spans[-1][1] != len(text):
        raise BadExample("the chat template does not begin the assistant's turn as it begins its own")
    return Rendered(text, tuple(spans))


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, add_generation_prompt: bool = False
) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise BadExample(f"the chat template refuses it ({' '.join(str(error).split())[:200]})") from error
    return text


def _messages(value: Any, column: str) -> list[Message]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        # CSV has no lists.
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadExample(f"{column} is not a list of messages in JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise BadExample(f"{column} is not a list of messages")
    messages = []
    for number, message in enumerate(value, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadExample(f"message {number} of {column} has no role and content that are text")
        messages.append({"role": role, "content": content})
    return messages


def _text(value: Any, column: str) -> str:
    if _is_blank(value):
        raise BadExample(f"{column} is empty")
    text = as_text(value)
    if text is None:
        raise BadExample(f"{column} is not text")
    if not is_unicode(text):
        raise BadExample(f"{column} is not valid Unicode (half of a surrogate pair)")
    return text


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
