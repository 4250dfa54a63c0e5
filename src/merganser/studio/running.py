"""The studio's server: OpenAI's API over live blends, and the page's routes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from merganser.serving.limits import Limits
from merganser.serving.server import Address, Server
from merganser.serving.service import Service
from merganser.serving.transformers_engine import TransformersEngine
from merganser.studio.blends import Blends
from merganser.studio.jobs import Jobs
from merganser.studio.library import Library
from merganser.studio.routes import OPEN, Studio
from merganser.study.live_model import LiveModel


class StudioService(Service):
    """A service that also stops a studio's commands when it is closed.

    Args:
        blends: the models.
        live: the model in memory.
        limits: the limits of the server.
        jobs: the commands.
        freezes: see :class:`merganser.serving.transformers_engine.TransformersEngine`.
    """

    def __init__(
        self, blends: Blends, live: LiveModel, limits: Limits, jobs: Jobs, *, freezes: bool = False
    ) -> None:
        own = TransformersEngine(live)
        own.freezes = freezes
        super().__init__(blends, own, limits)
        self._jobs = jobs

    async def close(self) -> None:
        """Cancel everything that runs, and stop the commands."""
        await self._jobs.close()
        await super().close()


def make_server(
    folder: str | os.PathLike[str],
    address: Address,
    live: LiveModel,
    limits: Limits,
    on_ready: Callable[[str], None] = lambda _url: None,
    *,
    hub_cache: bool = False,
    online: Mapping[str, str] | None = None,
    freezes: bool = False,
) -> Server:
    """Return a studio's server; it listens once it is run.

    Args:
        folder: the folder that the page may read and write.
        address: the address to listen on.
        live: the model in memory.
        limits: the limits of the server.
        on_ready: called with the page's address once the server listens.
        hub_cache: whether the page may read the models of the Hub's cache.
        online: the environment variables with which commands may use the network; None if no command
            may.
        freezes: see :class:`StudioService`.

    Raises:
        InputError: there is no such folder.
        ResourceError: the address is in use, or does not belong to this machine.
    """
    library = Library(folder, hub_cache=hub_cache)
    blends = Blends(library)
    jobs = Jobs(library.root, online)
    page = Studio(library, blends, jobs)
    token = f"#token={address.keys[0]}" if address.keys else ""

    def tell(url: str) -> None:
        on_ready(f"{url.removesuffix('/v1')}/{token}")

    service = StudioService(blends, live, limits, jobs, freezes=freezes)
    return Server(service, address, tell, routes=page.routes, open_paths=OPEN)
