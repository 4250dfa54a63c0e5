"""Puts a service of vLLM servers together."""

from __future__ import annotations

from collections.abc import Callable

from merganser.evaluation import engines
from merganser.evaluation.engines import VllmOptions, is_vllm_for_cpus
from merganser.serving import adapters, fleet
from merganser.serving.fleet import Fleet
from merganser.serving.forwarding import Forwarding
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.replica import ServerSetting
from merganser.study.live_model import Computing


def make(
    catalogue: Catalogue,
    options: VllmOptions,
    limits: Limits,
    *,
    replicas: int,
    device: str,
    dtype: Computing,
    threads: int | None,
    batch_size: int,
    on_note: Callable[[str], None],
) -> Forwarding:
    """Return a service of vLLM servers, which are started with the service.

    Args:
        catalogue: the models.
        options: options of the engine.
        limits: the limits of the server.
        replicas: number of servers.
        device, dtype, threads, batch_size: see :func:`merganser.serve`.
        on_note: called with a line on how models with adapters are served.

    Raises:
        RecipeError: there are not enough devices.
        MerganserError: the installed vLLM computes on another device.
    """
    on_cpu = is_vllm_for_cpus()
    fleet.check_device(device, on_cpu)
    shares = fleet.shares_of(replicas, options.tensor_parallel_size, on_cpu)
    family, reason = adapters.family_of(catalogue)
    more = {}
    if family is not None:
        more = adapters.adapter_arguments(family, len(catalogue.models))
        on_note(
            f"every model is one base with an adapter of rank {family.rank} at most: all are served at once"
        )
    elif reason is not None:
        on_note(f"models take turns, since they are not all adapters of one base: {reason}")
    setting = ServerSetting(
        engines.describe(options),
        options,
        on_cpu,
        fleet.dtype_of(dtype, on_cpu),
        threads=threads,
        batch_size=batch_size,
        max_tokens=limits.max_tokens,
        more=more,
    )
    return Forwarding(catalogue, Fleet(setting, shares), limits, family)
