"""Serve models through OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from merganser import extras
from merganser.errors import RecipeError
from merganser.evaluation import engines
from merganser.evaluation.engines import VllmOptions
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
    engine: Literal["transformers", "vllm"] = "transformers",
    engine_options: Mapping[str, Any] | None = None,
    replicas: int = 1,
    device: str = "auto",
    dtype: Computing = "auto",
    threads: int | None = None,
    on_ready: Callable[[str, int], None] = lambda _url, _models: None,
    on_warning: Callable[[str], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
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
        engine: what generates: transformers in this process, or vLLM's own server in a process of its own,
            which gets requests as they are.
        engine_options: options of the engine; see :class:`merganser.evaluation.engines.VllmOptions`.
        replicas: number of vLLM servers, each with GPUs, or a share of the cores, of its own.
        device: as of :class:`merganser.LiveModel`.
        dtype: as of :class:`merganser.LiveModel`.
        threads: as of :class:`merganser.LiveModel`.
        on_ready: called with the server's address and the number of models once it listens.
        on_warning: called with each warning.
        on_note: called with a line on how models with LoRA adapters are served, and when a signal ends the
            server while requests run.

    Raises:
        MerganserError: when a model cannot be served, the address cannot be listened on, or the extra
            ``serve`` is not installed.
    """
    options = engines.read_options(engine, engine_options or {})
    engines.check_installed(options)
    if replicas > 1 and not isinstance(options, VllmOptions):
        raise RecipeError("replicas: the transformers engine has one; give engine='vllm'")
    server = extras.load("merganser.serving.server", "serve")
    module = extras.load("merganser.serving.transformers_engine", "serve")
    address = server.Address(host, port, keys, origins, drain_seconds)
    catalogue = Catalogue([models] if isinstance(models, str) else models, grid_only=grid_only)
    if not address.is_loopback and not keys:
        on_warning(f"everybody who reaches {host} can ask; give keys")
    limits = Limits(
        waiting=max_waiting, max_tokens=max_tokens, turn=turn, longest_turn=longest_turn
    )
    count = len(catalogue.models)

    def tell(url: str) -> None:
        on_ready(url, count)

    if isinstance(options, VllmOptions):
        if longest_turn != LONGEST_TURN:
            on_warning("longest_turn: vLLM pauses no requests; max_tokens bounds a turn")
        forwarding = extras.load("merganser.serving.vllm_engine", "serve")
        service = forwarding.make(
            catalogue,
            options,
            limits,
            replicas=replicas,
            device=device,
            dtype=dtype,
            threads=threads,
            batch_size=batch_size,
            on_note=on_note,
        )
        server.Server(service, address, tell, on_stop=on_note).serve_until_stopped()
        return
    live = LiveModel(device=device, dtype=dtype, threads=threads)
    own = module.TransformersEngine(live, most_rows=batch_size)
    own.freezes = True
    service = Service(catalogue, own, limits)
    listening = server.Server(service, address, tell, on_stop=on_note)
    asyncio.run(service.warm_up())
    listening.serve_until_stopped()
