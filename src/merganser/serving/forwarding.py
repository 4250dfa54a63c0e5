"""Answers requests by passing them on to vLLM's own servers, as they are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as Reply
from starlette.routing import BaseRoute, Route

from merganser.evaluation.generation import EngineFailure
from merganser.serving import vllm_server
from merganser.serving.adapter_points import AdapterFamily, NoAdapter
from merganser.serving.adapters import Adapters
from merganser.serving.answers import as_event
from merganser.serving.base_service import BaseService
from merganser.serving.fleet import Fleet
from merganser.serving.limits import Limits
from merganser.serving.names import MOST_BETWEEN, Catalogue, Served
from merganser.serving.replica import Replica
from merganser.serving.upstream import Response
from merganser.serving.wire import AnyRequest, BadRequest, ChatRequest, read_object

LIMITS = ("max_tokens", "max_completion_tokens")
"""Keys of a request that bound the completion."""


class Forwarding(BaseService):
    """Passes requests on to vLLM's servers; only the model's name and the end tokens are edited.

    Models that form a family of adapters are served at once. Others take turns; vLLM cannot pause a
    request and keep its memory, so a turn ends when its last request is answered.

    Args:
        catalogue: the models.
        fleet: the servers.
        limits: the limits of the server.
        family: the family that the models form, or None.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        fleet: Fleet,
        limits: Limits,
        family: AdapterFamily | None = None,
    ) -> None:
        becomes = [partial(self._become, replica) for replica in fleet.replicas]
        super().__init__(catalogue, fleet, becomes, limits, longest_turn=None)
        self.fleet = fleet
        self.family = family
        fleet.on_death = self.gate.reload
        # All models of a family need the same weights.
        self._base = Served("all", family.plan) if family else None
        most = len(catalogue.models) + MOST_BETWEEN
        self._adapters = Adapters(family, fleet.replicas, most) if family else None

    async def start(self) -> None:
        """See :class:`BaseService`."""
        first = self._base or next(iter(self.catalogue.models.values()))
        files = self.family.files if self.family else ()
        await asyncio.gather(*(replica.open(first.plan, files) for replica in self.fleet.replicas))
        async with self.gate.admitted(first):
            pass

    async def health(self) -> tuple[dict[str, Any], bool]:
        """See :class:`BaseService`; 200 as long as one replica runs."""
        states = [replica.condition for replica in self.fleet.replicas]
        alive = self.fleet.is_alive and not self.draining
        if self.draining:
            status = "stopping"
        elif all(state == "running" for state in states):
            status = "ok"
        elif alive:
            status = "degraded"
        else:
            status = "failed" if all(state == "failed" for state in states) else "starting"
        return {"status": status, "replicas": self.fleet.describe()}, alive

    async def refresh(self) -> None:
        """See :class:`BaseService`."""
        await self.fleet.refresh()

    def state(self) -> dict[str, Any]:
        """See :class:`BaseService`."""
        loaded = [point.name if point else None for point in self.gate.loaded]
        replicas = [
            {**each, "model": name}
            for each, name in zip(self.fleet.describe(), loaded, strict=True)
        ]
        return super().state() | {"replicas": replicas}

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """See :class:`BaseService`: vLLM's own metrics of each replica."""

        async def metrics(request: Request) -> Reply:
            number = int(request.path_params["number"])
            if number >= len(self.fleet.replicas):
                raise BadRequest(f"there is no replica {number}", status=404)
            return Reply(await self.fleet.metrics_of(number), media_type="text/plain")

        return [Route("/replicas/{number:int}/metrics", metrics)]

    async def reply(
        self, body: bytes, kind: type[AnyRequest]
    ) -> AsyncGenerator[bytes | dict[str, Any]]:
        """See :class:`BaseService`."""
        began = time.monotonic()
        self.check_open()
        data = self._read(body)
        served = await self.find(data["model"])
        path = "/v1/chat/completions" if kind is ChatRequest else "/v1/completions"
        edit = partial(_edited, data["model"], served.plan.digest)
        complete = None
        async with self._lent(served) as adapter, self.turn(self._base or served, began) as number:
            replica = self.fleet.replicas[number]
            try:
                if adapter is not None and self._adapters is not None:
                    await self._adapters.load(adapter, replica)
                async with replica.ask(path, _prepared(data, replica, adapter)) as response:
                    if response.status != 200:
                        raise _refusal(response.status, await response.read())
                    if data.get("stream"):
                        async for event in _events(response, edit):
                            yield event
                    else:
                        complete = edit(await response.json())
            except EngineFailure as error:
                raise BadRequest(
                    f"{error}; ask again",
                    status=503,
                    code="engine_failed",
                    headers={"Retry-After": "5"},
                ) from None
        if complete is not None:
            yield complete
        self.metrics.add_answer(time.monotonic() - began)

    async def close(self) -> None:
        """See :class:`BaseService`."""
        await super().close()
        if self._adapters is not None:
            self._adapters.close()

    @asynccontextmanager
    async def _lent(self, served: Served) -> AsyncIterator[str | None]:
        """Hold a model's adapter; None if it needs none.

        Raises:
            BadRequest: the model is none of the family.
        """
        if self._adapters is None:
            yield None
            return
        try:
            name = await self._adapters.hold(served)
        except NoAdapter as error:
            raise BadRequest(f"{served.name}: {error}", param="model") from None
        try:
            yield name
        finally:
            self._adapters.release(served)

    def _read(self, body: bytes) -> dict[str, Any]:
        """Return a request, after checking the keys that this server reads itself."""
        data = read_object(body)
        if not isinstance(data.get("model"), str) or not 0 < len(data["model"]) <= 1000:
            raise BadRequest("model: is the name of a model", param="model")
        most = self.limits.max_tokens
        for key in LIMITS:
            value = data.get(key)
            if most is not None and isinstance(value, int) and value > most:
                raise BadRequest(f"{key}: the server generates at most {most:,} tokens", param=key)
        if not isinstance(data.get("stream"), bool | None):
            raise BadRequest("stream: is true or false", param="stream")
        ends = data.get("stop_token_ids")
        if ends is not None and not isinstance(ends, list):
            raise BadRequest("stop_token_ids: is a list of tokens", param="stop_token_ids")
        return data

    async def _become(self, replica: Replica, served: Served) -> None:
        if self.family is not None:
            await replica.open(self.family.plan, self.family.files)
            return
        facts = await replica.become(served, report=served not in self.facts)
        self.facts.setdefault(served, facts)


def _prepared(data: Mapping[str, Any], replica: Replica, adapter: str | None) -> dict[str, Any]:
    """Return a request as vLLM gets it."""
    assert replica.codec is not None
    request = {**data, "model": adapter or vllm_server.NAME}
    if not data.get("ignore_eos"):
        # vLLM was started without the model's generation config, whose defaults are not OpenAI's.
        vocabulary = replica.codec.config.get_text_config().vocab_size
        tokens = [token for token in replica.codec.end_tokens if token < vocabulary]
        ends = [*(data.get("stop_token_ids") or ()), *tokens]
        request["stop_token_ids"] = list(dict.fromkeys(ends))
    return request


def _edited(name: str, digest: str, answer: Any) -> Any:
    """Return an answer, or an event of one, with the model's name and the digest of its weights."""
    if isinstance(answer, dict) and "choices" in answer:
        return answer | {"model": name, "system_fingerprint": digest}
    return answer


async def _events(response: Response, edit: Callable[[Any], Any]) -> AsyncIterator[bytes]:
    """Yield the events of a stream, edited.

    Raises:
        EngineFailure: the server dies.
    """
    rest = b""
    async for part in response.parts:
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data: ")
            if payload.startswith(b"{"):
                data = json.loads(payload)
                _check_engine(data)
                yield as_event(edit(data))
            else:
                yield event + b"\n\n"


def _check_engine(answer: Any) -> None:
    """Check that an answer is not that vLLM's engine has died.

    Raises:
        EngineFailure: it is.
    """
    if isinstance(answer, dict) and "EngineCore" in str(answer.get("error", "")):
        raise EngineFailure("the engine has ended")


def _refusal(status: int, body: bytes) -> BadRequest:
    """Return vLLM's error in the form that is sent to the client.

    Raises:
        EngineFailure: vLLM's engine has died, and its server will end.
    """
    try:
        data = json.loads(body)
        _check_engine(data)
        error = data.get("error", data)
        message, param, code = error.get("message"), error.get("param"), error.get("code")
    except (ValueError, AttributeError):
        message = param = code = None
    return BadRequest(
        str(message or f"vLLM refuses the request with status {status}"),
        status=status if 400 <= status < 600 else 502,
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) else None,
    )
