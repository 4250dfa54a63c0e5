"""Start a studio."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence

from merganser import extras
from merganser.serving.limits import PORT, Limits
from merganser.study.live_model import Computing, LiveModel

TURN = 0.3
"""Seconds of a turn; people who compare models ask them in turns."""


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
    on_ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve a page to blend the models below a folder, talk with the blends, and run studies, until Ctrl-C.

    OpenAI's API is at the same address. The page reads and writes only below the folder, and nothing is
    fetched from the Hub.

    Args:
        folder: where models, recipes and studies are.
        host, port: where to listen; port 0 takes any free one.
        keys: one of them must come with each request; one is made if others than this machine reach the host.
        max_tokens: length of a completion; None for what the model's context leaves.
        device, dtype, threads: of the live model; see :class:`merganser.LiveModel`.
        on_ready: called with the page's address once it can be opened.

    Raises:
        MerganserError: the folder is missing, the address cannot be listened on, or the extra ``serve``
            is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    extras.check("transformers", "eval")
    server = extras.load("merganser.serving.server", "serve")
    running = extras.load("merganser.studio.running", "serve")
    address = server.Address(host, port, keys)
    if not address.is_loopback and not keys:
        address = server.Address(host, port, [secrets.token_urlsafe(24)])
    live = LiveModel(device=device, dtype=dtype, threads=threads)
    limits = Limits(max_tokens=max_tokens, turn=TURN)
    running.make_server(folder, address, live, limits, on_ready).serve_until_stopped()
