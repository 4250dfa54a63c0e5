"""Match the tensor names of all inputs.

A published model and the shards of a training run name the same tensors differently, because
transformers saves a model under other names than its modules', and sometimes in other shapes.
The evidence, in this order: equal names, except for wrappers; the two ways to store experts; the
conversion of transformers, if installed; layer numbers and shapes with the ends of names. Each
applies to all tensors or to none. The output has the published names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from merganser.architecture import infer, keys, vocabulary_sizes
from merganser.checkpoints import Checkpoint
from merganser.checkpoints.computed.rearranged import Rearrangement, SourceBlock, rearranged
from merganser.checkpoints.training.run_folders import holds_shards
from merganser.errors import InputError
from merganser.modules import sections
from merganser.planning.heads import same_bytes
from merganser.tensors import TensorSpec

SHOWN = 2
"""Maximum number of names in a note."""

_PERMUTED = {"wq", "wk"}
"""Names of projections in the model authors' own checkpoints, whose rows may be ordered
differently than in transformers; shapes do not reveal it."""

NUMBER = "\0"
"""Placeholder for a number in patterns of names."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=\.)\d+$|^\d+(?=\.)")

Numbered = dict[tuple[int, ...], tuple[int, ...]]
"""The shapes of tensors whose names differ only in numbers, by these numbers."""


def named_alike(
    checkpoints: Sequence[Checkpoint], donor: int, *, refuse: bool
) -> tuple[Checkpoint, ...]:
    """Rename checkpoints to common tensor names.

    Args:
        checkpoints: the checkpoints of all inputs.
        donor: index of the checkpoint whose names the output takes; if it has training names, the
            output takes the published names of another input that has them.
        refuse: whether ambiguous names are an error.

    Raises:
        InputError: when tensors with different names may correspond, without proof.
    """
    target = _published(checkpoints[donor], checkpoints)
    named = [
        target if index == donor else _named_like(checkpoint, target, refuse)
        for index, checkpoint in enumerate(checkpoints)
    ]
    return tuple(_without_copies(checkpoint, named) for checkpoint in named)


def _published(donor: Checkpoint, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The donor under the names of the first published model that matches it, or unchanged."""
    for other in checkpoints:
        if other is donor or other.specs.keys() == donor.specs.keys():
            continue
        renamed = None
        if _trained(donor) and not _trained(other):
            renamed = _settled(donor, other)
        elif _differ(other, donor) and _settled(other, donor) is None:
            renamed = _as_saved(donor, other)
        if renamed is not None:
            return _with_names_of(renamed, other)
    return donor


def _trained(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint consists of the shards of a training run."""
    return checkpoint.home is not None and holds_shards(checkpoint.home)


def _with_names_of(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A checkpoint with another's wrapper prefixes; unchanged if the other lacks one of its tensors
    that is not a head."""
    others, places = _names(other), infer(checkpoint.specs, checkpoint.config).places
    names = {name: others.get(key) for name, key in keys(checkpoint.specs).items()}
    if any(new is None and places[name].role != "head" for name, new in names.items()):
        return checkpoint
    renamed: dict[str, Rearrangement | str] = {new or name: name for name, new in names.items()}
    if all(name == new for new, name in renamed.items()) or len(renamed) < len(names):
        return checkpoint
    return rearranged(checkpoint, renamed, [])


def _named_like(checkpoint: Checkpoint, target: Checkpoint, refuse: bool) -> Checkpoint:
    """A checkpoint under the target's names; unchanged without evidence.

    Raises:
        InputError: with ``refuse``, when tensors with different names may correspond.
    """
    settled = _settled(checkpoint, target) or checkpoint
    if refuse and _differ(settled, target):
        _check_second_names(settled, target)
    return _turned(settled, target)


def _settled(checkpoint: Checkpoint, target: Checkpoint) -> Checkpoint | None:
    """A checkpoint under the target's names; None without evidence."""
    if checkpoint.specs.keys() == target.specs.keys():
        return checkpoint
    from merganser.checkpoints.computed.moe import named_like as with_experts_like

    if not _differ(checkpoint, target):
        return with_experts_like(checkpoint, target)
    try:
        named = with_experts_like(checkpoint, target)
    except InputError:
        if (saved := _as_saved(checkpoint, target)) is not None:
            return saved
        raise
    if not _differ(named, target):
        return named
    return _as_saved(checkpoint, target) or _by_shape(named, target)


def _without_copies(checkpoint: Checkpoint, named: Sequence[Checkpoint]) -> Checkpoint:
    """A checkpoint without duplicates: a state dict stores a tensor that two modules share twice, a
    published model of the class stores it once."""
    names = keys(checkpoint.specs)
    others = [
        set(keys(other.specs).values())
        for other in named
        if other.specs.keys() != checkpoint.specs.keys() and _same_class(checkpoint, other)
    ]
    lacking = {name: other for name, key in names.items() for other in others if key not in other}
    if not lacking:
        return checkpoint
    places = infer(checkpoint.specs, checkpoint.config).places
    stated = {section.get("tie_word_embeddings") for section in sections(checkpoint.config)}
    untied = False in stated and True not in stated
    sizes = vocabulary_sizes(checkpoint.specs, checkpoint.config)
    # Shared tensors have one row per token: embeddings, heads and their biases. Other tensors
    # may be equal by chance, such as norms of ones.
    outside = [
        name
        for name in names
        if places[name].layer is None and not sizes.isdisjoint(checkpoint.specs[name].shape[:1])
    ]
    copies: dict[str, str] = {}
    for name in outside:
        if name not in lacking or (untied and places[name].role == "head"):
            continue
        originals = (
            copy for copy in outside if names[copy] in lacking[name] and _common_end(copy, name)
        )
        original = next((copy for copy in originals if same_bytes(checkpoint, name, copy)), None)
        if original is not None:
            copies[name] = original
    if not copies:
        return checkpoint
    shown = ", ".join(f"{name} of {original}" for name, original in list(copies.items())[:SHOWN])
    more = f" and {len(copies) - SHOWN} more" if len(copies) > SHOWN else ""
    tensors = {name: name for name in checkpoint.specs if name not in copies}
    note = f"{checkpoint.label}: copies of tensors that other models have once are left out: {shown}{more}"
    return rearranged(checkpoint, tensors, [note])


def _differ(checkpoint: Checkpoint, target: Checkpoint) -> bool:
    """Whether each of two checkpoints has tensors that the other lacks."""
    if checkpoint.specs.keys() == target.specs.keys():
        return False
    return all(_unmatched(checkpoint, target))


def _unmatched(checkpoint: Checkpoint, target: Checkpoint) -> tuple[list[str], list[str]]:
    """The tensors that only one of two checkpoints has, under its names."""
    names, others = _names(checkpoint), _names(target)
    return (
        [name for key, name in names.items() if key not in others],
        [name for key, name in others.items() if key not in names],
    )


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    """A checkpoint's tensor names by key."""
    return {key: name for name, key in keys(checkpoint.specs).items()}


def _same_class(checkpoint: Checkpoint, target: Checkpoint) -> bool:
    return _same("model_type", checkpoint, target) and _same("architectures", checkpoint, target)


def _same(key: str, checkpoint: Checkpoint, target: Checkpoint) -> bool:
    """Whether both configs have the same value for a key."""
    stated = checkpoint.config.get(key)
    return stated is not None and stated == target.config.get(key)


# -- the conversion of transformers ----------------------------------------------------------------


def _as_saved(checkpoint: Checkpoint, target: Checkpoint) -> Checkpoint | None:
    """A checkpoint under the names and in the shapes that transformers saves, if the target has
    these."""
    if not _same("model_type", checkpoint, target):
        return None
    try:
        from merganser.checkpoints.saved_names import saved_names
    except ImportError:  # not installed, or a release that saves the modules' names
        return None
    for tensors in saved_names(_config(checkpoint, target), checkpoint.specs):
        if all(name == tensor for name, tensor in tensors.items()):
            continue
        saved = rearranged(checkpoint, tensors, [])
        if _differ(saved, target) or not _fit(saved, target):
            continue
        pairs = [
            (tensor if isinstance(tensor, str) else tensor.blocks[0].tensor, name)
            for name, tensor in tensors.items()
        ]
        return _noted(checkpoint, target, tensors, pairs, "as transformers saves them")
    return None


def _fit(checkpoint: Checkpoint, target: Checkpoint) -> bool:
    """Whether tensors of equal names have equal shapes, except for the number of tokens."""
    names, others = _names(checkpoint), _names(target)
    places = infer(checkpoint.specs, checkpoint.config).places
    for key in names.keys() & others.keys():
        first = 1 if places[names[key]].role in ("embedding", "head") else 0
        shapes = checkpoint.specs[names[key]].shape, target.specs[others[key]].shape
        if shapes[0][first:] != shapes[1][first:]:
            return False
    return True


def _config(checkpoint: Checkpoint, target: Checkpoint) -> Mapping[str, Any]:
    return checkpoint.config if checkpoint.config.get("architectures") else target.config


def _noted(
    checkpoint: Checkpoint,
    target: Checkpoint,
    tensors: Mapping[str, Rearrangement | str],
    pairs: Collection[tuple[str, str]],
    evidence: str,
) -> Checkpoint:
    patterns = [(_NUMBER.sub("*", old), _NUMBER.sub("*", new)) for old, new in pairs if old != new]
    renamed = [
        text.replace(NUMBER, "*")
        for text in dict.fromkeys(f"{old} as {new}" for old, new in patterns)
    ]
    shown = ", ".join(renamed[:SHOWN])
    more = f" and {len(renamed) - SHOWN} more" if renamed[SHOWN:] else ""
    note = (
        f"{checkpoint.label}: its tensors have the names used in training; they are renamed to those that "
        f"{target.label} has, {evidence}: {shown}{more}"
    )
    return rearranged(checkpoint, tensors, [note])


# -- layer numbers, shapes and the ends of names ---------------------------------------------------


def _by_shape(checkpoint: Checkpoint, target: Checkpoint) -> Checkpoint | None:
    """A checkpoint under the target's names if each unmatched tensor has exactly one candidate."""
    if not _same("model_type", checkpoint, target) or not _same(
        "architectures", checkpoint, target
    ):
        return None
    patterns, others = (
        _patterns(names, model.specs)
        for names, model in zip(_unmatched(checkpoint, target), (checkpoint, target), strict=True)
    )
    if any(NUMBER in name for name in (*checkpoint.specs, *target.specs)):
        return None
    heads = _heads(checkpoint), _heads(target)
    renamed: dict[str, str] = {}
    for pattern, shapes in patterns.items():
        candidates = [
            other
            for other, theirs in others.items()
            if theirs == shapes and _may_be(pattern, other, heads, len(next(iter(shapes.values()))))
        ]
        nearest = max((_common_end(pattern, other) for other in candidates), default=0)
        candidates = [other for other in candidates if _common_end(pattern, other) == nearest]
        if len(candidates) != 1 or candidates[0] in renamed.values():
            return None
        renamed[pattern] = candidates[0]
    if len(renamed) != len(others):
        return None
    tensors: dict[str, Rearrangement | str] = {}
    for name in checkpoint.specs:
        pattern = _NUMBER.sub(NUMBER, name)
        new = renamed.get(pattern, pattern)
        for number in _NUMBER.findall(name):
            new = new.replace(NUMBER, number, 1)
        tensors[new] = name
    pairs = list(renamed.items())
    return _noted(checkpoint, target, tensors, pairs, "by their shapes and the ends of their names")


def _patterns(names: Collection[str], specs: Mapping[str, TensorSpec]) -> dict[str, Numbered]:
    """Groups of tensors whose names differ only in numbers."""
    patterns: dict[str, Numbered] = {}
    for name in names:
        numbers = tuple(map(int, _NUMBER.findall(name)))
        patterns.setdefault(_NUMBER.sub(NUMBER, name), {})[numbers] = tuple(specs[name].shape)
    return patterns


def _heads(checkpoint: Checkpoint) -> set[str]:
    places = infer(checkpoint.specs, checkpoint.config).places
    return {name for name, place in places.items() if place.role == "head"}


def _may_be(one: str, other: str, heads: tuple[set[str], set[str]], axes: int) -> bool:
    """Whether two names, without numbers, may denote one tensor: both are heads, or both end in
    the same module. A vector that is not a bias may have any name."""
    if one in heads[0] or other in heads[1]:
        return one in heads[0] and other in heads[1]
    words, others = one.split("."), other.split(".")
    if not _PERMUTED.isdisjoint((*words, *others)):
        return False
    if _common_end(one, other) >= (2 if words[-1] in ("weight", "bias") else 1):
        return True
    return axes == 1 and "bias" not in (words[-1], others[-1])


def _common_end(one: str, other: str) -> int:
    """Number of words that two names share at their ends."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count


def _check_second_names(checkpoint: Checkpoint, target: Checkpoint) -> None:
    """Raise if two models of a class have unmatched tensors under different names."""
    if not _same("model_type", checkpoint, target) or not _same(
        "architectures", checkpoint, target
    ):
        return
    patterns, others = (
        _patterns(names, model.specs)
        for names, model in zip(_unmatched(checkpoint, target), (checkpoint, target), strict=True)
    )
    for pattern, shapes in patterns.items():
        for other, theirs in others.items():
            if shapes == theirs:
                one, second = (name.replace(NUMBER, "*") for name in (pattern, other))
                raise InputError(
                    f"{checkpoint.label}: its {one!r} may be the {second!r} of {target.label} under the "
                    "name used in training, but nothing proves it; install transformers 5 or newer, or save "
                    "both models with save_pretrained of one release"
                )


# -- transposed experts ----------------------------------------------------------------------------


def _turned(checkpoint: Checkpoint, target: Checkpoint) -> Checkpoint:
    """A checkpoint with stacks of experts transposed to match the target; transformers 4 and 5
    differ in some."""
    names, others = keys(checkpoint.specs), _names(target)
    turned: dict[str, Rearrangement | str] = {name: name for name in checkpoint.specs}
    for name in _experts(checkpoint):
        counterpart = others.get(names[name])
        spec = checkpoint.specs[name]
        count, rows, columns = spec.shape
        if (
            counterpart is not None
            and target.specs[counterpart].shape == (count, columns, rows) != spec.shape
        ):
            shape = count, columns, rows
            stride = rows * columns, 1, columns
            block = SourceBlock(name, 0, shape, stride, (0, 0, 0))
            turned[name] = Rearrangement(
                TensorSpec(spec.dtype, shape, spec.narrow), shape, (block,)
            )
    if all(isinstance(tensor, str) for tensor in turned.values()):
        return checkpoint
    note = f"{checkpoint.label}: its experts are transposed, as {target.label} has them"
    return rearranged(checkpoint, turned, [note])


def _experts(checkpoint: Checkpoint) -> Iterator[str]:
    for name, spec in checkpoint.specs.items():
        if len(spec.shape) == 3 and re.search(r"\.experts\.\w+$", name):
            yield name
