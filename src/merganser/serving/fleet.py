"""Several vLLM servers as one engine, each with devices of its own."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from merganser.errors import MerganserError, RecipeError
from merganser.evaluation.generation import EngineFailure
from merganser.planning import Plan
from merganser.serving.generation import EngineState
from merganser.serving.replica import Replica, ServerSetting, Share
from merganser.study.live_model import Computing

_COUNTERS = {"prompt": "vllm:prompt_tokens_total", "generated": "vllm:generation_tokens_total"}


class Fleet:
    """The replicas of an engine.

    Args:
        setting: how the servers are started.
        shares: the devices of each replica.

    Attributes:
        name: the engine with its version.
        replicas: the replicas.
        on_death: called with the index of a replica whose server has died.
    """

    def __init__(self, setting: ServerSetting, shares: Sequence[Share]) -> None:
        self.name = setting.name
        self.on_death: Callable[[int], None] = lambda _number: None
        self.replicas = [
            Replica(setting, share, partial(self._died, number))
            for number, share in enumerate(shares)
        ]
        self._tokens: list[dict[str, int]] = [{} for _ in shares]
        self._before: dict[str, int] = {}

    @property
    def is_alive(self) -> bool:
        """See :class:`merganser.serving.generation.Generating`."""
        return any(replica.condition == "running" for replica in self.replicas)

    @property
    def state(self) -> EngineState:
        """See :class:`merganser.serving.generation.Generating`; tokens are as of :meth:`refresh`."""
        return EngineState(
            running=sum(replica.running for replica in self.replicas),
            tokens=self._count("generated"),
            prompt_tokens=self._count("prompt"),
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the replicas' states as plain data."""
        return [
            {"state": each.condition, "restarts": each.restarts, "running": each.running}
            for each in self.replicas
        ]

    async def refresh(self) -> None:
        """Ask the servers how many tokens they have read and generated."""
        await asyncio.gather(*(self._refresh(number) for number in range(len(self.replicas))))

    async def metrics_of(self, number: int) -> bytes:
        """Return vLLM's metrics of a replica, in Prometheus' format.

        Raises:
            EngineFailure: its server does not run.
        """
        return await self.replicas[number].call("/metrics", method="GET")

    async def close(self) -> None:
        """See :class:`merganser.serving.generation.Generating`."""
        await asyncio.gather(*(replica.close() for replica in self.replicas))

    def _died(self, number: int) -> None:
        self.on_death(number)

    async def _refresh(self, number: int) -> None:
        try:
            text = (await self.metrics_of(number)).decode()
        except EngineFailure:
            return
        for kind, name in _COUNTERS.items():
            values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
            now = int(sum(map(float, values)))
            known = self._tokens[number].get(kind, 0)
            if now < known:  # the server was restarted
                self._before[kind] = self._before.get(kind, 0) + known
            self._tokens[number][kind] = now

    def _count(self, kind: str) -> int:
        return self._before.get(kind, 0) + sum(each.get(kind, 0) for each in self._tokens)


def dtype_of(dtype: Computing, on_cpu: bool) -> Callable[[Plan], str]:
    """Return a function that returns the compute dtype of a plan."""
    if dtype != "auto":
        return lambda _plan: dtype
    return lambda plan: "float32" if on_cpu else plan.dtype.name


def shares_of(replicas: int, parallel: int, on_cpu: bool) -> list[Share]:
    """Return the devices of each replica: its GPUs, or its cores.

    Args:
        replicas: number of replicas.
        parallel: number of GPUs of each.
        on_cpu: whether vLLM computes on the processor.

    Raises:
        RecipeError: there are not enough GPUs.
    """
    if on_cpu:
        if replicas == 1:
            return [Share()]
        cores = sorted(os.sched_getaffinity(0))
        if replicas > len(cores):
            raise RecipeError(f"replicas: there are {len(cores)} cores for {replicas} replicas")
        return [Share(cores=cores[number::replicas]) for number in range(replicas)]
    devices = _visible_gpus()
    if replicas * parallel > len(devices):
        raise RecipeError(
            f"replicas: {replicas} replicas of {parallel} GPU{'s' * (parallel > 1)} need "
            f"{replicas * parallel} GPUs, and there are {len(devices)}"
        )
    groups = [devices[n * parallel : (n + 1) * parallel] for n in range(replicas)]
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups]


def _visible_gpus() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part.strip() for part in given.split(",") if part.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def check_device(device: str, on_cpu: bool) -> None:
    """Check that the installed vLLM computes on a device.

    Raises:
        MerganserError: it uses another one.
    """
    installed = "cpu" if on_cpu else "cuda"
    if device not in ("auto", installed):
        raise MerganserError(
            f"device: the installed vLLM computes on {installed}, not on {device}; choose among several "
            "GPUs by CUDA_VISIBLE_DEVICES"
        )
