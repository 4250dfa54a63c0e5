"""The adapters that servers have loaded: written when a model is first asked for, and discarded when unused."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError
from merganser.evaluation.generation import EngineFailure
from merganser.serving import adapter_points
from merganser.serving.adapter_points import AdapterFamily, NoAdapter
from merganser.serving.names import Catalogue, Served
from merganser.serving.replica import Replica

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's option ``max_lora_rank``."""

MOST_ADAPTERS = 16
"""Default maximum number of different adapters in one batch; each takes memory of the largest rank."""


class Adapters:
    """Writes the adapters of a family's models, and loads them into replicas.

    Args:
        family: the family.
        replicas: the replicas.
        most: maximum number of adapters, besides those in use.
    """

    def __init__(self, family: AdapterFamily, replicas: Sequence[Replica], most: int) -> None:
        self._family = family
        self._replicas = replicas
        self._most = most
        self._home = tempfile.TemporaryDirectory(prefix="merganser-")
        # By the digest of the model's plan, which is the adapter's name; False for no adapter.
        self._written: OrderedDict[str, asyncio.Task[bool]] = OrderedDict()
        self._uses: Counter[str] = Counter()

    async def hold(self, served: Served) -> str | None:
        """Return the name of a model's adapter, which stays until :meth:`release`; None for the base.

        Raises:
            NoAdapter: the model is none of the family.
        """
        name = served.plan.digest
        if name not in self._written:
            work = asyncio.to_thread(self._write, served)
            self._written[name] = asyncio.create_task(work)
        self._written.move_to_end(name)
        self._uses[name] += 1
        try:
            exists = await asyncio.shield(self._written[name])
        except BaseException as error:
            self.release(served)
            if isinstance(error, NoAdapter):
                self._written.pop(name, None)
            raise
        return name if exists else None

    def release(self, served: Served) -> None:
        """Allow a model's adapter to be discarded."""
        name = served.plan.digest
        self._uses[name] -= 1
        if not self._uses[name]:
            del self._uses[name]

    async def load(self, name: str, replica: Replica) -> None:
        """Load an adapter into a replica, unless it is loaded.

        Raises:
            EngineFailure: the replica fails.
        """
        await self._discard()
        loaded = replica.adapters
        if name not in loaded:
            request = {"lora_name": name, "lora_path": str(self._path(name))}
            loaded[name] = asyncio.create_task(_call(replica, "load", request))
        task = loaded[name]
        try:
            await asyncio.shield(task)
        except EngineFailure:
            if loaded.get(name) is task:
                del loaded[name]
            raise

    def close(self) -> None:
        """Remove the files."""
        self._home.cleanup()

    async def _discard(self) -> None:
        """Discard the adapters that were not used for longest, if there are too many."""
        unused = [name for name in self._written if name not in self._uses]
        for name in unused[: max(0, len(self._written) - self._most)]:
            del self._written[name]
            for replica in self._replicas:
                if replica.adapters.pop(name, None) is not None:
                    with suppress(EngineFailure):
                        await _call(replica, "unload", {"lora_name": name})
            await asyncio.to_thread(shutil.rmtree, self._path(name), ignore_errors=True)

    def _path(self, name: str) -> Path:
        return Path(self._home.name) / name

    def _write(self, served: Served) -> bool:
        rank = adapter_points.rank_in(self._family, served.plan)
        if rank > self._family.rank:
            raise NoAdapter(f"it needs rank {rank}, and the server has {self._family.rank}")
        return adapter_points.write(served.plan, self._path(served.plan.digest))


def _call(replica: Replica, what: str, request: dict[str, str]) -> Coroutine[Any, Any, bytes]:
    return replica.call(f"/v1/{what}_lora_adapter", request)


def family_of(catalogue: Catalogue) -> tuple[AdapterFamily | None, str | None]:
    """Return the family that a server's models form, or None; and why not, if some have adapters."""
    models = list(catalogue.models.values())
    if not any(adapter_points.has_adapters(model.plan) for model in models):
        return None, None
    try:
        family = adapter_points.find_family(models)
        if family.rank > RANKS[-1]:
            raise NoAdapter(
                f"an adapter of rank {family.rank} is needed, vLLM has at most {RANKS[-1]}"
            )
    except MerganserError as error:
        return None, str(error)
    return family, None


def adapter_arguments(family: AdapterFamily, count: int) -> dict[str, Any]:
    """Return the arguments of engines that serve a family of adapters.

    Args:
        family: the family.
        count: number of its models.
    """
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= family.rank),
        "max_loras": min(max(count, 1), MOST_ADAPTERS),
        "max_cpu_loras": max(64, MOST_ADAPTERS),
    }
