"""Make the live model for a study's engine."""

from __future__ import annotations

import os

from merganser.evaluation.engines import AnyOptions, TransformersOptions, VllmOptions
from merganser.study.live_model import Computing, Live, LiveModel
from merganser.study.served_model import ServedModel
from merganser.study.vllm_model import VllmModel

TOKEN = "OPENAI_API_KEY"
"""Environment variable with the bearer token for a server."""


def make_live(
    options: AnyOptions,
    *,
    device: str = "auto",
    dtype: Computing = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> Live:
    """Return a live model in the engine that the options belong to.

    Args:
        options: options of the engine.
        device, dtype, threads, batch_size: as for :class:`merganser.LiveModel`; ignored for a server.

    Raises:
        MerganserError: the engine is not installed, or does not support the device.
    """
    if isinstance(options, TransformersOptions):
        return LiveModel(
            device=device, dtype=dtype, threads=threads, batch_size=batch_size, options=options
        )
    if isinstance(options, VllmOptions):
        return VllmModel(
            device=device, dtype=dtype, threads=threads, batch_size=batch_size, options=options
        )
    return ServedModel(options, token=os.environ.get(TOKEN), threads=threads)
