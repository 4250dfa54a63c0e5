"""Serve models through OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from merganser import extras
from merganser.serving.limits import (
    DRAIN_SECONDS,
    LONGEST_TURN,
    MOST_ROWS,
    MOST_WAITING,
    PORT,
    TURN,
    Limits,
)
from merganser.serving.names import Catalogue
from merganser.serving.service import Service
from merganser.study.live_model import Computing, LiveModel


def serve(
    models: str | Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    grid_only: bool = False,
    turn: float = TURN,
    longest_turn: float = LONGEST_TURN,
    max_waiting: int = MOST_WAITING,
    max_tokens: int | None = None,
    batch_size: int = MOST_ROWS,
    drain_seconds: int = DRAIN_SECONDS,
    device: str = "auto",
    dtype: Computing = "auto",
    threads: int | None = None,
    on_ready: Callable[[str, int], None] = lambda _url, _models: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve models by OpenAI's API, all from one set of weights, until Ctrl-C or SIGTERM.

    Requests that run or wait at that moment are still answered.

    Args:
        models: anything that :func:`merganser.generate` takes, sweeps, and folders of evaluated studies. A
            sweep or a study has a model for each of its points, its base and its experts;
            ``STUDY#w=0.73`` is a point between them.
        host: the address to listen on.
        port: the port to listen on; 0 takes any free one.
        keys: API keys, one of which every request must have; empty to accept all requests.
        origins: origins of web pages whose scripts may send requests.
        grid_only: whether to serve only the points of a sweep's grid, and none between them.
        turn: seconds in which requests join a model's turn although other models wait.
        longest_turn: seconds after which running requests pause until their model's next turn.
        max_waiting: most requests that may wait.
        max_tokens: most tokens of a completion; None for what the model's context leaves.
        batch_size: number of completions at once.
        drain_seconds: seconds that running requests have when the server is stopped.
        device: as of :class:`merganser.LiveModel`.
        dtype: as of :class:`merganser.LiveModel`.
        threads: as of :class:`merganser.LiveModel`.
        on_ready: called with the server's address and the number of models once it listens.
        on_warning: called with each warning.

    Raises:
        MerganserError: when a model cannot be served, the address cannot be listened on, or the extra
            ``serve`` is not installed.
    """
    extras.check("transformers", "eval")
    server = extras.load("merganser.serving.server", "serve")
    engines = extras.load("merganser.serving.transformers_engine", "serve")
    address = server.Address(host, port, keys, origins, drain_seconds)
    catalogue = Catalogue([models] if isinstance(models, str) else models, grid_only=grid_only)
    if not address.is_loopback and not keys:
        on_warning(f"everybody who reaches {host} can ask; give keys")
    live = LiveModel(device=device, dtype=dtype, threads=threads)
    limits = Limits(
        waiting=max_waiting, max_tokens=max_tokens, turn=turn, longest_turn=longest_turn
    )
    service = Service(catalogue, engines.TransformersEngine(live, most_rows=batch_size), limits)
    count = len(catalogue.models)
    listening = server.Server(service, address, lambda url: on_ready(url, count))
    asyncio.run(service.warm_up())
    listening.serve_until_stopped()
