"""Limits of a server: turns, queues, bodies of requests, lengths of completions."""

from __future__ import annotations

from dataclasses import dataclass

TURN = 2.0
"""Seconds in which new requests join a model's turn although other models wait."""

LONGEST_TURN = 20.0
"""Seconds after which a turn ends although its requests still run; they are paused."""

MOST_WAITING = 1000

MOST_ROWS = 256

PORT = 8000

DRAIN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: maximum size of a request's body, in bytes.
        body_seconds: seconds within which a request's body must arrive.
        waiting: maximum number of waiting requests.
        max_tokens: maximum tokens of a completion; None for what the model's context leaves.
        turn, longest_turn: see :class:`merganser.serving.gate.Gate`.
    """

    body: int = 4 * 2**20
    body_seconds: float = 60.0
    waiting: int = MOST_WAITING
    max_tokens: int | None = None
    turn: float = TURN
    longest_turn: float = LONGEST_TURN
