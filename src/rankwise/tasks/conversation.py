"""One example of instruction tuning, in any of the common shapes, as a text and the parts of it that are learned.

- `messages`: a conversation, rendered by the tokenizer's chat template; learned are the assistant's turns, but those of
  weight 0.
- `prompt` and `completion`: two texts, taken as they stand, or two lists of messages; learned is the completion.
- `instruction`, `input` and `output` (Alpaca), perhaps `system`: by the chat template, or without one by Alpaca's own
  prompt.
- `prompt` (or `question`), `choices` and `answer`: a multiple choice; learned is the right choice, and an example is
  right where that is likelier than the others.
- `text`: learned as a whole.

A chat template is given `tools`, too. Where there is none the text begins and ends with the tokenizer's own tokens for
that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwise.errors import UserError, reason_of
from rankwise.tasks.files.table import Shape
from rankwise.tasks.source import as_text, is_missing, is_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What belongs to a conversation in many data, and is not read in every shape.
BESIDE = ("tools", "system", "system_prompt", "functions", "documents", "context", "history")

SHAPES = (
    Shape(("messages",), optional=BESIDE),
    Shape(("prompt", "completion"), optional=BESIDE),
    Shape(("instruction", "output"), optional=("input", *BESIDE)),
    *(Shape((asked, "choices", "answer"), optional=BESIDE) for asked in ("prompt", "question")),
    Shape(("text",), optional=BESIDE),
)

# Source: Taori et al. 2023, "Stanford Alpaca", the prompts of its training data.
_BELOW = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the request."
)
_ALPACA = "{system}\n\n### Instruction:\n{instruction}{given}\n\n### Response:\n"

# Some templates write today's date: a fixed one, or a run could not go on tomorrow. It is Llama 3.2's own.
_DATE = date(2024, 7, 26)
_CALL_OF_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

Message = dict[str, Any]


class BadExample(Exception):
    """An example that cannot be learned from; the message says why."""


@dataclass(frozen=True)
class Rendered:
    """A text with the special tokens in it, and its learned parts as (start, end), in characters and in order.

    `skipped` counts turns of the assistant that are read and not learned: the template writes them otherwise later on.
    `rivals` are the wrong choices of a multiple choice. `read` are the columns of `BESIDE` that the text would show.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    skipped: int = 0
    rivals: tuple[Rendered, ...] = ()
    read: frozenset[str] = frozenset()


def render(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A row of one of the shapes. Raises `BadExample`, and `UserError` for messages without a chat template."""
    if "messages" in row:
        return _render_messages(_messages(row["messages"], "messages"), 0, row, tokenizer)
    if "choices" in row:
        return _multiple_choice(row, tokenizer)
    if "text" in row:
        return _whole("", text_of(row["text"], "text"), tokenizer)
    if "prompt" in row:
        prompt, completion = _unpacked(row["prompt"]), _unpacked(row["completion"])
        if isinstance(prompt, list) and isinstance(completion, list):
            before = _messages(prompt, "prompt")
            return _render_messages([*before, *_messages(completion, "completion")], len(before), row, tokenizer)
        return _whole(text_of(row["prompt"], "prompt"), text_of(row["completion"], "completion"), tokenizer)
    instruction, output = text_of(row["instruction"], "instruction"), text_of(row["output"], "output")
    given, system = (
        "" if is_empty(row.get(column)) else text_of(row[column], column) for column in ("input", "system")
    )
    read = frozenset({"system"})
    if tokenizer.chat_template is None:
        prompt_text = _ALPACA.format(
            # Axolotl, too, puts the system's turn in this place.
            system=system or _BELOW.format(paired=", paired with an input that provides further context" * bool(given)),
            instruction=instruction,
            given=f"\n\n### Input:\n{given}" if given else "",
        )
        return replace(_whole(prompt_text, output, tokenizer), read=read)
    asked = {"role": "user", "content": f"{instruction}\n\n{given}" if given else instruction}
    told = [{"role": "system", "content": system}] if system else []
    chat = _render_messages([*told, asked, {"role": "assistant", "content": output}], 0, row, tokenizer)
    return replace(chat, read=chat.read | read)


def _multiple_choice(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Rendered:
    asked = "prompt" if "prompt" in row else "question"
    prompt, choices = text_of(row[asked], asked), row["choices"]
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except (ValueError, RecursionError):
            raise BadExample("choices is not a list of texts") from None
    if not isinstance(choices, list | tuple | np.ndarray) or len(choices) < 2:
        raise BadExample("choices is not a list of two texts or more")
    texts = [text_of(choice, f"choice {number}") for number, choice in enumerate(choices)]
    if len(set(texts)) < len(texts):
        raise BadExample("two choices are the same")
    right = _right(row["answer"], texts)
    wholes = [_whole(prompt, text, tokenizer) for text in texts]
    return replace(wholes[right], rivals=tuple(whole for number, whole in enumerate(wholes) if number != right))


def _right(answer: Any, choices: list[str]) -> int:
    """The number of the right choice, which is given as such, counted from 0, or as its text."""
    text = text_of(answer, "answer")
    found = {choices.index(text)} if text in choices else set()
    if text.isdecimal() and len(text) < 10 and int(text) < len(choices):
        found.add(int(text))
    if not found:
        raise BadExample("answer is neither one of the choices nor the number of one, counted from 0")
    if len(found) > 1:
        raise BadExample(f"answer {text} is one of the choices, and the number of another: which is meant?")
    return found.pop()


def _whole(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    first, end = begin(tokenizer), tokenizer.eos_token or ""
    # Texts that were rendered before have both.
    before = prompt if (prompt or completion).startswith(first) else first + prompt
    text = before + completion + ("" if completion.endswith(end) else end)
    return Rendered(text, ((len(before), len(text)),))


def begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts before a text by itself."""
    begins = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def _render_messages(
    messages: list[Message], first: int, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    """Learned are the assistant's turns from the message `first` on; what follows the last of them is left out."""
    if tokenizer.chat_template is None:
        raise UserError(
            "the data are conversations, and the tokenizer has no chat template to write them with: "
            "give prompt and completion as texts, or a model that is tuned for chat"
        )
    reads_tools = "tools" in tokenizer.get_chat_template(tools=[])
    tools = _tools(row.get("tools")) if reads_tools else None
    answers = [index for index, message in enumerate(messages) if index >= first and message["role"] == "assistant"]
    turns = [index for index in answers if messages[index].get("weight") != 0]
    if not turns:
        raise BadExample("every turn of the assistant has weight 0" if answers else "there is no turn of the assistant")
    if any(not messages[turn]["content"].strip() and not _calls(messages[turn]) for turn in turns):
        raise BadExample("a turn of the assistant is empty")
    text = _templated(tokenizer, messages[: turns[-1] + 1], tools)
    spans = []
    for turn in turns:
        # No template begins a conversation with an answer.
        before = _templated(tokenizer, messages[:turn], tools, add_generation_prompt=True) if turn else "\0"
        until = text if turn == turns[-1] else _templated(tokenizer, messages[: turn + 1], tools)
        # Some templates end what they write with a token that is not there when it goes on.
        end = next((at for at, pair in enumerate(zip(text, until, strict=False)) if len(set(pair)) > 1), len(until))
        if text.startswith(before) and messages[turn]["content"].strip() in text[len(before) : end]:
            spans.append((len(before), end))
    if not spans or spans[-1][1] != len(text):
        raise BadExample("the chat template does not begin the assistant's turn as it begins its own")
    read = frozenset({"tools"} if reads_tools else ())
    return Rendered(text, tuple(spans), skipped=len(turns) - len(spans), read=read)


def _templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: list[Any] | None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        template = tokenizer.get_chat_template(tools=tools)
        text: str = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=_CALL_OF_DATE.sub(lambda call: repr(_DATE.strftime(call[2])), template),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    # A template is a program that came with a model: it stumbles over data in ways of its own.
    except Exception as error:
        raise BadExample(f"the chat template refuses it ({reason_of(error)})") from error
    return text


def _unpacked(value: Any) -> Any:
    """Lists as lists, also from numpy and tuples, and from JSON that holds messages: CSV has no lists."""
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(found, list) and found and all(isinstance(each, dict) and "role" in each for each in found):
            return found
    return value


def _messages(value: Any, column: str) -> list[Message]:
    value = _unpacked(value)
    if not isinstance(value, list) or not value:
        raise BadExample(f"{column} is not a list of messages")
    # Beside a call of a tool there may be nothing to say.
    value = [
        message | {"content": message.get("content") or ""}
        if isinstance(message, dict) and _calls(message)
        else message
        for message in value
    ]
    for number, message in enumerate(value, start=1):
        for key in ("role", "content"):
            text = message.get(key) if isinstance(message, dict) else None
            if not isinstance(text, str):
                raise BadExample(f"message {number} of {column} has no role and content that are text")
            if not is_unicode(text):
                raise BadExample(f"message {number} of {column} is not valid Unicode (half of a surrogate pair)")
        weight = message.get("weight")
        if message["role"] == "assistant" and not (
            weight is None or (isinstance(weight, int | float) and weight in (0, 1))
        ):
            raise BadExample(f"message {number} of {column} has a weight that is neither 0 nor 1")
    # What else a message has (reasoning, calls of tools) is the template's to write.
    return [{key: each for key, each in message.items() if each is not None} for message in value]


def _tools(value: Any) -> list[Any] | None:
    """Descriptions of tools, from a list or its JSON; no list for none, since some templates introduce it."""
    if is_empty(value):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadExample("tools is neither a list nor the JSON of one") from None
    if isinstance(value, dict | bool | int | None) and not value:
        return None
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(tool, dict) for tool in value):
        raise BadExample("tools is not a list of objects")
    return [_without_nulls(tool) for tool in value] or None


def _without_nulls(value: Any) -> Any:
    """Arrow gives each object the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple | np.ndarray) else value


def _calls(message: Message) -> bool:
    """Whether a message calls tools."""
    calls = message.get("tool_calls")
    return isinstance(calls, list | tuple | np.ndarray) and len(calls) > 0


def text_of(value: Any, column: str) -> str:
    """A value of a column as text. Raises `BadExample`."""
    if is_empty(value):
        raise BadExample(f"{column} is empty")
    text = as_text(value)
    if text is None:
        raise BadExample(f"{column} is not text")
    if not is_unicode(text):
        raise BadExample(f"{column} is not valid Unicode (half of a surrogate pair)")
    return text


def is_empty(value: Any) -> bool:
    """Whether there is nothing in it: no value, no text, no list."""
    if isinstance(value, list | tuple | np.ndarray):
        return len(value) == 0
    return is_missing(value) or (isinstance(value, str) and not value.strip())
