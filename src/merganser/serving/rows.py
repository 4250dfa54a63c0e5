"""Completions that are being generated: rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from merganser.evaluation import drawing
from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import Completion
from merganser.serving.generation import Increment, TokenScore, Wanted
from merganser.serving.streamed_text import StreamedText

Answer = Increment | Exception


class Row:
    """One completion while it is generated.

    Args:
        wanted: the completion that the client asks for.
        codec: the model's tokenizer.
        deliver: called with each part; after a failure with an error in place of the last part.

    Attributes:
        generated: ids of the tokens generated so far.
        cancelled: set by the event loop when the client has disconnected.
    """

    def __init__(self, wanted: Wanted, codec: Codec, deliver: Callable[[Answer], None]) -> None:
        self.wanted = wanted
        self.deliver = deliver
        self.generated: list[int] = []
        self.cancelled = False
        self._codec = codec
        self._scores: list[TokenScore] = []
        self._draws: Any = None
        self._drawn = 0
        self._number = 0.0
        self._text: StreamedText | None = None
        if wanted.sampling.temperature > 0:
            self._draws = drawing.generator_of(wanted.seed)
        if wanted.stream or wanted.sampling.stop:
            self._text = StreamedText(codec, wanted.sampling.stop)

    @property
    def tokens(self) -> list[int]:
        """Ids of the prompt's and the generated tokens."""
        return [*self.wanted.prompt, *self.generated]

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and the completion so far."""
        return len(self.wanted.prompt) + len(self.generated)

    @property
    def longest(self) -> int:
        """Maximum of :attr:`length`."""
        return len(self.wanted.prompt) + self.wanted.sampling.max_tokens

    def next_number(self) -> float:
        """Return the uniform random number from 0 to 1 that draws the next token."""
        while self._drawn <= len(self.generated):  # a repeated step draws the same number
            self._number = float(self._draws.random())
            self._drawn += 1
        return self._number

    def add(self, token: int, score: TokenScore | None) -> Increment | None:
        """Append the next token.

        Returns:
            The part to send to the client, or None; the part with the completion is the last.
        """
        self.generated.append(token)
        if score is not None:
            self._scores.append(score)
        text = self._text
        ended = token in self._codec.end_tokens
        if text is not None and not ended:
            text.add(token)
        full = len(self.generated) >= self.wanted.sampling.max_tokens
        if ended or full or (text is not None and text.stopped):
            completion = self._completion()
            rest = completion.text if text is None else text.finish(completion.text)
            return Increment(rest, self._take_scores(), completion)
        if not self.wanted.stream or text is None:
            return None
        new = text.take()
        return Increment(new, self._take_scores()) if new or self._scores else None

    def _completion(self) -> Completion:
        if self._text is not None and self._text.stopped:
            return Completion(self._text.text, len(self.generated), "stop")
        return self._codec.completion(self.generated, self.wanted.sampling)

    def _take_scores(self) -> Sequence[TokenScore]:
        scores, self._scores = self._scores, []
        return scores


def joined(parts: Sequence[tuple[int, Answer]]) -> list[tuple[int, Increment]]:
    """Return the parts of each completion that have come as one part: a slow client gets few large ones.

    Raises:
        Exception: the first error among them.
    """
    found: dict[int, Increment] = {}
    for index, part in parts:
        if isinstance(part, Exception):
            raise part
        before = found.get(index)
        if before is not None:
            scores = (*before.scores, *part.scores)
            part = Increment(before.text + part.text, scores, part.completion)
        found[index] = part
    return list(found.items())
