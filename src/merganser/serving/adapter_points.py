"""Points of LoRA experts as LoRA adapters: a weighted sum of adapted models is the base with one adapter.

The models are W + s_i B_i A_i. If their coefficients c_i in a point add up to 1, the point is
W + sum(c_i s_i B_i A_i): an adapter whose A has the rows of all A_i, and whose B has the columns of all
c_i s_i B_i. Its rank is the sum of the ranks. Engines that batch many adapters serve all points at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from merganser.checkpoints.computed import low_rank
from merganser.checkpoints.computed.adapter import CONFIG, WEIGHTS
from merganser.checkpoints.computed.low_rank import LowRank
from merganser.checkpoints.locators import Adapted, Folder
from merganser.errors import InputError, MerganserError
from merganser.planning import Plan
from merganser.planning.plan_data import Source, TensorJob
from merganser.release import config as configs
from merganser.serving.names import Served

SUM_ERROR = 1e-9
"""Maximum distance from 1 of the sum of coefficients, which rounding of weights can give."""


class NoAdapter(MerganserError):
    """A model is not the base with a LoRA adapter, exactly."""


@dataclass(frozen=True)
class AdapterFamily:
    """Models that are one base, each with a LoRA adapter.

    Attributes:
        plan: of one of them, for config and tokenizer.
        files: the base's files of weights.
        rank: the maximum rank of an adapter.
    """

    plan: Plan
    files: Sequence[Path]
    rank: int


def find_family(models: Sequence[Served]) -> AdapterFamily:
    """Return the family that models form.

    Raises:
        NoAdapter: they form none; the message is the reason.
    """
    [first, *others] = models
    family = AdapterFamily(first.plan, _files(first.plan), 1)
    return AdapterFamily(
        first.plan, family.files, max(rank_in(family, each.plan) for each in (first, *others))
    )


def has_adapters(plan: Plan) -> bool:
    """Whether some inputs of a plan are models with adapters."""
    return any(source.adapter is not None for source in plan.sources)


def rank_in(family: AdapterFamily, plan: Plan) -> int:
    """Return the rank of the adapter that turns a family's base into a plan's merge.

    Raises:
        NoAdapter: there is no such adapter; the message is the reason.
    """
    if _files(plan) != family.files:
        raise NoAdapter("the models have different bases")
    if _shell(plan) != _shell(family.plan):
        raise NoAdapter("the models differ in their config or tokenizer")
    if plan.arithmetic != "exact":
        raise NoAdapter("MergeKit's arithmetic rounds the models before it adds them")
    try:
        changed = [
            low_rank.ranks(source.checkpoint, source.adapter) if source.adapter else {}
            for source in plan.sources
        ]
    except InputError as error:
        raise NoAdapter(str(error)) from None
    rank = 1
    for job in plan.jobs:
        _coefficients(plan, job)
        if ranks := [changed[read.source][read.name] for read in _reads(job, changed)]:
            if job.role in ("embedding", "head"):
                raise NoAdapter(f"adapters change {job.name!r}, which has a vocabulary")
            rank = max(rank, sum(ranks))
    return rank


def write(plan: Plan, folder: Path, rank: int | None = None) -> bool:
    """Write the adapter that turns the base into a plan's merge, as PEFT does.

    Args:
        plan: the plan, of a family.
        folder: a folder, which is created.
        rank: the rank, to which smaller ones are padded with zeros; None for the largest of a tensor.

    Returns:
        Whether there is an adapter; without one the merge is the base.
    """
    changed = [
        low_rank.read(source.checkpoint, source.adapter) if source.adapter else {}
        for source in plan.sources
    ]
    pairs = {job.name: pair for job in plan.jobs if (pair := _pair(plan, job, changed)) is not None}
    if not pairs:
        return False
    rank = rank or max(len(a) for a, _ in pairs.values())
    tensors: dict[str, Any] = {}
    for name, (a, b) in pairs.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        more = rank - len(a)
        tensors[f"{prefix}.lora_A.weight"] = np.pad(a, ((0, more), (0, 0))).astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = np.pad(b, ((0, 0), (0, more))).astype(np.float32)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # the scales are in lora_B
        "target_modules": sorted(name.removesuffix(".weight") for name in pairs),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS[0], {"format": "pt"})
    return True


def _pair(
    plan: Plan, job: TensorJob, changed: Sequence[Mapping[str, LowRank]]
) -> tuple[Any, Any] | None:
    """The factors of a tensor's change, with all scales in the second; None if nothing changes it."""
    shares = dict(zip(job.reads, _coefficients(plan, job), strict=True))
    parts = [
        (shares[read], changed[read.source][read.name])
        for read in _reads(job, changed)
        if shares[read] != 0
    ]
    if not parts:
        return None
    a = np.concatenate([part.a for _, part in parts])
    b = np.concatenate([share * part.scale * part.b for share, part in parts], axis=1)
    return a, b


def _reads(job: TensorJob, changed: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The inputs of a tensor that adapters change."""
    return [read for read in job.reads if read.name in changed[read.source]]


def _coefficients(plan: Plan, job: TensorJob) -> list[float]:
    """The inputs' coefficients in a tensor.

    Raises:
        NoAdapter: it is no weighted sum, or the coefficients do not add up to 1.
    """
    if any(read.name != job.name for read in job.reads):
        raise NoAdapter(f"{job.name!r} has another name in an input")
    if job.method == "copy":
        return [1.0, *[0.0] * (len(job.reads) - 1)]
    shares = job.combination.shares if job.combination is not None else ()
    if len(shares) != len(job.reads) or not all(np.ndim(share) == 0 for share in shares):
        raise NoAdapter(f"{plan.method_name} is not linear in the models")
    coefficients = [float(share) for share in shares]
    if abs(sum(coefficients) - 1) > SUM_ERROR:
        raise NoAdapter(
            f"the coefficients of {job.name!r} add up to {sum(coefficients):.6g}, not to 1"
        )
    return coefficients


def _files(plan: Plan) -> list[Path]:
    """The files of weights of the base that all inputs share.

    Raises:
        NoAdapter: they have several bases, or one that is not in safetensors.
    """
    bases = {_base(source) for source in plan.sources}
    if len(bases) != 1:
        raise NoAdapter("the models have different bases")
    [base] = bases
    home = base if base.is_dir() else base.parent
    index = home / "model.safetensors.index.json"
    names = [file for file in plan.sources[0].checkpoint.files if file.endswith(".safetensors")]
    files = [home / name for name in names if name not in WEIGHTS]
    if not files or not all(file.is_file() for file in files):
        raise NoAdapter(f"{home}: is no folder of safetensors files")
    return [file.resolve() for file in [*files, *([index] if index.is_file() else [])]]


def _base(source: Source) -> Path:
    model = source.checkpoint
    locator = model.locator
    if isinstance(locator, Adapted):
        locator = locator.of
    if not isinstance(locator, Folder) or not model.format.startswith("safetensors"):
        raise NoAdapter(f"{source.reference}: is not stored as plain safetensors")
    return locator.path.resolve()


def _shell(plan: Plan) -> tuple[Any, ...]:
    """What determines config and tokenizer."""
    unused = ("dtype", "torch_dtype")
    config = {k: v for k, v in configs.edited_config(plan).items() if k not in unused}
    donor = plan.sources[plan.donor].checkpoint
    specs = [(job.name, job.spec.shape) for job in plan.jobs]
    if plan.tokenizer is not None or plan.layers or plan.vocabulary is not None:
        raise NoAdapter("the recipe changes the layers or the vocabulary")
    return config, donor.path, sorted(specs), plan.chat_template
