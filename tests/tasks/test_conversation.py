"""Examples of instruction tuning in their shapes: the text that a model sees, and the parts of it that are learned."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rankwise.tasks.conversation import BadExample, render
from tests.models import CHAT_TEMPLATE, tiny_tokenizer

STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('it begins with the user') }}{% endif %}" + CHAT_TEMPLATE
)
# Leaves out what the assistant said before its last turn.
FORGETFUL = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.role + ': ' + m.content + '.' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    made.eos_token = "[SEP]"
    return made


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(row: dict[str, Any], made: PreTrainedTokenizerFast) -> tuple[str, list[str]]:
    rendered = render(row, made)
    return rendered.text, [rendered.text[start:end] for start, end in rendered.spans]


TWO_TURNS = said(("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"))


@pytest.mark.parametrize(
    ("row", "text", "parts"),
    [
        ({"prompt": "a b", "completion": "c"}, "a bc[SEP]", ["c[SEP]"]),
        ({"text": "a b c"}, "a b c[SEP]", ["a b c[SEP]"]),
        (
            {"messages": TWO_TURNS},
            "user: one.assistant: two.user: three.assistant: four.",
            ["two.", "four."],
        ),
        # What the user says at the end is no answer to anything.
        ({"messages": TWO_TURNS[:3]}, "user: one.assistant: two.", ["two."]),
        ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, None, ["a."]),
        ({"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]}, None, ["four."]),
        (
            {"instruction": "add", "input": "1 2", "output": "3"},
            "user: add\n\n1 2.assistant: 3.",
            ["3."],
        ),
        ({"instruction": "add", "input": None, "output": "3"}, "user: add.assistant: 3.", ["3."]),
    ],
)
def test_what_is_learned_of_each_shape(row: dict[str, Any], text: str | None, parts: list[str]) -> None:
    whole, found = learned(row, tokenizer())
    assert found == parts
    assert text is None or whole == text


@pytest.mark.parametrize("content", [None, "", "I add. "])
def test_beside_a_call_of_a_tool_there_may_be_nothing_to_say(content: str | None) -> None:
    calling = tokenizer(
        "{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}.{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turn = {"role": "assistant", "content": content, "tool_calls": [call]}
    _, parts = learned({"messages": [*said(("user", "one")), turn]}, calling)
    assert parts == [(content or "") + '{"a": 1}.']


def test_alpaca_without_a_template_is_alpacas_own_prompt() -> None:
    whole, parts = learned({"instruction": "add", "input": "1 2", "output": "3"}, tokenizer(None))
    assert parts == ["3[SEP]"]
    assert "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n3" in whole
    without, _ = learned({"instruction": "add", "input": " ", "output": "3"}, tokenizer(None))
    assert "### Input" not in without
    assert "further context" not in without


def test_a_tokenizers_beginning_is_before_the_prompt() -> None:
    made = tokenizer(None)
    made.bos_token = "[CLS]"
    assert learned({"prompt": "a", "completion": "b"}, made)[0] == "ab[SEP]"  # it puts none before a text by itself
    from tokenizers.processors import TemplateProcessing

    made.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    assert learned({"prompt": "a", "completion": "b"}, made) == ("[CLS]ab[SEP]", ["b[SEP]"])


def test_a_turn_that_the_template_leaves_out_later_is_not_learned() -> None:
    text, parts = learned({"messages": TWO_TURNS}, tokenizer(FORGETFUL))
    assert (text, parts) == ("user: one.user: three.assistant: four.", ["four."])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": said(("user", "one"))}, "there is no turn of the assistant"),
        ({"messages": said(("user", "one"), ("assistant", " "))}, "a turn of the assistant is empty"),
        ({"messages": []}, "messages is not a list of messages"),
        ({"messages": "hello"}, "messages is not a list of messages"),
        ({"messages": "[1"}, "messages is not a list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1 of messages has no role and content that are text"),
        ({"messages": said(("user", "one"), ("assistant", "x\ud83d"))}, "message 2 of messages is not valid Unicode"),
        ({"messages": "[" * 100_000}, "messages is not a list of messages"),
        ({"messages": [5]}, "message 1 of messages has no role and content that are text"),
        ({"messages": said(("assistant", "hello"))}, r"the chat template refuses it \(it begins with the user\)"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": None, "completion": "b"}, "prompt is empty"),
        ({"prompt": "a", "completion": {"x": 1}}, "completion is not text"),
        ({"prompt": "a", "completion": "\ud800"}, "completion is not valid Unicode"),
        ({"prompt": TWO_TURNS[:1], "completion": TWO_TURNS[2:3]}, "there is no turn of the assistant"),
        ({"instruction": "a", "input": "", "output": "\n"}, "output is empty"),
        ({"text": " "}, "text is empty"),
    ],
)
def test_an_example_that_cannot_be_learned_from_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadExample, match=f"^{reason}"):
        render(row, tokenizer(STRICT))


def test_lists_come_in_several_kinds() -> None:
    for turns in (tuple(TWO_TURNS), np.array(TWO_TURNS, dtype=object)):
        assert learned({"messages": turns}, tokenizer())[1] == ["two.", "four."]
    in_csv = {"prompt": json.dumps(TWO_TURNS[:3]), "completion": json.dumps(TWO_TURNS[3:])}
    assert learned(in_csv, tokenizer())[1] == ["four."]
    assert learned({"prompt": "[1, 2]", "completion": "[2, 1]"}, tokenizer())[1] == ["[2, 1][SEP]"]


def test_a_greeting_of_the_assistant_is_read_and_not_learned() -> None:
    rendered = render({"messages": said(("assistant", "hello"), ("user", "one"), ("assistant", "two"))}, tokenizer())
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["two."]
    assert rendered.skipped == 1


def test_what_else_a_message_has_is_the_templates_to_write() -> None:
    thinking = CHAT_TEMPLATE.replace("m.content", "(m.reasoning or '') + m.content")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "because "}]
    assert learned({"messages": turns}, tokenizer(thinking))[1] == ["because a."]


def test_a_token_that_ends_only_the_last_turn_is_no_part_of_the_others() -> None:
    """Phi-3's template is one of these."""
    ending = CHAT_TEMPLATE.replace("{% if add_gen", "{% if not add_generation_prompt %}[SEP]{% endif %}{% if add_gen")
    assert learned({"messages": TWO_TURNS}, tokenizer(ending))[1] == ["two.", "four.[SEP]"]


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
    assert learned({"messages": TWO_TURNS}, tokenizer(dated))[0].startswith("26 Jul 2024 user: one.")


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content + 1 }}", "{{ messages[9].content.x }}", "{{ nothing.x }}"]
)
def test_a_template_that_breaks_is_a_bad_example(template: str) -> None:
    with pytest.raises(BadExample, match=r"^the chat template refuses it \("):
        render({"messages": TWO_TURNS}, tokenizer(template))


def test_texts_that_were_rendered_before_get_no_second_beginning_and_end() -> None:
    assert learned({"prompt": "a", "completion": "b[SEP]"}, tokenizer()) == ("ab[SEP]", ["b[SEP]"])


def test_a_template_that_writes_a_prompt_otherwise_before_an_answer_is_refused() -> None:
    other = CHAT_TEMPLATE.replace("{{ 'assistant: ' }}", "{{ 'bot: ' }}")
    with pytest.raises(BadExample, match="does not begin the assistant's turn as it begins its own"):
        render({"messages": TWO_TURNS}, tokenizer(other))
