"""A studio without an HTTP server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from merganser.serving.app import LOOPBACK, make_app
from merganser.serving.limits import Limits
from merganser.studio.blends import Blends
from merganser.studio.jobs import Jobs
from merganser.studio.library import Library
from merganser.studio.routes import OPEN, Studio
from merganser.studio.running import StudioService
from merganser.study.live_model import LiveModel

RECIPE = """merge_method: linear
models:
  - model: a
    parameters: {weight: 0.25}
  - model: b
    parameters: {weight: 0.75}
"""


@dataclass
class Reply:
    """What the application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks an ASGI application; one loop for all requests."""

    def __init__(self, folder: Path, keys: tuple[str, ...] = ()) -> None:
        self.library = Library(folder)
        self.blends = Blends(self.library)
        self.jobs = Jobs(self.library.root)
        service = StudioService(self.blends, LiveModel(), Limits(), self.jobs)
        page = Studio(self.library, self.blends, self.jobs)
        hosts = () if keys else LOOPBACK
        self.app = make_app(service, keys=keys, hosts=hosts, routes=page.routes, open_paths=OPEN)
        self.loop = asyncio.new_event_loop()
        self.service = service

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, data: Any, **headers: str) -> Reply:
        known = {"x-merganser": "studio", "content-type": "application/json"}
        return self.ask("POST", path, json.dumps(data).encode(), known | headers)

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        return self.loop.run_until_complete(self._ask(method, path, body, headers))

    async def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        place = urlsplit(path)
        given = {"host": "127.0.0.1:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
        scope = {
            "type": "http", "method": method, "path": place.path, "raw_path": place.path.encode(),
            "query_string": place.query.encode(), "scheme": "http", "root_path": "",
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
            "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1), "http_version": "1.1",
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await asyncio.sleep(3600)
            asked.set()
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        await self.app(scope, receive, send)
        found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent))

    def close(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()
