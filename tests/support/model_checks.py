"""Merge and stack tiny models of a transformers class, and compare with what must come out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import merganser
from merganser.architecture import infer
from merganser.checkpoints import open_checkpoint
from merganser.errors import MerganserError
from tiny import build, loaded, perturb, run, tiny_line

State = Mapping[str, torch.Tensor]
LINEAR, DENSITY = (0.75, 0.25), 0.5


@dataclasses.dataclass
class Outcome:
    """What became of a class; each an empty string where all is right.

    Attributes:
        not_built: why no tiny model could be built.
        refused: what Merganser says when it refuses to merge its models.
        not_stacked: what it says when it refuses to stack their layers, or that there are none.
        failed: what is wrong with what it made.
        ran: whether the models could be run.
    """

    not_built: str = ""
    refused: str = ""
    not_stacked: str = ""
    failed: str = ""
    ran: bool = False


class Wrong(Exception):
    """What is wrong with an output."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and progress bars of other libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        yield


def check_class(class_name: str, model_type: str, folder: Path) -> Outcome:
    """Build three models of a class, merge them by ``linear`` and ``ties``, stack one, load what
    comes out, compare every tensor, and run it."""
    outcome = Outcome()
    with quiet():
        try:
            model_class = getattr(transformers, class_name)
            paths = [folder / name for name in "abc"]
            model, info, inputs = build(model_class, model_type, paths[0])
            first = copy.deepcopy(model)
            perturb(model, 0.03)
            model.save_pretrained(paths[1])
            second = loaded(model_class, paths[1])[0].state_dict()  # what its files hold
            perturb(model, 0.03)
            model.save_pretrained(paths[2])
        except Exception as error:
            outcome.not_built = tiny_line(error)
            return outcome
        with contextlib.suppress(Exception):
            outcome.ran = inputs is not None and bool(torch.isfinite(run(first, inputs)).all())
        inputs = inputs if outcome.ran else None
        try:
            _check_linear(model_class, first, second, paths, folder, info, inputs)
            _check_ties(paths, folder)
        except MerganserError as error:
            outcome.refused = _message(error, folder)
            return outcome
        except Wrong as error:
            outcome.failed = f"merge: {error}"
        try:
            outcome.not_stacked = _check_stack(model_class, first, paths[0], folder, info, inputs)
        except MerganserError as error:
            outcome.not_stacked = _message(error, folder)
        except Wrong as error:
            outcome.failed = "; ".join(filter(None, [outcome.failed, f"stack: {error}"]))
    return outcome


def _message(error: Exception, folder: Path) -> str:
    return tiny_line(error).replace(f"{folder}/", "")


def _same(found: State, expected: State) -> None:
    """All tensors must be the expected ones, rounded once."""
    if found.keys() != expected.keys():
        names = sorted(found.keys() ^ expected.keys())
        raise Wrong(f"{len(names)} tensors are only in one of both: {', '.join(names[:3])}")
    for name, tensor in found.items():
        other = expected[name]
        if tensor.shape != other.shape:
            raise Wrong(f"{name} is {list(tensor.shape)}, not {list(other.shape)}")
        if not tensor.is_floating_point():
            equal = torch.equal(tensor, other)
        else:
            equal = torch.allclose(
                tensor.double(), other.double(), rtol=2.0**-23, atol=1e-30, equal_nan=True
            )
        if not equal:
            raise Wrong(f"{name} has other numbers")


def _loads(model_class: Any, folder: Path, expected: dict[str, list[str]]) -> Any:
    try:
        model, info = loaded(model_class, folder)
    except Exception as error:
        raise Wrong(f"does not load ({tiny_line(error)})") from None
    if info != expected:
        kinds = {k: v[:3] for k, v in info.items() if v != expected.get(k)}
        raise Wrong(f"loads with {kinds or 'other notes'}")
    return model


def _check_linear(
    model_class: Any,
    first: Any,
    second: State,
    paths: Sequence[Path],
    folder: Path,
    info: dict[str, list[str]],
    inputs: Mapping[str, Any] | None,
) -> None:
    models = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(paths, LINEAR, strict=False)
    ]
    merganser.merge({"merge_method": "linear", "models": models}, folder / "linear")
    merged = _loads(model_class, folder / "linear", info)
    x, y = first.state_dict(), second
    mean = {
        name: (LINEAR[0] * x[name].double() + LINEAR[1] * y[name].double()).float()
        if x[name].is_floating_point()
        else x[name]
        for name in x
    }
    _same(merged.state_dict(), mean)
    if inputs is not None:
        reference = copy.deepcopy(first)
        reference.load_state_dict(mean)
        if not torch.allclose(run(merged, inputs), run(reference, inputs), atol=1e-5):
            raise Wrong("computes something else than a model with the mean of the weights")


def _check_ties(paths: Sequence[Path], folder: Path) -> None:
    recipe = {
        "merge_method": "ties",
        "base_model": str(paths[0]),
        "models": [
            {"model": str(path), "parameters": {"weight": 1, "density": DENSITY}}
            for path in paths[1:]
        ],
    }
    merganser.merge(recipe, folder / "ties")
    base, *others = (_tensors(path) for path in paths)
    expected = {
        name: _ties(tensor, [other[name] for other in others])
        if tensor.is_floating_point()
        else tensor
        for name, tensor in base.items()
    }
    _same(_tensors(folder / "ties"), expected)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()
    }


def _ties(base: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """TIES in float64, from its definition."""
    trimmed = []
    for other in others:
        delta = other.double() - base.double()
        order = delta.abs().float().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(delta.numel(), dtype=torch.bool)
        mask[order[: max(1, int(DENSITY * delta.numel()))]] = True
        trimmed.append(torch.where(mask.view(delta.shape), delta, 0.0))
    deltas = torch.stack(trimmed)
    positive = deltas.sum(0) >= 0
    agree = (deltas != 0) & ((deltas > 0) == positive)
    mean = torch.where(agree, deltas, 0.0).sum(0) / agree.sum(0).clamp(min=1)
    return (base.double() + mean).to(base.dtype)


def _check_stack(
    model_class: Any,
    model: Any,
    path: Path,
    folder: Path,
    info: dict[str, list[str]],
    inputs: Mapping[str, Any] | None,
) -> str:
    """Stack a model's first two layers and all but its first; why not, where it cannot be."""
    checkpoint = open_checkpoint(path)
    shape = infer(checkpoint.specs, checkpoint.config)
    module = shape.main
    if module.depth < 3:
        return f"{module.depth} layers" if module.depth else "no layers"
    order = [0, 1, *range(1, module.depth)]
    slices = [
        {"sources": [{"model": str(path), "layer_range": [first, last]}]}
        for first, last in ((0, 2), (1, module.depth))
    ]
    form: dict[str, Any] = {"slices": slices}
    if len(shape.modules) > 1:
        form = {"modules": {module.name: form}}
    merganser.merge({"merge_method": "passthrough", **form}, folder / "stack")
    stacked = _loads(model_class, folder / "stack", info)
    reference = _restacked(model, stacked, order)
    _same(stacked.state_dict(), _extended(reference.state_dict(), stacked.state_dict(), order))
    if inputs is None:
        return ""
    found = run(stacked, inputs)
    if not torch.isfinite(found).all():
        raise Wrong("does not compute finite numbers")
    for name, part in reference.named_modules():
        _move(part, stacked.get_submodule(name))
    with contextlib.suppress(
        RuntimeError, IndexError, KeyError, AttributeError, TypeError, ValueError
    ):
        reference.load_state_dict(stacked.state_dict())
        expected = run(reference, inputs)
        if expected.shape == found.shape and not torch.allclose(found, expected, atol=1e-5):
            raise Wrong("computes something else than its layers in that order")
    return ""


def _move(part: Any, there: Any) -> None:
    """Give a module its new config, and the numbers that it computes from its position in the
    stack. Its kind stays: a string, a flag, or that it has such a number at all."""
    for name, value in vars(there).items():
        old = vars(part).get(name)
        number = type(value) in (int, float, set) and type(old) is type(value)
        if name == "config" or number:
            setattr(part, name, value)


def _restacked(model: Any, stacked: Any, order: Sequence[int]) -> Any:
    """A copy of a model whose lists of layers that are longer in the stacked model are in order."""
    reference = copy.deepcopy(model)
    lengths = {n: len(m) for n, m in stacked.named_modules() if isinstance(m, nn.ModuleList)}
    longer = [
        (name, layers)
        for name, layers in model.named_modules()
        if isinstance(layers, nn.ModuleList)
        and len(layers) == max(order) + 1
        and lengths.get(name) == len(order)
    ]
    if not longer:
        raise Wrong("no list of layers is longer than before")
    for name, layers in longer:
        parent, _, last = name.rpartition(".")
        moved = nn.ModuleList(copy.deepcopy(layers[number]) for number in order)
        setattr(reference.get_submodule(parent), last, moved)
    return reference


def _extended(state: State, stacked: State, order: Sequence[int]) -> State:
    """The expected tensors, those included that hold a block for every layer."""
    depth = max(order) + 1
    expected = dict(state)
    for name, tensor in state.items():
        wanted = stacked[name].shape if name in stacked else tensor.shape
        axes = [i for i, (a, b) in enumerate(zip(tensor.shape, wanted, strict=False)) if a != b]
        if len(axes) == 1 and tensor.shape[axes[0]] % depth == 0:
            blocks = tensor.chunk(depth, dim=axes[0])
            expected[name] = torch.cat([blocks[number] for number in order], dim=axes[0])
    return expected


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(outcome)))
    return data
