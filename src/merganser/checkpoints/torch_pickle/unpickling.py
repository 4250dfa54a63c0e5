"""Read PyTorch's files (``.pt``, ``.pth``, ``.bin``) without PyTorch and without executing code.

The format, since PyTorch 1.6: an uncompressed zip archive with a pickle ``data.pkl`` and one
entry ``data/KEY`` for every storage. Python's unpickling calls whatever the pickle names. Here only
listed names are allowed, and each gets a stand-in: a tensor becomes a :class:`PickledTensor`, which
locates its bytes; anything else becomes an inert :class:`Record`. Any other name raises an error.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from merganser.checkpoints.torch_pickle.archive import (
    MAGIC_OF_OLD,
    FilePart,
    entries_of,
    find_parts,
)
from merganser.checkpoints.torch_pickle.listed_names import MAX_AXES, TENSORS, number
from merganser.checkpoints.torch_pickle.stand_ins import (
    Dictionary,
    Function,
    Names,
    Record,
    Storage,
    StorageType,
    UnlistedName,
)
from merganser.errors import InputError
from merganser.tensors import DType

MAX_PICKLE = 2**26
"""Maximum size of a pickle in bytes; a model with 10,000 tensors has about 2 MB."""

MAX_STEPS = 1 << 22
"""Maximum number of unpickling steps, each of which may create an object; a tensor takes 30, a
sharded one 100."""

_KEYS = (str, int, float, bytes, type(None), DType, Record)
"""Types of dictionary keys; tuples of them are allowed too."""


def load(file: Path, names: Names | None = None, *, at: int = 0, length: int | None = None) -> Any:
    """Unpickle a PyTorch file, with stand-ins for everything except plain data.

    Args:
        file: the file.
        names: allowed names, in addition to tensors.
        at: byte offset of the archive in the file.
        length: its size in bytes.

    Raises:
        InputError: when it is truncated, compressed, damaged, of another format, or uses another
            name.
    """
    if not file.is_file():  # reading a pipe would block
        what = "is not a file" if file.exists() else "is missing; fetch it again"
        raise InputError(f"{file}: {what}")
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            end = size if length is None else at + length
            if at < 0 or end < at or end > size:
                raise InputError(f"{file}: is cut off ({size} bytes, needs {end}); fetch it again")
            start = stream.read(len(MAGIC_OF_OLD)) if at == 0 else b""
            entries = entries_of(file, FilePart(stream, at, end), start)
            pickled, storages = find_parts(file, entries)
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
        file: its source, for messages.
        names: allowed names, in addition to tensors.
        storages: byte offset and size of every storage in the file, by key.

    Raises:
        InputError: when it is damaged, or uses another name.
    """
    try:
        return _Unpickler(data, file, {**TENSORS, **(names or {})}, storages or {}).load()
    except InputError:
        raise
    except UnlistedName as asked:
        raise InputError(
            f"{file}: its pickle asks for {asked}, which weights do not need, so it is not read; if you trust "
            "it, load it with torch and save its weights as safetensors"
        ) from None
    except Exception as error:  # any exception that a damaged pickle causes
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{file}: its pickle is damaged ({reason})") from None


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Python's pickle machine in Python, which checks each step.

    The C version calls any function, lets a pickle overwrite fields of any object, allocates any
    amount that a pickle claims, and accepts keys with unbounded hash time. This one creates only
    plain data and stand-ins, and counts its steps.
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
        """Count steps."""
        self._steps += count
        if self._steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"it takes more than {MAX_STEPS} steps")

    def call(self) -> None:
        """REDUCE: only stand-ins for functions and classes can be called."""
        arguments = self.stack.pop()
        called = self.stack[-1]
        made = isinstance(called, type) and issubclass(called, Record | Dictionary)
        if not isinstance(arguments, tuple) or not (made or isinstance(called, Function)):
            raise pickle.UnpicklingError("it calls something that is not a function")
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
        """DICT: like SETITEMS, into a new dictionary."""
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
                raise pickle.UnpicklingError(f"a {type(key).__name__} is not a key")
            target[key] = value

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; raises for names that are not listed."""
        stand_in = self._names.get((module, name))
        if stand_in is None:
            asked = f"{module}.{name}"[:100]
            raise UnlistedName(asked if asked.isprintable() else ascii(asked))
        return stand_in

    def persistent_load(self, pid: Any) -> Storage:
        """Find a storage: ``("storage", type, key, device, number of elements)``."""
        kind, storage_type, key, _, count = pid
        known = isinstance(storage_type, StorageType) and isinstance(key, str)
        if kind != "storage" or not known:
            raise pickle.UnpicklingError("it names something that is not a storage")
        dtype = storage_type.dtype
        nbytes = number(count) * (dtype.itemsize if dtype is not None else 1)
        if key not in self._storages:
            raise InputError(f"{self._file}: lacks the storage {str(key)[:20]!r}; fetch it again")
        offset, size = self._storages[key]
        if nbytes > size:
            raise InputError(
                f"{self._file}: its storage {key!r} has {size} bytes and needs {nbytes}; fetch it again"
            )
        return Storage(self._file, offset, nbytes, dtype)


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
"""Opcodes that PyTorch's pickles do not need."""

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
