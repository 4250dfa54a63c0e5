"""The studio's server: OpenAI's API over live blends, and the page's routes."""

from __future__ import annotations

import os
from collections.abc import Callable

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
    """A service that ends a studio's commands when it ends.

    Args:
        blends: the models.
        live: the model in memory.
        limits: the server's.
        jobs: the commands.
    """

    def __init__(self, blends: Blends, live: LiveModel, limits: Limits, jobs: Jobs) -> None:
        super().__init__(blends, TransformersEngine(live), limits)
        self._jobs = jobs

    async def close(self) -> None:
        """End everything that runs."""
        await self._jobs.close()
        await super().close()


def make_server(
    folder: str | os.PathLike[str],
    address: Address,
    live: LiveModel,
    limits: Limits,
    on_ready: Callable[[str], None] = lambda _url: None,
) -> Server:
    """A studio's server, which listens once it is run.

    Args:
        folder: what the page may read and write.
        address: where it listens.
        live: the model in memory.
        limits: of the API.
        on_ready: called with the page's address.

    Raises:
        InputError: there is no such folder.
        ResourceError: the address is in use, or not this machine's.
    """
    library = Library(folder)
    blends = Blends(library)
    jobs = Jobs(library.root)
    page = Studio(library, blends, jobs)
    token = f"#token={address.keys[0]}" if address.keys else ""

    def tell(url: str) -> None:
        on_ready(f"{url.removesuffix('/v1')}/{token}")

    service = StudioService(blends, live, limits, jobs)
    return Server(service, address, tell, routes=page.routes, open_paths=OPEN)
