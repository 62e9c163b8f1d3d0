"""Examples of instruction tuning in their shapes: the text that a model sees, and the parts of it that are learned."""

from __future__ import annotations

import json
from collections.abc import Callable
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

WITH_TOOLS = "{% if tools %}{{ 'tools: ' + tools | tojson + '.' }}{% endif %}" + CHAT_TEMPLATE


def tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    made.eos_token = "[SEP]"
    return made


def said(*turns: tuple[str, str]) -> list[dict[str, Any]]:
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
        (
            {"instruction": "add", "input": None, "output": "3", "system": "be brief"},
            "system: be brief.user: add.assistant: 3.",
            ["3."],
        ),
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


def test_what_alpacas_columns_say_to_the_system_stands_in_the_place_of_alpacas_own_preamble() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "system": "be brief"}
    whole, parts = learned(row, tokenizer(None))
    assert whole == "be brief\n\n### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n3[SEP]"
    assert parts == ["3[SEP]"]


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}]


@pytest.mark.parametrize("kind", [list, tuple, json.dumps, lambda tools: np.array(tools, dtype=object)])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TWO_TURNS},
        {"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]},
        {"instruction": "add", "input": None, "output": "3"},
    ],
)
def test_tools_are_the_templates_to_write(row: dict[str, Any], kind: Callable[[Any], Any]) -> None:
    made = tokenizer(WITH_TOOLS)
    plain, parts = learned(row, made)
    whole, with_tools = learned(row | {"tools": kind(TOOLS)}, made)
    assert with_tools == parts
    begin, end = "tools: ", "." + plain
    assert whole.startswith(begin)
    assert whole.endswith(end)
    assert json.loads(whole[len(begin) : -len(end)]) == TOOLS
    assert render(row | {"tools": kind(TOOLS)}, made).read >= {"tools"}
    assert "tools" not in render(row | {"tools": kind(TOOLS)}, tokenizer()).read


@pytest.mark.parametrize("nothing", [None, "", [], "[]", "null", "{}", {}, False, float("nan"), np.array([])])
def test_a_template_that_introduces_tools_hears_nothing_of_none(nothing: Any) -> None:
    made = tokenizer("{% if tools is not none %}{{ 'tools: ' }}{% endif %}" + CHAT_TEMPLATE)
    assert learned({"messages": TWO_TURNS, "tools": nothing}, made) == learned({"messages": TWO_TURNS}, made)


def test_what_arrow_fills_up_is_no_part_of_a_tool() -> None:
    """One column of records has the keys of all of them in each."""
    import datasets

    tools = [{"name": "add", "parameters": {"a": {"type": "number"}}}, {"name": "now", "parameters": {"b": None}}]
    (row,) = datasets.Dataset.from_list([{"messages": TWO_TURNS, "tools": tools}])
    assert row["tools"][0]["parameters"] == {"a": {"type": "number"}, "b": None}
    whole, _ = learned(row, tokenizer(WITH_TOOLS))
    assert '{"name": "add", "parameters": {"a": {"type": "number"}}}, {"name": "now", "parameters": {}}' in whole


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("{", "tools is neither a list nor the JSON of one"),
        ("[" * 100_000, "tools is neither a list nor the JSON of one"),
        (["add"], "tools is not a list of objects"),
        ('{"name": "add"}', "tools is not a list of objects"),
    ],
)
def test_tools_that_are_none_are_refused_by_a_template_with_a_place_for_them(tools: Any, reason: str) -> None:
    row = {"messages": TWO_TURNS, "tools": tools}
    with pytest.raises(BadExample, match=reason):
        render(row, tokenizer(WITH_TOOLS))
    assert learned(row, tokenizer()) == learned({"messages": TWO_TURNS}, tokenizer())


def test_a_template_for_tools_is_taken_where_there_are_some() -> None:
    made = tokenizer()
    made.chat_template = {"default": CHAT_TEMPLATE, "tool_use": WITH_TOOLS}
    assert learned({"messages": TWO_TURNS}, made)[0].startswith("user: one.")
    assert learned({"messages": TWO_TURNS, "tools": TOOLS}, made)[0].startswith("tools: ")


@pytest.mark.parametrize("never", [0, 0.0, False])
def test_a_turn_of_weight_0_is_read_and_not_learned(never: Any) -> None:
    first, last = ([dict(turn) for turn in TWO_TURNS] for _ in range(2))
    first[1]["weight"], first[3]["weight"] = never, 1
    text, parts = learned({"messages": first}, tokenizer())
    assert (text, parts) == ("user: one.assistant: two.user: three.assistant: four.", ["four."])
    last[1]["weight"], last[3]["weight"] = None, never
    assert learned({"messages": last}, tokenizer()) == ("user: one.assistant: two.", ["two."])
    assert render({"messages": first}, tokenizer()).skipped == 0


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
        ({"messages": [TWO_TURNS[0], TWO_TURNS[1] | {"weight": 0}]}, "every turn of the assistant has weight 0"),
        (
            {"messages": [TWO_TURNS[0], TWO_TURNS[1] | {"weight": 0.5}]},
            "message 2 of messages has a weight that is neither 0 nor 1",
        ),
        (
            {"messages": [TWO_TURNS[0], TWO_TURNS[1] | {"weight": np.zeros(2)}]},
            "message 2 of messages has a weight that is neither 0 nor 1",
        ),
        ({"instruction": "a", "input": "", "output": "b", "system": ["c"]}, "system is not text"),
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
