"""Settings of vLLM's engines, in this process and in servers' processes; vLLM is not imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.evaluation.codec import Codec
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.inference import MEMORY_SHARE, MOST_AT_ONCE, free_memory

BLOCK = 128
"""Maximum number of tokens in a block of vLLM's cache; the memory of a request is rounded up to blocks."""

MOST_CACHE = 4 * 2**30
"""Default maximum size in bytes of vLLM's cache on a CPU; requests that do not fit wait."""

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for results
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the merge engine's threads need the cores, too
}
"""Default values of environment variables of vLLM."""


def engine_arguments(
    folder: Path,
    codec: Codec,
    *,
    dtype: str,
    options: VllmOptions,
    length: int,
    at_once: int | None,
    on_cpu: bool,
) -> dict[str, Any]:
    """Return the arguments of an engine that starts without weights, except ``options.arguments``.

    Args:
        folder: a folder with the model's config and tokenizer.
        codec: the model's codec.
        dtype: torch's name of the compute dtype, such as ``bfloat16``.
        options: the engine's options.
        length: maximum number of tokens of a prompt with its completion.
        at_once: maximum number of simultaneous completions; None for the default. The option
            ``max_num_seqs`` takes precedence.
        on_cpu: whether the installed vLLM is a build for CPUs.
    """
    sequences = options.max_num_seqs or at_once or MOST_AT_ONCE
    arguments: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "dtype": dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_model_len": length,
        "max_num_seqs": sequences,
        "enforce_eager": options.enforce_eager,
        "worker_extension_cls": "merganser.evaluation.vllm_worker.Loading",
    }
    if options.tensor_parallel_size > 1:  # in an actor of Ray, vLLM would start actors
        arguments["distributed_executor_backend"] = "mp"
    cache = options.kv_cache_gib * 2**30 if options.kv_cache_gib else None
    if on_cpu:
        arguments["enforce_eager"] = options.enforce_eager is not False
        cache = cache or _cache_size(codec, dtype, length, sequences)
    arguments["enforce_eager"] = bool(arguments["enforce_eager"])
    if cache is not None:
        arguments["kv_cache_memory_bytes"] = int(cache)
    return arguments


def _cache_size(codec: Codec, dtype: str, length: int, sequences: int) -> int:
    """Bytes of the keys and values of ``sequences`` completions, limited by :data:`MOST_CACHE`."""
    import torch

    each = codec.key_value_bytes(getattr(torch, dtype).itemsize)
    blocks = -(-length // BLOCK) + 1
    wanted = each * blocks * BLOCK * sequences
    most = min(MOST_CACHE, int(MEMORY_SHARE * free_memory("cpu")))
    return min(wanted, max(each * blocks * BLOCK, most))


def check_tested(codec: Codec) -> None:
    """Check that replacing the weights of a kind of model is tested in vLLM.

    Raises:
        InputError: it is not.
    """
    config = codec.config.get_text_config()
    for key, kind in (
        ("kv_lora_rank", "latent attention"),
        ("num_experts", "experts"),
        ("num_local_experts", "experts"),
        ("n_routed_experts", "experts"),
    ):
        if getattr(config, key, None):
            raise InputError(
                f"{codec.label}: swapped weights of models with {kind} are not tested in vLLM; use "
                "engine: transformers, or give the engine option unchecked=true"
            )
