"""The live model of the engine that a study asks for."""

from __future__ import annotations

import os

from merganser.evaluation.engines import AnyOptions, TransformersOptions, VllmOptions
from merganser.study.live_model import Computing, Live, LiveModel
from merganser.study.served_model import ServedModel
from merganser.study.vllm_model import VllmModel

TOKEN = "OPENAI_API_KEY"
"""The variable whose value is sent to a server, if it is set."""


def make_live(
    options: AnyOptions,
    *,
    device: str = "auto",
    dtype: Computing = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> Live:
    """A model in the engine that options are of.

    Args:
        options: of the engine.
        device, dtype, threads, batch_size: as for :class:`merganser.LiveModel`; a server has its own.

    Raises:
        MerganserError: the engine is not installed, or cannot compute there.
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
