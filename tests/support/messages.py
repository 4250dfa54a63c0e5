"""What all messages of errors have in common."""

from __future__ import annotations


def assert_one_line(message: str, *parts: str) -> None:
    """A message is one line that names what it should."""
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message, message
