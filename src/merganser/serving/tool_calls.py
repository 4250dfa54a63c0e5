"""Calls of tools in a model's text: JSON in ``<tool_call>`` tags, as Hermes and Qwen models write them."""

from __future__ import annotations

import json
import secrets
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"


def are_calls_of(template: object) -> bool:
    """Whether a chat template tells the model to write its calls in this form."""
    return BEGIN in str(template)


class ToolCalls:
    """Separates a completion's calls from its text, while the text arrives.

    What cannot be read as a call stays text, and white space around calls is dropped.

    Attributes:
        calls: the calls so far, in OpenAI's form.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._rest = ""
        self._follows_call = False

    def add(self, text: str) -> str:
        """Add a part of the completion; return text that belongs to no call."""
        self._rest += text
        outside = ""
        while True:
            before, begin, after = self._rest.partition(BEGIN)
            if not begin:
                break
            inside, end, rest = after.partition(END)
            if not end:
                outside += before.rstrip()
                self._rest = self._rest[len(before.rstrip()) :]
                return self._trimmed(outside)
            call = _read(inside)
            if call is None:
                outside += before + begin + inside + end
            else:
                outside += before.rstrip()
                self.calls.append(call)
                self._follows_call = True
            self._rest = rest
        held = self._held_back()
        outside += self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(self._rest) - held :]
        return self._trimmed(outside)

    def finish(self) -> str:
        """Return the rest of the text: a call that does not end, or white space."""
        rest, self._rest = self._rest, ""
        return rest.rstrip() if self.calls else rest

    def _trimmed(self, text: str) -> str:
        """The text, without white space directly after a call."""
        if self._follows_call:
            text = text.lstrip()
            self._follows_call = not text
        return text

    def _held_back(self) -> int:
        """The length of the end of the text that may begin a call, with the white space before it."""
        lengths = range(min(len(BEGIN) - 1, len(self._rest)), 0, -1)
        begun = next((n for n in lengths if BEGIN.startswith(self._rest[-n:])), 0)
        text = self._rest[: len(self._rest) - begun]
        return begun + len(text) - len(text.rstrip())


def _read(text: str) -> dict[str, Any] | None:
    """Return a call in OpenAI's form; None if the text is no call."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": data["name"], "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
