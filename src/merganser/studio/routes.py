"""The page's HTTP routes: its files, and its requests beyond OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from merganser import methods
from merganser.errors import MerganserError
from merganser.evaluation.presets import PRESETS, PROBLEM_SETS
from merganser.recipe.document import parse_document
from merganser.serving.answers import as_json
from merganser.serving.wire import BadRequest
from merganser.studio import commands, recipes, studies, sweeps
from merganser.studio.blends import Blends
from merganser.studio.estimates import Estimates
from merganser.studio.jobs import Jobs, shown
from merganser.studio.library import Library

PAGE = {
    "index.html": "text/html",
    "studio.css": "text/css",
    "screens.css": "text/css",
    **dict.fromkeys(
        (
            "main.js",
            "server.js",
            "elements.js",
            "controls.js",
            "recipe.js",
            "blend.js",
            "jobs.js",
            "talk.js",
            "history.js",
            "study.js",
            "front.js",
            "sweep.js",
            "differences.js",
            "publish.js",
            "card.js",
            "hub.js",
        ),
        "text/javascript",
    ),
}
"""The page's files, with their content types."""

OPEN = ("/", *(f"/studio/page/{name}" for name in PAGE))
"""Paths that need no API key, because their content is public."""

HEADER = "x-merganser"
"""Header that every changing request must have: other sites' pages cannot send it without CORS."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)
"""Content security policy of a study's report: its scripts run in an opaque origin, without network."""

MOST_TEXT = 2**20
"""Maximum size of a request and of a card, in bytes."""


class _Text(BaseModel):
    """A request with a recipe; with ``live`` its merge becomes a model of the API."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    live: bool = False


class _Save(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    name: str


_AXES = TypeAdapter(sweeps.Axes)

_ASKED: TypeAdapter[commands.Asked] = TypeAdapter(
    Annotated[commands.Asked, Field(discriminator="kind")]
)

Handler = Callable[[Request], Awaitable[Response]]


class Studio:
    """The objects that the page's routes use.

    Args:
        library: the studio's folder.
        blends: the live models.
        jobs: the commands.
    """

    def __init__(self, library: Library, blends: Blends, jobs: Jobs) -> None:
        self.library = library
        self.blends = blends
        self.jobs = jobs
        self._estimates = Estimates(library)
        self._merged: list[str] = []

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of the page."""

        def get(path: str, handler: Handler) -> Route:
            return Route(f"/studio/{path}", _readable(handler), methods=["GET"])

        def post(path: str, handler: Handler) -> Route:
            return Route(f"/studio/{path}", _guarded(handler), methods=["POST"])

        return [
            Route("/", _page, methods=["GET"]),
            Route("/studio/page/{name}", _page, methods=["GET"]),
            get("library", self._contents),
            get("methods", _methods),
            get("file", self._file),
            get("study", self._study),
            get("answers", self._answers),
            get("recipe", self._recipe),
            get("report", self._report),
            get("card", self._card),
            get("jobs", self._list),
            get("jobs/{number:int}", self._job),
            post("blend", self._blend),
            post("save", self._save),
            post("sweep", self._sweep),
            post("jobs", self._start),
            post("jobs/{number:int}/stop", self._stop),
        ]

    async def _contents(self, _request: Request) -> Response:
        return _json(await asyncio.to_thread(self._listed))

    def _listed(self) -> dict[str, Any]:
        found = self.library.contents()
        self._merged = found.merged
        return asdict(found) | {
            "root": self.library.root.name,
            "network": self.jobs.has_network,
            "scorers": sweeps.offered_scorers(),
            "sets": [
                {"name": name, "title": each.title, "size": each.size}
                for name, each in PROBLEM_SETS.items()
            ],
            "presets": {
                name: {
                    "settings": dict(preset.settings),
                    "problems": preset.problems,
                    "scorers": preset.scorers,
                }
                for name, preset in PRESETS.items()
            },
        }

    async def _blend(self, request: Request) -> Response:
        asked = await _body(request, TypeAdapter(_Text))
        return _json(await asyncio.to_thread(self._planned, asked))

    def _planned(self, asked: _Text) -> dict[str, Any]:
        answer: dict[str, Any] = {"error": None, "controls": None, "plan": None, "model": None}
        try:
            answer["controls"] = recipes.controls_of(asked.text)
            plan = recipes.read_plan(asked.text, self.library)
        except MerganserError as error:
            return answer | {"error": asdict(recipes.problem_of(error))}
        if asked.live:
            answer["model"] = self.blends.add(plan).name
        estimate = self._estimates.of(plan, self._merged)
        return answer | {"plan": recipes.facts_of(plan) | {"estimate": estimate}}

    async def _save(self, request: Request) -> Response:
        asked = await _body(request, TypeAdapter(_Save))
        name = asked.name if asked.name.endswith((".yml", ".yaml")) else f"{asked.name}.yml"
        await asyncio.to_thread(parse_document, asked.text, recipes.FILE)
        await asyncio.to_thread(self.library.save, name, asked.text)
        return _json({"saved": name, "command": shown(["plan", name])})

    async def _sweep(self, request: Request) -> Response:
        asked = await _body(request, _AXES)
        try:
            made = await asyncio.to_thread(sweeps.make, asked, self.library)
        except MerganserError as error:
            return _json({"error": str(error)})
        return _json(asdict(made) | {"error": None})

    async def _file(self, request: Request) -> Response:
        place = _place(request)
        if not place.endswith((".yml", ".yaml")):
            raise BadRequest("only recipes are shown", status=404)
        return _json({"text": await asyncio.to_thread(self._read, place)})

    async def _card(self, request: Request) -> Response:
        place = f"{_place(request)}/README.md"
        return _json({"text": await asyncio.to_thread(self._read, place)})

    def _read(self, place: str) -> str:
        path = self.library.inside(place)
        if not path.is_file():
            raise BadRequest(f"{place}: is not a file", status=404)
        with path.open("rb") as file:
            return file.read(MOST_TEXT).decode("utf-8", "replace")

    async def _study(self, request: Request) -> Response:
        place, seen = _place(request), request.query_params.get("seen", "")
        return _json(await asyncio.to_thread(studies.describe, place, self.library, seen))

    async def _answers(self, request: Request) -> Response:
        found = await asyncio.to_thread(studies.answers, _place(request), self.library)
        return _json({"problems": found})

    async def _recipe(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        make = studies.recipe_of
        return _json({"text": await asyncio.to_thread(make, _place(request), name, self.library)})

    async def _report(self, request: Request) -> Response:
        path = self.library.inside(f"{_place(request)}/{studies.REPORT}")
        body = await asyncio.to_thread(path.read_bytes)
        return _respond(body, "text/html", SANDBOX)

    async def _list(self, _request: Request) -> Response:
        return _json({"jobs": [job.describe() for job in self.jobs]})

    async def _job(self, request: Request) -> Response:
        number = request.path_params["number"]
        job = self.jobs.get(number)
        if job is None:
            raise BadRequest(f"there is no job {number}", status=404)
        return _json(job.describe(full=True))

    async def _start(self, request: Request) -> Response:
        asked = await _body(request, _ASKED)
        command = await asyncio.to_thread(commands.command_of, asked, self.library)
        job = await self.jobs.start(command)
        return _json(job.describe())

    async def _stop(self, request: Request) -> Response:
        number = request.path_params["number"]
        job = self.jobs.get(number)
        if job is None:
            raise BadRequest(f"there is no job {number}", status=404)
        self.jobs.stop(job)
        return _json(job.describe())


async def _page(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    kind = PAGE.get(name)
    if kind is None:
        raise BadRequest("there is no such page", status=404)
    body = resources.files("merganser.studio").joinpath("page", name).read_bytes()
    return _respond(body, kind, POLICY)


async def _methods(_request: Request) -> Response:
    def listed() -> list[Mapping[str, Any]]:
        found = (methods.get(name) for name in methods.names())
        return [
            methods.describe(method)
            | {"sweep": {count: sweeps.use_of(method, count) for count in (2, 3)}}
            for method in found
            if method is not None
        ]

    return _json({"methods": await asyncio.to_thread(listed)})


def _readable(handler: Handler) -> Handler:
    """Return a handler that refuses requests of other sites' pages, and reports errors as bad requests."""

    async def handle(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise BadRequest("asked by a page of another site", status=403, code="cross_site")
        try:
            return await handler(request)
        except MerganserError as error:
            if isinstance(error, BadRequest):
                raise
            raise BadRequest(str(error)) from None

    return handle


def _guarded(handler: Handler) -> Handler:
    """Return a handler of a changing request, which only the studio's page or a program can send."""

    async def handle(request: Request) -> Response:
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        if foreign or request.headers.get(HEADER) != "studio":
            raise BadRequest("asked by a page of another site", status=403, code="cross_site")
        return await handler(request)

    return _readable(handle)


def _place(request: Request) -> str:
    place = request.query_params.get("place")
    if not place:
        raise BadRequest("place: is missing", param="place")
    return place


async def _body(request: Request, kind: TypeAdapter[Any]) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequest("Content-Type: must be application/json", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_TEXT:
            raise BadRequest(f"the body is larger than {MOST_TEXT:,} bytes", status=413)
    try:
        return kind.validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _json(data: Any) -> Response:
    return _respond(as_json(data), "application/json", POLICY)


def _respond(body: bytes | str, kind: str, policy: str) -> Response:
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return Response(body, media_type=kind, headers=headers)
