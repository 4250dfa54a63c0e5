"""Start a studio."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence

from merganser import extras
from merganser.serving.limits import PORT, Limits
from merganser.study.live_model import Computing, LiveModel

OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable with which huggingface_hub does not use the network; set in the studio's process."""

TURN = 0.3
"""Seconds in which requests join a turn: short, since people who compare models alternate between them."""


def studio(
    folder: str | os.PathLike[str] = ".",
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    keys: Sequence[str] = (),
    max_tokens: int | None = None,
    device: str = "auto",
    dtype: Computing = "auto",
    threads: int | None = None,
    hub_cache: bool = True,
    network: bool = False,
    on_ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve a page to blend the models below a folder, chat with the blends, and run studies, until Ctrl-C.

    The same address serves OpenAI's API. The page writes only below the folder, and reads only there and
    the models of the Hub's cache. Without ``network`` it asks nothing of the Hub.

    Args:
        folder: the folder of models, recipes and studies.
        host: the address to listen on.
        port: the port to listen on; 0 takes any free one.
        keys: API keys, one of which every request must have; if empty, one is generated if other
            machines can reach the host.
        max_tokens: most tokens of a completion; None for what the model's context leaves.
        device: as of :class:`merganser.LiveModel`.
        dtype: as of :class:`merganser.LiveModel`.
        threads: as of :class:`merganser.LiveModel`.
        hub_cache: whether the page may read the models of the Hub's cache.
        network: whether the page's buttons may search the Hub, download models and problems, and publish;
            ``HF_HUB_OFFLINE`` still forbids it.
        on_ready: called with the page's address once it can be opened.

    Raises:
        MerganserError: the folder is missing, the address cannot be listened on, or the extra ``serve``
            is not installed.
    """
    online = {OFFLINE: os.environ.get(OFFLINE, "")} if network else None
    os.environ[OFFLINE] = "1"
    extras.check("transformers", "eval")
    server = extras.load("merganser.serving.server", "serve")
    running = extras.load("merganser.studio.running", "serve")
    address = server.Address(host, port, keys)
    if not address.is_loopback and not keys:
        address = server.Address(host, port, [secrets.token_urlsafe(24)])
    live = LiveModel(device=device, dtype=dtype, threads=threads)
    limits = Limits(max_tokens=max_tokens, turn=TURN)
    made = running.make_server(
        folder,
        address,
        live,
        limits,
        on_ready,
        hub_cache=hub_cache,
        online=online,
        freezes=True,
    )
    made.serve_until_stopped()
