"""Convert locators to JSON and back: a table in which a locator refers to others by their indices."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.checkpoints import locators
from merganser.checkpoints.computed.rearranged import Rearrangement, SourceBlock
from merganser.checkpoints.locators import Locator, TensorAt
from merganser.tensors import BY_NAME, TensorSpec

if TYPE_CHECKING:
    from merganser.checkpoints.computed.derived import Array
    from merganser.checkpoints.computed.vocabulary_rows import RowMap

MAX_ROWS = 1 << 25
"""Maximum number of a vocabulary's rows times the number of donors."""

Encode = Callable[[Path], str]
Decode = Callable[[str], Path]


class Table:
    """A table of locators as JSON, in which equal locators share an entry.

    Args:
        path: converts a path to its JSON form.
    """

    def __init__(self, path: Encode) -> None:
        self.entries: list[dict[str, Any]] = []
        self._path = path
        self._places: dict[int, tuple[Any, int]] = {}

    def place(self, locator: Locator) -> int:
        """Return the index of a locator in the table, after adding it if it is missing."""
        if id(locator) not in self._places:
            entry = self._entry(locator)
            if entry not in self.entries:
                self.entries.append(entry)
            self._places[id(locator)] = locator, self.entries.index(entry)
        return self._places[id(locator)][1]

    def _entry(self, at: Locator) -> dict[str, Any]:
        if isinstance(at, locators.Folder):
            path = self._path(at.path)
            return {"kind": "folder", "path": path, "label": at.label, "weights": at.weights}
        if isinstance(at, locators.Given):
            return {"kind": "given", "name": at.name}
        of = self.place(at.of)
        if isinstance(at, locators.WithCompanions):
            return {"kind": "with_companions", "of": of, "folder": self._path(at.folder)}
        if isinstance(at, locators.Dequantised):
            return {"kind": "dequantised", "of": of}
        if isinstance(at, locators.Adapted):
            return {"kind": "adapted", "of": of, "folder": self._path(at.folder)}
        if isinstance(at, locators.ExpertsNamed):
            return {"kind": "experts_named", "of": of, "like": self.place(at.like)}
        if isinstance(at, locators.Rearranged):
            tensors = {name: _rearrangement(tensor) for name, tensor in at.tensors}
            return {"kind": "rearranged", "of": of, "tensors": tensors, "notes": list(at.notes)}
        if isinstance(at, locators.Gathered):
            gathered = {
                each.name: {"donors": [self._tensor(d) for d in each.donors], "own": each.own}
                for each in at.tensors
            }
            rows = {name: _array(getattr(at.rows, name)) for name in ("origin", "row", "means")}
            return {"kind": "gathered", "of": of, "tensors": gathered, "rows": rows}
        joined = {
            each.name: {
                "donors": [self._tensor(donor) for donor in each.donors],
                "axes": list(each.axes),
                "depths": list(each.depths),
                "layers": [list(pair) for pair in each.layers],
            }
            for each in at.tensors
        }
        return {"kind": "joined", "of": of, "tensors": joined}

    def _tensor(self, tensor: TensorAt | None) -> list[Any] | None:
        return None if tensor is None else [self.place(tensor.checkpoint), tensor.name]


def read_table(entries: Sequence[Mapping[str, Any]], path: Decode) -> list[Locator]:
    """Return the locators of a table, in its order.

    Args:
        entries: the entries of a :class:`Table`.
        path: converts the JSON form of a path to the path.

    Raises:
        ValueError, TypeError, KeyError, IndexError: when the table is invalid.
    """
    read: list[Locator] = []
    for entry in entries:
        read.append(_read(entry, read, path))
    return read


def _read(entry: Mapping[str, Any], read: Sequence[Locator], path: Decode) -> Locator:
    kind = entry["kind"]
    if kind == "folder":
        weights = entry["weights"]
        if weights not in ("auto", "shards", "huggingface"):
            raise ValueError(f"weights {weights!r}")
        return locators.Folder(path(entry["path"]), _text(entry["label"]), weights)
    if kind == "given":
        return locators.Given(_text(entry["name"]))
    of = _at(entry["of"], read)
    if kind == "with_companions":
        return locators.WithCompanions(of, path(entry["folder"]))
    if kind == "dequantised":
        return locators.Dequantised(of)
    if kind == "adapted":
        return locators.Adapted(of, path(entry["folder"]))
    if kind == "experts_named":
        return locators.ExpertsNamed(of, _at(entry["like"], read))
    if kind == "rearranged":
        tensors = tuple((name, _as_rearrangement(t)) for name, t in entry["tensors"].items())
        return locators.Rearranged(of, tensors, tuple(map(_text, entry["notes"])))

    def tensor(value: Any) -> TensorAt:
        place, name = value
        return TensorAt(_at(place, read), _text(name))

    if kind == "gathered":
        from merganser.checkpoints.computed.vocabulary_rows import RowMap

        gathered = []
        for name, each in entry["tensors"].items():
            donors = tuple(None if value is None else tensor(value) for value in each["donors"])
            if not 0 <= _number(each["own"]) < len(donors):
                raise ValueError("a tensor stands in for no donor")
            gathered.append(locators.GatheredRows(name, donors, each["own"]))
        rows = RowMap(*(_as_array(entry["rows"][name]) for name in ("origin", "row", "means")))
        _check_rows(rows, min((len(each.donors) for each in gathered), default=0))
        return locators.Gathered(of, tuple(gathered), rows)
    if kind == "joined":
        joined = []
        for name, each in entry["tensors"].items():
            donor_tensors = tuple(tensor(value) for value in each["donors"])
            axes, depths = (tuple(map(_number, each[key])) for key in ("axes", "depths"))
            layers = tuple((_number(donor), _number(layer)) for donor, layer in each["layers"])
            fits = len(donor_tensors) == len(axes) == len(depths) and all(depths)
            if not fits or any(d >= len(donor_tensors) or n >= depths[d] for d, n in layers):
                raise ValueError("layers of no donor")
            joined.append(locators.JoinedLayers(name, donor_tensors, axes, depths, layers))
        return locators.Joined(of, tuple(joined))
    raise ValueError(f"kind {str(kind)[:40]!r}")


def _rearrangement(tensor: str | Rearrangement) -> str | dict[str, Any]:
    if isinstance(tensor, str):
        return tensor
    return {
        "dtype": tensor.spec.dtype.name,
        "shape": list(tensor.spec.shape),
        "narrow": tensor.spec.narrow and tensor.spec.narrow.name,
        "grid": list(tensor.grid),
        "blocks": [
            [b.tensor, b.offset, list(b.size), list(b.stride), list(b.origin)]
            for b in tensor.blocks
        ],
    }


def _as_rearrangement(value: Any) -> str | Rearrangement:
    if isinstance(value, str):
        return value
    narrow = value["narrow"]
    spec = TensorSpec(
        BY_NAME[value["dtype"]], _numbers(value["shape"]), BY_NAME[narrow] if narrow else None
    )
    blocks = tuple(
        SourceBlock(
            _text(name), _number(offset), _numbers(size), _numbers(stride), _numbers(origin)
        )
        for name, offset, size, stride, origin in value["blocks"]
    )
    grid = _numbers(value["grid"])
    for block in blocks:
        if not len(block.size) == len(block.stride) == len(block.origin) == len(grid):
            raise ValueError("a block of another grid")
        ends = zip(block.origin, block.size, grid, strict=True)
        if any(begin + size > whole for begin, size, whole in ends):
            raise ValueError("a block beyond its tensor")
    return Rearrangement(spec, grid, blocks)


def _array(array: Array) -> dict[str, Any]:
    import numpy as np

    packed = zlib.compress(np.ascontiguousarray(array, "<i4").tobytes(), 9)
    return {"shape": list(array.shape), "int32": base64.b64encode(packed).decode()}


def _as_array(value: Any) -> Array:
    import numpy as np

    shape = _numbers(value["shape"])
    size = int(np.prod(shape, dtype=np.int64))
    if size > MAX_ROWS:
        raise ValueError(f"{size} rows")
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(base64.b64decode(_text(value["int32"]), validate=True), 4 * size + 1)
    return np.frombuffer(raw, "<i4").astype(np.int32).reshape(shape)


def _check_rows(rows: RowMap, donors: int) -> None:
    """Raise ValueError for a row map that refers to missing donors or means, or has a wrong shape."""
    if rows.origin.ndim != 1 or rows.row.shape != rows.origin.shape or rows.means.ndim != 2:
        raise ValueError("a row map of another shape")
    origin, row = rows.origin, rows.row
    if len(origin) and (origin.min() < -3 or origin.max() >= donors or row.min() < 0):
        raise ValueError("rows of no donor")
    averaged = row[origin == -2]
    if len(averaged) and averaged.max() >= len(rows.means):
        raise ValueError("means of no rows")


def _at(place: Any, read: Sequence[Locator]) -> Locator:
    number = _number(place)
    if number >= len(read):
        raise ValueError(f"place {number} is not there yet")
    return read[number]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not a text")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TypeError(f"{str(value)[:40]!r} is not a count")
    return value


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is not a list of numbers")
    return tuple(map(_number, value))
