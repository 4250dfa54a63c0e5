"""The names and shapes under which transformers saves a model's tensors.

Shards of a training run have the names of the modules. Since transformers 5, ``save_pretrained`` may
rename, split, join and transpose these tensors. This module runs the functions of transformers on tensors
without data that record the origins of their elements, which gives the exact result.

This module needs torch and transformers, and is imported only where names differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import transformers
from transformers import conversion_mapping, core_model_loading

from merganser.checkpoints.computed.rearranged import Rearrangement, SourceBlock
from merganser.tensors import TensorSpec


class UntraceableError(Exception):
    """An operation changes elements, or moves them in an unsupported way."""


@dataclass(frozen=True, slots=True)
class _Region:
    """A block of a traced tensor; ``start`` is the index of its first element in ``tensor``.

    See ``SourceBlock``.
    """

    tensor: str
    start: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    origin: tuple[int, ...]


Axes = tuple[tuple[int, ...], ...]
"""The factors of each axis's size; regions are blocks of the grid of all factors."""


class _Traced(torch.Tensor):
    """A tensor without data that records the origins of its elements."""

    axes: Axes
    regions: tuple[_Region, ...]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        operation = _OPERATIONS.get(func.overloadpacket.__name__)
        if operation is None:
            raise UntraceableError(str(func))
        return operation(*args, **(kwargs or {}))


def saved_names(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> Sequence[Mapping[str, Rearrangement | str]]:
    """Return the tensors that ``save_pretrained`` writes, by name, in terms of the modules' tensors.

    Args:
        config: the model's ``config.json``.
        specs: dtype and shape of its tensors, by their names in the modules.

    Returns:
        At most two mappings: for a model that was trained from scratch, and for one that was loaded
        from a checkpoint whose names have a prefix. Empty if transformers cannot give the names.
    """
    return _saved_names(json.dumps(config, sort_keys=True, default=str), tuple(specs.items()))


@lru_cache(maxsize=4)
def _saved_names(
    config: str, specs: tuple[tuple[str, TensorSpec], ...]
) -> list[Mapping[str, Rearrangement | str]]:
    """See :func:`saved_names`; cached, since the points of a sweep need the same result."""
    model = _skeleton(json.loads(config))
    results: list[Mapping[str, Rearrangement | str]] = []
    if model is None:
        return results
    with suppress(Exception):  # code of transformers may raise any exception
        transforms = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
        prefixes = core_model_loading.PrefixChange
        plain = [each for each in transforms if not isinstance(each, prefixes)]
        for chosen in (plain, transforms) if len(plain) < len(transforms) else (plain,):
            model._weight_conversions = chosen
            with suppress(Exception):
                results.append(_reverted(model, dict(specs)))
    return results


def _skeleton(config: Mapping[str, Any]) -> Any:
    """The model that a config describes, without weights; None where transformers has no such class."""
    try:
        settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(_decoded(config))
        model_class = getattr(transformers, config["architectures"][0])
        with torch.device("meta"):
            return model_class(settings)
    except Exception:  # code of transformers may raise any exception
        return None


def _decoded(value: Any) -> Any:
    """A config with infinities and NaNs, which transformers writes as mappings, as numbers."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _decoded(each) for key, each in value.items()}


def _reverted(model: Any, specs: Mapping[str, TensorSpec]) -> dict[str, Rearrangement | str]:
    traced: dict[str, torch.Tensor] = {
        name: traced_tensor(name, spec) for name, spec in specs.items()
    }
    saved = core_model_loading.revert_weight_conversion(model, traced)
    tensors: dict[str, Rearrangement | str] = {}
    for name, tensor in saved.items():
        tensors[name] = arrangement_of(tensor, specs)
    taken = sum(math.prod(r.size) for t in saved.values() for r in t.regions)
    if taken != sum(spec.numel for spec in specs.values()):
        raise UntraceableError("tensors that are left out or written twice")
    return tensors


def arrangement_of(tensor: _Traced, specs: Mapping[str, TensorSpec]) -> Rearrangement | str:
    """Return the blocks of a traced tensor, or the name of the tensor that it equals.

    Raises:
        UntraceableError: when its elements come from no tensor, or from tensors of several dtypes.
    """
    if not isinstance(tensor, _Traced) or not tensor.regions:
        raise UntraceableError("elements of no tensor")
    sources = [specs[region.tensor] for region in tensor.regions]
    if len({(spec.dtype, spec.narrow) for spec in sources}) != 1:
        raise UntraceableError("tensors of several dtypes")
    grid = _grid(tensor.axes)
    region = tensor.regions[0]
    shape = tuple(tensor.shape)
    if shape == sources[0].shape and region.size == grid and region.stride == _strides(grid):
        return region.tensor
    width = sources[0].dtype.itemsize
    blocks = (
        SourceBlock(r.tensor, r.start * width, r.size, r.stride, r.origin) for r in tensor.regions
    )
    return Rearrangement(replace(sources[0], shape=shape), grid, tuple(blocks))


# -- traced tensors --------------------------------------------------------------------------------


def traced_tensor(name: str, spec: TensorSpec) -> _Traced:
    """A traced tensor that consists of all elements of the tensor ``name``."""
    shape = tuple(spec.shape)
    return _made(
        tuple((n,) for n in shape),
        [_Region(name, 0, shape, _strides(shape), tuple(0 for _ in shape))],
    )


def _made(axes: Axes, regions: Sequence[_Region]) -> _Traced:
    shape = [math.prod(axis) for axis in axes]
    tensor: _Traced = torch.Tensor._make_wrapper_subclass(
        _Traced, shape, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    tensor.axes, tensor.regions = axes, tuple(regions)
    return tensor


def _grid(axes: Axes) -> tuple[int, ...]:
    return tuple(n for axis in axes for n in axis)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def _first(axes: Axes, dim: int) -> int:
    """The index in the grid of the first factor of axis ``dim``."""
    return sum(map(len, axes[:dim]))


def _split_size(regions: Sequence[_Region], k: int, inner: int) -> list[_Region]:
    """Regions of a grid whose size ``k`` is split into two factors, the second one ``inner``."""
    split: list[_Region] = []
    for region in regions:
        at, left, start = region.origin[k], region.size[k], region.start
        while left:
            whole = at % inner == 0 and left >= inner
            count = left // inner * inner if whole else min(left, inner - at % inner)
            size = (count // inner, inner) if whole else (1, count)
            step = region.stride[k]
            split.append(
                _Region(
                    region.tensor,
                    start,
                    (*region.size[:k], *size, *region.size[k + 1 :]),
                    (*region.stride[:k], step * inner, step, *region.stride[k + 1 :]),
                    (*region.origin[:k], at // inner, at % inner, *region.origin[k + 1 :]),
                )
            )
            at, left, start = at + count, left - count, start + count * step
    return split


def _cut(regions: Sequence[_Region], k: int, begin: int, end: int) -> list[_Region]:
    """The parts of regions from ``begin`` to ``end`` along axis ``k`` of the grid."""
    cut = []
    for region in regions:
        low = max(region.origin[k], begin)
        high = min(region.origin[k] + region.size[k], end)
        if low < high:
            start = region.start + (low - region.origin[k]) * region.stride[k]
            size = (*region.size[:k], high - low, *region.size[k + 1 :])
            origin = (*region.origin[:k], low - begin, *region.origin[k + 1 :])
            cut.append(replace(region, start=start, size=size, origin=origin))
    return cut


# -- operations ------------------------------------------------------------------------------------


def _same(tensor: _Traced, **_: Any) -> _Traced:
    return tensor


def _view(tensor: _Traced, shape: Sequence[int]) -> _Traced:
    total = math.prod(tensor.shape)
    known = math.prod(n for n in shape if n != -1)
    sizes = list(_grid(tensor.axes))
    regions = list(tensor.regions)
    axes: list[tuple[int, ...]] = []
    k = 0
    for target in (total // known if n == -1 else n for n in shape):
        first, left = k, target
        while left > 1:
            if k == len(sizes) or (left % sizes[k] and sizes[k] % left):
                raise UntraceableError(f"{list(tensor.shape)} as {list(shape)}")
            if left % sizes[k]:  # the axis ends within this factor
                regions = _split_size(regions, k, sizes[k] // left)
                sizes[k : k + 1] = [left, sizes[k] // left]
            left //= sizes[k]
            k += 1
        if k == first:  # an axis of one element
            sizes.insert(k, 1)
            regions = [_inserted(region, k) for region in regions]
            k += 1
        axes.append(tuple(sizes[first:k]))
    if any(n != 1 for n in sizes[k:]):
        raise UntraceableError(f"{list(tensor.shape)} as {list(shape)}")
    regions = [
        replace(r, size=r.size[:k], stride=r.stride[:k], origin=r.origin[:k]) for r in regions
    ]
    return _made(tuple(axes), regions)


def _inserted(region: _Region, k: int) -> _Region:
    return replace(
        region,
        size=(*region.size[:k], 1, *region.size[k:]),
        stride=(*region.stride[:k], 0, *region.stride[k:]),
        origin=(*region.origin[:k], 0, *region.origin[k:]),
    )


def _permute(tensor: _Traced, dims: Sequence[int]) -> _Traced:
    dims = [dim % len(tensor.axes) for dim in dims]
    order = [
        k
        for dim in dims
        for k in range(_first(tensor.axes, dim), _first(tensor.axes, dim) + len(tensor.axes[dim]))
    ]
    regions = [
        replace(
            region,
            size=tuple(region.size[k] for k in order),
            stride=tuple(region.stride[k] for k in order),
            origin=tuple(region.origin[k] for k in order),
        )
        for region in tensor.regions
    ]
    return _made(tuple(tensor.axes[dim] for dim in dims), regions)


def _transpose(tensor: _Traced, dim0: int, dim1: int) -> _Traced:
    dims = list(range(len(tensor.axes)))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permute(tensor, dims)


def _slice(
    tensor: _Traced, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> _Traced:
    dim %= len(tensor.axes)
    axis = tensor.axes[dim]
    length = math.prod(axis)
    begin, stop, _ = slice(start, end).indices(length)
    inner = math.prod(axis[1:])
    if step != 1 or begin % inner or stop % inner or begin >= stop:
        raise UntraceableError(f"elements {begin} to {stop} of {list(axis)}")
    regions = _cut(tensor.regions, _first(tensor.axes, dim), begin // inner, stop // inner)
    axes = (*tensor.axes[:dim], ((stop - begin) // inner, *axis[1:]), *tensor.axes[dim + 1 :])
    return _made(axes, regions)


def _split(tensor: _Traced, size: int | Sequence[int], dim: int = 0) -> list[_Traced]:
    length = tensor.shape[dim]
    sizes = [size] * -(-length // size) if isinstance(size, int) else size
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [
        _slice(tensor, dim, end - n, min(end, length)) for n, end in zip(sizes, ends, strict=True)
    ]


def _select(tensor: _Traced, dim: int, index: int) -> _Traced:
    index %= tensor.shape[dim]
    return _squeeze(_slice(tensor, dim, index, index + 1), dim)


def _unbind(tensor: _Traced, dim: int = 0) -> list[_Traced]:
    return [_select(tensor, dim, index) for index in range(tensor.shape[dim])]


def _squeeze(tensor: _Traced, dims: int | Sequence[int]) -> _Traced:
    gone = [dim % len(tensor.axes) for dim in ([dims] if isinstance(dims, int) else dims)]
    return _view(tensor, [n for k, n in enumerate(tensor.shape) if k not in gone or n != 1])


def _unsqueeze(tensor: _Traced, dim: int) -> _Traced:
    shape = list(tensor.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return _view(tensor, shape)


def _cat(tensors: Sequence[_Traced], dim: int = 0) -> _Traced:
    dim %= len(tensors[0].axes)
    inner = max((tensor.axes[dim][1:] for tensor in tensors), key=len)
    tensors = [_refined(tensor, dim, inner) for tensor in tensors]
    axes = tensors[0].axes
    if any(t.axes[:dim] != axes[:dim] or t.axes[dim + 1 :] != axes[dim + 1 :] for t in tensors):
        raise UntraceableError("tensors whose elements are grouped in several ways")
    at, k, regions = 0, _first(axes, dim), list[_Region]()
    for tensor in tensors:
        for region in tensor.regions:
            origin = (*region.origin[:k], region.origin[k] + at, *region.origin[k + 1 :])
            regions.append(replace(region, origin=origin))
        at += tensor.axes[dim][0]
    return _made((*axes[:dim], (at, *inner), *axes[dim + 1 :]), regions)


def _refined(tensor: _Traced, dim: int, inner: tuple[int, ...]) -> _Traced:
    """A tensor with an axis split into a first factor and the factors ``inner``."""
    if tensor.axes[dim][1:] == inner:
        return tensor
    shape = [*tensor.shape[:dim], -1, *inner, *tensor.shape[dim + 1 :]]
    split = _view(tensor, shape)
    count = 1 + len(inner)
    axis = tuple(n for part in split.axes[dim : dim + count] for n in part)
    return _made((*split.axes[:dim], axis, *split.axes[dim + count :]), split.regions)


def _new_zeros(tensor: _Traced, shape: Sequence[int], **_: Any) -> _Traced:
    return _made(tuple((n,) for n in shape), [])


def _index(tensor: _Traced, indices: Sequence[torch.Tensor | None]) -> _Traced:
    """Chosen elements along one axis."""
    [(dim, index)] = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    return _stack([_select(tensor, dim, place) for place in index.tolist()], dim)


def _stack(tensors: Sequence[_Traced], dim: int = 0) -> _Traced:
    return _cat([_unsqueeze(tensor, dim) for tensor in tensors], dim)


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "alias": _same,
    "cat": _cat,
    "clone": _same,
    "detach": _same,
    "index": _index,
    "new_zeros": _new_zeros,
    "permute": _permute,
    "select": _select,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unbind": _unbind,
    "unsqueeze": _unsqueeze,
    "view": _view,
    "_unsafe_view": _view,
}
"""Operations of PyTorch that move elements, by their names."""
