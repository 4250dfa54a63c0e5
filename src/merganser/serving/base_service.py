"""What all servers share: the models, their turns, metrics, and what they say about themselves."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from starlette.routing import BaseRoute

from merganser.errors import RecipeError
from merganser.serving.gate import Become, EngineGone, Gate, QueueFull
from merganser.serving.generation import Facts, Generating
from merganser.serving.limits import Limits
from merganser.serving.metrics import Metrics
from merganser.serving.names import Catalogue, Served, UnknownModel
from merganser.serving.wire import AnyRequest, BadRequest


class BaseService(ABC):
    """Finds a request's model, waits for its turn, and lets a subclass answer.

    Args:
        catalogue: the models.
        engine: generates the completions.
        becomes: for each engine, loads a model's weights; see :class:`Gate`.
        limits: the limits of the server.
        longest_turn: see :class:`Gate`.

    Attributes:
        draining: whether the server is stopping, and refuses new requests.
        metrics: the server's metrics.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        engine: Generating,
        becomes: Sequence[Become[Served]],
        limits: Limits,
        *,
        longest_turn: float | None,
    ) -> None:
        self.catalogue = catalogue
        self.limits = limits
        self.draining = False
        self.created = int(time.time())
        self.facts: WeakKeyDictionary[Served, Facts] = WeakKeyDictionary()
        self._engine = engine
        self.gate: Gate[Served] = Gate(
            *becomes,
            turn=limits.turn,
            longest=longest_turn,
            most_waiting=limits.waiting,
            on_swap=lambda seconds: self.metrics.add_swap(seconds),
        )
        self.metrics = Metrics(
            engine.name,
            running=lambda: engine.state.running,
            held=lambda: engine.state.held,
            waiting=lambda: {model.name: n for model, n in self.gate.waiting.items()},
            tokens=lambda: (engine.state.tokens, engine.state.prompt_tokens),
        )

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Further routes."""
        return ()

    @abstractmethod
    def reply(self, body: bytes, kind: type[AnyRequest]) -> AsyncGenerator[bytes | dict[str, Any]]:
        """Yield the answer to a request: one JSON object, or the events of a stream.

        Closing the iterator cancels its completions.

        Args:
            body: the request's body.
            kind: the kind of the request.

        Raises:
            BadRequest: the request cannot be answered; raised only before the first event of a stream.
            MerganserError: the engine fails.
        """

    async def start(self) -> None:
        """Prepare the engine, in the event loop of the server.

        Raises:
            MerganserError: the first model cannot be run.
        """
        return

    async def health(self) -> tuple[dict[str, Any], bool]:
        """Return the server's state as plain data, and whether it takes requests."""
        alive = self._engine.is_alive and not self.draining
        return {"status": "ok" if alive else "stopping"}, alive

    async def refresh(self) -> None:
        """Bring the numbers that :attr:`metrics` shows up to date."""
        return

    async def find(self, name: str) -> Served:
        """Return the model with a name.

        Raises:
            BadRequest: there is no such model, or its recipe is not a valid merge.
        """
        try:
            if name in self.catalogue.models:
                return self.catalogue.models[name]
            return await asyncio.to_thread(self.catalogue.find, name)
        except UnknownModel as error:
            message, code = str(error), "model_not_found"
            raise BadRequest(message, status=404, param="model", code=code) from None
        except RecipeError as error:
            raise BadRequest(str(error), param="model") from None

    def check_open(self) -> None:
        """Check that the server takes requests.

        Raises:
            BadRequest: it stops.
        """
        if self.draining:
            raise BadRequest("the server stops", status=503, headers={"Retry-After": "5"})

    @asynccontextmanager
    async def turn(self, point: Served, began: float) -> AsyncIterator[int]:
        """Hold an admission; see :meth:`Gate.admitted`.

        Args:
            point: the model whose weights are needed.
            began: when the request arrived.

        Raises:
            BadRequest: too many requests wait, or no engine runs.
        """
        try:
            async with self.gate.admitted(point) as number:
                self.metrics.add_wait(time.monotonic() - began)
                yield number
        except QueueFull as error:
            after = str(int(self.limits.turn) + 1)
            raise BadRequest(
                str(error), status=429, code="queue_full", headers={"Retry-After": after}
            ) from None
        except EngineGone as error:
            raise BadRequest(str(error), status=503, code="engine_failed") from None

    def models(self) -> dict[str, Any]:
        """Return the list of all models, in OpenAI's form."""
        return {
            "object": "list",
            "data": [self.describe(m) for m in self.catalogue.models.values()],
        }

    def describe(self, served: Served) -> dict[str, Any]:
        """Return a model in OpenAI's form, with its values, weights and scores where they are known."""
        facts = self.facts.get(served)
        return {
            "id": served.name,
            "object": "model",
            "created": self.created,
            "owned_by": "merganser",
            "digest": served.plan.digest,
            "recipe": served.plan.recipe.document.text,
            "role": served.role,
            "values": dict(served.values),
            "scores": {name: asdict(score) for name, score in served.scores.items()},
            "weights": dict(facts.weights) if facts else None,
            "effective": dict(facts.effective) if facts else None,
        }

    def state(self) -> dict[str, Any]:
        """Return the server's work at this moment, as plain data."""
        current = self.gate.current
        return {
            "engine": self._engine.name,
            "draining": self.draining,
            "current": self.describe(current) if current else None,
            "swaps": self.gate.swaps,
            "inside": {model.name: n for model, n in self.gate.inside.items()},
            "waiting": {model.name: n for model, n in self.gate.waiting.items()},
            "completions": asdict(self._engine.state),
        }

    async def close(self) -> None:
        """Cancel everything that runs."""
        self.draining = True
        self.gate.close()
        await self._engine.close()
