"""Calls of tools in a model's text, complete and in parts of any length."""

from __future__ import annotations

import json
from typing import Any

import pytest

from merganser.evaluation.generation import Completion
from merganser.serving.answers import ChatForm
from merganser.serving.generation import Increment
from merganser.serving.tool_calls import ToolCalls, are_calls_of

ADD = '{"name": "add", "arguments": {"a": "é", "b": [1]}}'
TEXTS: list[tuple[str, str | None, list[dict[str, Any]]]] = [
    ("no call at all\n", "no call at all\n", []),
    (f"<tool_call>\n{ADD}\n</tool_call>", None, [{"a": "é", "b": [1]}]),
    (f"first\n<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>\n", "first",
     [{"a": "é", "b": [1]}] * 2),
    (f"<tool_call>{ADD}</tool_call> and then", "and then", [{"a": "é", "b": [1]}]),
    ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', None, [{}]),
    ("<tool_call>{no json}</tool_call>", "<tool_call>{no json}</tool_call>", []),
    ('<tool_call>["f"]</tool_call>', '<tool_call>["f"]</tool_call>', []),
    (f"a <tool_call>{ADD}", f"a <tool_call>{ADD}", []),
    ("a < b <tool", "a < b <tool", []),
]  # fmt: skip


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "content", "arguments"), TEXTS)
def test_calls_are_separated(
    text: str, content: str | None, arguments: list[dict[str, Any]], length: int
) -> None:
    parser = ToolCalls()
    found = ""
    for start in range(0, len(text), length):
        found += parser.add(text[start : start + length])
    found += parser.finish()
    assert (found or None) == content
    assert [json.loads(call["function"]["arguments"]) for call in parser.calls] == arguments


def test_text_that_begins_no_call_is_not_held_back() -> None:
    parser = ToolCalls()
    assert parser.add("one two") == "one two"
    assert parser.add(" <to") == ""
    assert parser.add("day>") == " <today>"


@pytest.mark.parametrize("streamed", [False, True])
def test_answers_have_openai_s_form(streamed: bool) -> None:
    form = ChatForm("m", "d", None, scored=False, calls=True)  # type: ignore[arg-type]
    text = f"so: <tool_call>{ADD}</tool_call>"
    parts = [Increment(text[:20]), Increment(text[20:], (), Completion(text, 9, "stop"))]
    if not streamed:
        [choice] = form.complete([parts], {})["choices"]
        message = choice["message"]
    else:
        choices = [form.added(0, part) for part in parts]
        deltas = [each["delta"] for each in choices]
        assert [sorted(delta) for delta in deltas] == [["content"], ["tool_calls"]]
        message = deltas[0] | deltas[1]
        choice = choices[-1]
        assert message["tool_calls"][0].pop("index") == 0
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "so:"
    [call] = message["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"]["name"] == "add"


def test_templates_that_use_the_tags() -> None:
    assert are_calls_of("... within <tool_call></tool_call> XML tags ...")
    assert not are_calls_of(None)
