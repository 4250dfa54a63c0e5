"""PyTorch's files (``.pt``, ``.pth``, ``.bin``), read without PyTorch and without running anything.

The format, since PyTorch 1.6: a zip archive, nothing compressed, with a pickle ``data.pkl`` and one
entry ``data/KEY`` for every storage. Unpickling calls whatever the pickle names. Here it can only
name what a list allows, and gets stand-ins of ours for that: a tensor becomes a
:class:`PickledTensor`, which tells where its bytes lie; anything else becomes an inert
:class:`Record`. A pickle that names more is refused.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from merganser.checkpoints.stored import Piece
from merganser.errors import InputError
from merganser.tensors import BY_NAME, DType

MAX_PICKLE = 2**26
"""Greatest size of a pickle, in bytes; that of a model with 10,000 tensors has about 2 MB."""

MAX_STEPS = 1 << 22
"""Most steps of unpickling, each of which may make an object; a tensor takes 30, a sharded one 100."""

MAX_DIRECTORY = 2**24
"""Greatest size of a zip archive's directory, in bytes; an entry takes about 80."""

MAX_AXES = 16
"""More axes than any tensor has."""

MAX_RANKS = 1 << 14
"""Most integers that are read one by one, such as those of a mesh of ranks."""

_MAGIC_OF_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What a file of PyTorch before 1.6 begins with."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it: a view of a storage.

    Attributes:
        file: the file that its storage lies in.
        offset: the byte of the file with which its first element begins.
        dtype: of its elements.
        size, stride: along each axis, in elements.
    """

    file: Path
    offset: int
    dtype: DType
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def content(self) -> bytes:
        """The elements of a small tensor, in order.

        Raises:
            InputError: when the file cannot be read.
        """
        found = []
        try:
            with self.file.open("rb") as stream:
                for index in itertools.product(*map(range, self.size)):
                    step = sum(i * s for i, s in zip(index, self.stride, strict=True))
                    stream.seek(self.offset + step * self.dtype.itemsize)
                    found.append(stream.read(self.dtype.itemsize))
        except OSError as error:
            raise InputError(f"{self.file}: cannot be read ({error.strerror})") from None
        return b"".join(found)

    def integers(self) -> list[int]:
        """The elements of a small tensor of integers, such as a mesh of ranks, in order.

        Raises:
            ValueError: when it is none.
        """
        if self.dtype.floating or math.prod(self.size) > MAX_RANKS:
            raise ValueError(f"{self.dtype}{list(self.size)} is no list of ranks")
        content, width = self.content(), self.dtype.itemsize
        return [
            int.from_bytes(content[i : i + width], "little") for i in range(0, len(content), width)
        ]

    def piece(self, origin: tuple[int, ...] | None = None) -> Piece:
        """This tensor as the block of a larger one that begins at ``origin``."""
        begin = origin if origin is not None else (0,) * len(self.size)
        return Piece(self.file, self.offset, self.size, self.stride, begin)


class _Named(type):
    """Classes that messages call what the pickle calls them."""

    def __repr__(cls) -> str:
        return cls.__name__


class Record(metaclass=_Named):
    """An object of a class that a pickle may name, as inert as a form that was filled in.

    Attributes:
        members: what a pickle may ask of the class itself, by name, and what makes that.
        arguments: what it was made with.
        state: what was put into it afterwards.
    """

    __slots__ = ("arguments", "state")

    members: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        """Make one, by whichever of the ways that pickles have."""
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"a {type(self).__name__}"

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes by name, from a dictionary or from slots."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {name: v for part in parts if isinstance(part, dict) for name, v in part.items()}


class Dictionary(dict[Any, Any], metaclass=_Named):
    """Stands in for ``OrderedDict``; attributes, such as a state dict's metadata, are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Forget what it is."""


class Function:
    """Stands in for a function that a pickle may call. Nothing can be put into it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")

    def __repr__(self) -> str:
        return "a function"


MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a structure raises that is not what it should be."""

Names = Mapping[tuple[str, str], Any]
"""What a pickle may name: module and name, and what it gets for that."""


def record(name: str, **members: Callable[[], Any]) -> type[Record]:
    """A class of records, with what a pickle may ask of it by name."""
    return type(name, (Record,), {"__slots__": (), "members": members})


def enumeration(name: str, **values: int) -> type[Record]:
    """A class of records whose members, asked for by name, are what it makes of their values."""
    made = record(name)
    made.members = {member: partial(made, value) for member, value in values.items()}
    return made


class _Unlisted(pickle.UnpicklingError):
    """A pickle asks for what no list allows; the message says for what."""


_KEYS = (str, int, float, bytes, type(None), DType, Record)
"""What keys of dictionaries may be, or tuples of it."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    """``torch.FloatStorage`` and the like; without a dtype ``UntypedStorage``."""

    dtype: DType | None


@dataclass(frozen=True, slots=True)
class _Storage:
    file: Path
    offset: int
    nbytes: int
    dtype: DType | None


def load(file: Path, names: Names | None = None, *, at: int = 0, length: int | None = None) -> Any:
    """Unpickle a file of PyTorch, with stand-ins for all that is not plain data.

    Args:
        file: the file.
        names: what it may name beside tensors.
        at: the byte with which the archive begins, if it is a part of the file.
        length: how many bytes that part has.

    Raises:
        InputError: when it is cut off, compressed, damaged, of another format, or names what it may
            not.
    """
    if not file.is_file():  # a pipe would be waited for
        what = "is no file" if file.exists() else "is missing; fetch it again"
        raise InputError(f"{file}: {what}")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            end = size if length is None else at + length
            if at < 0 or end < at or end > size:
                raise InputError(f"{file}: is cut off ({size} bytes, needs {end}); fetch it again")
            start = stream.read(len(_MAGIC_OF_OLD)) if at == 0 else b""
            entries = _entries(file, _Window(stream, at, end), start)
            pickled, storages = _open(file, entries)
            if pickled[1] > MAX_PICKLE:
                raise InputError(f"{file}: its data.pkl is too large for what it should be")
            stream.seek(pickled[0])
            data = stream.read(pickled[1])
    except FileNotFoundError:
        raise InputError(f"{file}: is missing; fetch it") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    return unpickle(data, file, names, storages)


def unpickle(
    data: bytes,
    file: Path,
    names: Names | None = None,
    storages: Mapping[str, tuple[int, int]] | None = None,
) -> Any:
    """Unpickle with stand-ins.

    Args:
        data: the pickle.
        file: where it is from.
        names: what it may name beside tensors.
        storages: offset and size in the file of every storage, by key.

    Raises:
        InputError: when it is damaged, or names what it may not.
    """
    try:
        return _Unpickler(data, file, {**TENSORS, **(names or {})}, storages or {}).load()
    except InputError:
        raise
    except _Unlisted as asked:
        raise InputError(
            f"{file}: asks for {asked}, which weights do not need, so it is not read; if you trust "
            "it, load it with torch and save its weights as safetensors"
        ) from None
    except Exception as error:  # whatever a damaged pickle makes the machine stumble over
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{file}: its pickle is damaged ({reason})") from None


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Python's own machine, in Python, so that each of its steps can be looked at.

    The one in C calls what it is told to, lets a pickle overwrite the fields of any object, allocates
    whatever it claims to need, and takes keys whose hash is never done. This one makes plain data and
    stand-ins, and counts.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, data: bytes, file: Path, names: Names, storages: Mapping[str, tuple[int, int]]
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._file = file
        self._names = names
        self._storages = storages
        self._steps = 0

    def step(self, count: int = 1) -> None:
        """Count work."""
        self._steps += count
        if self._steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"it takes more than {MAX_STEPS} steps")

    def call(self) -> None:
        """REDUCE: what is called must be a stand-in for that."""
        arguments = self.stack.pop()
        called = self.stack[-1]
        made = isinstance(called, type) and issubclass(called, Record | Dictionary)
        if not isinstance(arguments, tuple) or not (made or isinstance(called, Function)):
            raise pickle.UnpicklingError("it calls what is no function")
        self.step(sum(len(a) for a in arguments if isinstance(a, list | tuple | dict | str)))
        self.stack[-1] = called(*arguments)

    def build(self) -> None:
        """BUILD: only records and dictionaries have a state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record | Dictionary):
            raise pickle.UnpicklingError("it tries to change what has no state")
        self.step(len(state) if isinstance(state, dict | tuple) else 1)
        self.stack[-1].__setstate__(state)

    def set_item(self) -> None:
        """SETITEM: one key and its value."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self) -> None:
        """SETITEMS: keys and values since the mark."""
        self._set(self.pop_mark())

    def make_dictionary(self) -> None:
        """DICT: the same, into a new one."""
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("it sets keys of what has none")
        for key, value in zip(items[::2], items[1::2], strict=True):
            flat = key if isinstance(key, tuple) and len(key) <= MAX_AXES else (key,)
            if not all(isinstance(part, _KEYS) for part in flat):
                raise pickle.UnpicklingError(f"a {type(key).__name__} is no key")
            target[key] = value

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in; refuse what is not listed."""
        found = self._names.get((module, name))
        if found is None:
            asked = f"{module}.{name}"[:100]
            raise _Unlisted(asked if asked.isprintable() else ascii(asked))
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        """Find a storage: ``("storage", type, key, device, number of elements)``."""
        kind, storage_type, key, _, count = pid
        known = isinstance(storage_type, _StorageType) and isinstance(key, str)
        if kind != "storage" or not known:
            raise pickle.UnpicklingError("it names what is no storage")
        dtype = storage_type.dtype
        nbytes = _number(count) * (dtype.itemsize if dtype is not None else 1)
        if key not in self._storages:
            raise InputError(f"{self._file}: lacks the storage {str(key)[:20]!r}; fetch it again")
        offset, size = self._storages[key]
        if nbytes > size:
            raise InputError(
                f"{self._file}: its storage {key!r} has {size} bytes and needs {nbytes}; fetch it again"
            )
        return _Storage(self._file, offset, nbytes, dtype)


_REFUSED = frozenset(
    pickle.EMPTY_SET
    + pickle.ADDITEMS
    + pickle.FROZENSET
    + pickle.EXT1
    + pickle.EXT2
    + pickle.EXT4
    + pickle.INST
    + pickle.OBJ
    + pickle.PERSID
    + pickle.BYTEARRAY8
    + pickle.NEXT_BUFFER
    + pickle.READONLY_BUFFER
)
"""Opcodes that nothing of PyTorch's needs."""

_OWN = {
    pickle.REDUCE: _Unpickler.call,
    pickle.BUILD: _Unpickler.build,
    pickle.SETITEM: _Unpickler.set_item,
    pickle.SETITEMS: _Unpickler.set_items,
    pickle.DICT: _Unpickler.make_dictionary,
}


def _counted(operation: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(machine: _Unpickler) -> None:
        machine.step()
        operation(machine)

    return counted


_Unpickler.dispatch = {
    code: _counted(_OWN.get(bytes([code]), operation))
    for code, operation in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined, unused-ignore]
    if code not in _REFUSED
}


# -- the archive -----------------------------------------------------------------------------------


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, stream: io.BufferedReader, begin: int, end: int) -> None:
        self.begin = begin
        self.size = end - begin
        self._stream = stream
        self._position = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """As every file; but of a directory with millions of entries nothing is read."""
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return super().read(size) or b""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, self.size)[whence]
        if start + offset < 0:
            raise ValueError("before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self.begin + self._position)
        left = max(0, self.size - self._position)
        count = self._stream.readinto(memoryview(buffer)[:left])
        self._position += count
        return count


def _entries(file: Path, window: _Window, start: bytes) -> dict[str, tuple[int, int]]:
    """Offset in the file and size of every entry of a zip archive."""
    try:
        with zipfile.ZipFile(window) as archive:
            entries = {}
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise InputError(
                        f"{file}: is compressed, which no release of PyTorch does; unzip it and zip "
                        "it again without compression (zip -0)"
                    )
                window.seek(info.header_offset)
                local = window.read(30) or b""
                if len(local) < 30 or local[:4] != b"PK\x03\x04":
                    raise zipfile.BadZipFile
                skip = int.from_bytes(local[26:28], "little") + int.from_bytes(
                    local[28:30], "little"
                )
                begin = info.header_offset + 30 + skip
                if begin + info.file_size > window.size:
                    raise zipfile.BadZipFile
                entries[info.filename] = (window.begin + begin, info.file_size)
            return entries
    except InputError:
        raise
    except Exception:  # zipfile stumbles over damaged directories in many ways
        if start == _MAGIC_OF_OLD:
            raise InputError(
                f"{file}: is of PyTorch's format before 1.6; save it again with "
                "torch.save(torch.load(FILE, weights_only=True), FILE)"
            ) from None
        raise InputError(
            f"{file}: is cut off, damaged, or no file of PyTorch; fetch it again"
        ) from None


def _open(
    file: Path, entries: Mapping[str, tuple[int, int]]
) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    """The pickle, and the storages by key."""
    found = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise InputError(f"{file}: is a zip archive, but none that PyTorch wrote")
    prefix = found[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise InputError(f"{file}: is a TorchScript program; save its state_dict() instead")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and order[1] != len("little"):
        raise InputError(f"{file}: was written on a big-endian machine, which is not supported")
    inside = f"{prefix}data/"
    return entries[found[0]], {
        name.removeprefix(inside): place
        for name, place in entries.items()
        if name.startswith(inside)
    }


# -- what a pickle of tensors may name -------------------------------------------------------------


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        told = repr(value)[:20] if isinstance(value, int | float | str) else type(value).__name__
        raise ValueError(f"{told} is no size")
    return value


def sizes_of(values: Any = ()) -> tuple[int, ...]:
    """Sizes, strides or offsets along each axis; what ``torch.Size`` makes.

    Raises:
        ValueError: when they are none.
    """
    if not isinstance(values, list | tuple) or len(values) > MAX_AXES:
        raise ValueError("a tensor has no size")
    return tuple(map(_number, values))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any
) -> PickledTensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, DType):
        raise pickle.UnpicklingError("a tensor has no storage")
    if metadata:
        raise pickle.UnpicklingError("a tensor is conjugated or negated on the fly")
    sizes, strides = sizes_of(size), sizes_of(stride)
    if len(sizes) != len(strides):
        raise pickle.UnpicklingError("a tensor has more axes than steps")
    last = _number(offset) + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * dtype.itemsize > storage.nbytes:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return PickledTensor(
        storage.file, storage.offset + offset * dtype.itemsize, dtype, sizes, strides
    )


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> PickledTensor:
    dtype = storage.dtype if isinstance(storage, _Storage) else None
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> PickledTensor:
    return _tensor(storage, offset, size, stride, dtype, metadata)


def _rebuild_parameter(data: Any, *_ignored: Any) -> Any:
    return data


def _rebuild_from_type_v2(function: Any, _type: Any, arguments: Any, state: Any) -> Any:
    if not isinstance(function, Function):
        raise pickle.UnpicklingError("a tensor is made by what is no function")
    made = function(*arguments)
    if isinstance(made, Record):
        made.__setstate__(state)
    return made


def _rebuild_wrapper_subclass(cls: Any, *arguments: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Record)):
        raise pickle.UnpicklingError("a tensor is of what is no class")
    return cls(*arguments)


def _getattr(*asked: Any) -> Any:
    """Stands in for ``getattr``: knows the members that classes of records list, and no other attribute."""
    match asked:
        case [type() as cls, str() as name] if issubclass(cls, Record) and name in cls.members:
            return cls.members[name]()
        case [cls, name, *_]:
            named = isinstance(name, str)
            told = f"the attribute {name[:40]!r}" if named else "a nameless attribute"
            owner = repr(cls) if isinstance(cls, _Named) else f"a {type(cls).__name__}"
            raise _Unlisted(f"{told} of {owner}")
        case _:
            raise _Unlisted("an attribute of nothing")


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
}

TENSORS: Names = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch", "Size"): Function(sizes_of),
    ("torch", "device"): Function(lambda *names: None),
    ("torch.serialization", "_get_layout"): Function(lambda name: None),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_wrapper_subclass"): Function(_rebuild_wrapper_subclass),
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild_from_type_v2),
    ("torch.nn.parameter", "Parameter"): record("Parameter"),
    ("torch.nn.parameter", "Buffer"): record("Buffer"),
    ("torch", "Tensor"): record("Tensor"),
    ("torch", "UntypedStorage"): _StorageType(None),
    ("torch.storage", "UntypedStorage"): _StorageType(None),
    **{("torch", name): _StorageType(BY_NAME[dtype]) for name, dtype in _STORAGES.items()},
    **{("torch", dtype.name): dtype for dtype in BY_NAME.values()},
}
"""What every pickle may name."""

GETATTR: Names = {(module, "getattr"): Function(_getattr) for module in ("builtins", "__builtin__")}
"""What pickles with members of enumerations, or with classes within classes, may name.

Python 3.11.0 to 3.11.3 pickle a member as ``getattr(CLASS, NAME)``, all other releases as ``CLASS(VALUE)``.
"""

MEMORY_FORMATS: Names = {
    (f"torch.distributed.{module}.metadata", name): enumeration(
        name, TORCH_CONTIGUOUS_FORMAT=0, TORCH_CHANNELS_LAST=1, TORCH_PRESERVE_FORMAT=2
    )
    for module, name in (
        ("checkpoint", "_MEM_FORMAT_ENCODING"),
        ("_shard.sharded_tensor", "MEM_FORMAT_ENCODING"),
    )
}
"""The enumerations with which descriptions of sharded tensors tell their memory format."""
