"""Incremental decoding: the time per token does not depend on the completion's length."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.evaluation.codec import Codec

HALF_A_LETTER = "\N{REPLACEMENT CHARACTER}"


class StreamedText:
    """Decodes tokens one by one, and detects stop texts.

    Each step decodes only the last tokens again. Text is held back while its last token is an incomplete
    character, and while it may be the beginning of a stop text.

    Args:
        codec: decodes tokens.
        stops: texts that end the completion; they are not part of it.

    Attributes:
        stopped: whether a stop text has come; ``text`` then ends before it.
        text: all text so far, without an incomplete character at the end.
    """

    def __init__(self, codec: Codec, stops: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._codec = codec
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._tokens: list[int] = []
        self._before = ""  # the text of the tokens from _first to _read
        self._first = 0  # the first token that is decoded again
        self._read = 0  # tokens whose text is in ``text``
        self._sent = 0

    def add(self, token: int) -> None:
        """Decode the next token."""
        self._tokens.append(token)
        after = self._codec.decode(self._tokens[self._first :])
        if len(after) <= len(self._before) or after.endswith(HALF_A_LETTER):
            return
        self._append(after[len(self._before) :])
        self._first, self._read = self._read, len(self._tokens)
        self._before = self._codec.decode(self._tokens[self._first :])

    def take(self) -> str:
        """Return the text that may be sent, and was not returned by an earlier call."""
        end = len(self.text) if self.stopped else len(self.text) - self._held_back()
        part, self._sent = self.text[self._sent : end], max(self._sent, end)
        return part

    def finish(self, text: str) -> str:
        """Return the part of the complete text that was not sent yet."""
        start = self._sent
        if not text.startswith(self.text[:start]):  # a decoder that changes earlier text
            start = min(start, len(text))
        self.text, self._sent = text, len(text)
        return text[start:]

    def _append(self, new: str) -> None:
        start = max(0, len(self.text) - self._longest + 1)
        self.text += new
        cuts = [place for stop in self._stops if (place := self.text.find(stop, start)) >= 0]
        if cuts:
            self.text = self.text[: min(cuts)]
            self.stopped = True

    def _held_back(self) -> int:
        """Return the length of the longest end of the text that may begin a stop text."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            end = self.text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
