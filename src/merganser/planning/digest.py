"""The digest of a plan, over everything that determines the output's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from merganser.methods import Method
from merganser.planning.plan_data import (
    Arithmetic,
    Rounding,
    Shard,
    Source,
    TensorJob,
    TokenizerEdit,
)

FORMAT = 1
"""Version of the digest, incremented when equal recipes and inputs give another plan or other bytes."""


def plan_digest(
    sources: Sequence[Source],
    arithmetic: Arithmetic,
    rounding: Rounding,
    seed: int,
    jobs: Sequence[TensorJob],
    shards: Sequence[Shard],
    tokenizer: TokenizerEdit | None,
    method: Method,
    chat_template: str | None,
) -> str:
    """The plan digest of these parts, as hexadecimal digits."""
    facts = {
        "format": FORMAT,
        "inputs": [[s.reference.text, s.checkpoint.header_digest] for s in sources],
        "arithmetic": arithmetic,
        "rounding": rounding,
        "seed": seed if rounding == "stochastic" else 0,
        "jobs": [
            [
                job.name,
                job.spec.dtype.name,
                job.spec.shape,
                [[r.source, r.name] for r in job.reads],
                job.method,
                job.numbers,
                job.cast and job.cast.name,
            ]
            for job in jobs
        ],
        "shards": [hashlib.sha256(shard.header).hexdigest() for shard in shards],
    }
    if tokenizer is not None:
        output = tokenizer.output
        edits = [[token.entry() for token in output.new], sorted(output.dropped)]
        facts["tokenizer"] = [output.start.label, *edits, sorted(tokenizer.moved.items())]
    if method.origin is not None:
        facts["method"] = [method.name, method.origin.digest]
    if chat_template is not None:
        facts["chat_template"] = chat_template
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
