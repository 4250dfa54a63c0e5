"""Results of unpickling: tensors that locate their bytes, and inert records."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from merganser.checkpoints.stored import Piece
from merganser.errors import InputError
from merganser.tensors import DType

MAX_RANKS = 1 << 14
"""Maximum number of integers to read one by one, such as those of a mesh of ranks."""


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it: a view of a storage.

    Attributes:
        file: the file with its storage.
        offset: byte offset of its first element in the file.
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
        elements = []
        try:
            with self.file.open("rb") as stream:
                for index in itertools.product(*map(range, self.size)):
                    step = sum(i * s for i, s in zip(index, self.stride, strict=True))
                    stream.seek(self.offset + step * self.dtype.itemsize)
                    elements.append(stream.read(self.dtype.itemsize))
        except OSError as error:
            raise InputError(f"{self.file}: cannot be read ({error.strerror})") from None
        return b"".join(elements)

    def integers(self) -> list[int]:
        """The elements of a small tensor of integers, such as a mesh of ranks, in order.

        Raises:
            ValueError: when it is not a small integer tensor.
        """
        if self.dtype.floating or math.prod(self.size) > MAX_RANKS:
            raise ValueError(f"{self.dtype}{list(self.size)} is not a list of ranks")
        content, width = self.content(), self.dtype.itemsize
        return [
            int.from_bytes(content[i : i + width], "little") for i in range(0, len(content), width)
        ]

    def piece(self, origin: tuple[int, ...] | None = None) -> Piece:
        """This tensor as the block of a larger one that begins at ``origin``."""
        begin = origin if origin is not None else (0,) * len(self.size)
        return Piece(self.file, self.offset, self.size, self.stride, begin)


class Named(type):
    """Metaclass; messages name the class as the pickle does."""

    def __repr__(cls) -> str:
        return cls.__name__


class Record(metaclass=Named):
    """An inert object of a listed class.

    Attributes:
        members: members of the class that a pickle may access by name, with their constructors.
        arguments: the constructor's arguments.
        state: the state set afterwards.
    """

    __slots__ = ("arguments", "state")

    members: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        """Create a record, in any of the ways that pickles use."""
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


class Dictionary(dict[Any, Any], metaclass=Named):
    """Replaces ``OrderedDict``; attributes, such as a state dict's metadata, are dropped."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class Function:
    """Replaces a function that a pickle may call. It has no state."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it tries to change a function")

    def __repr__(self) -> str:
        return "a function"


MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Exceptions of reading malformed structures."""

Names = Mapping[tuple[str, str], Any]
"""Names that a pickle may use: module and name, with the stand-in."""


def record(name: str, **members: Callable[[], Any]) -> type[Record]:
    """A class of records, with the members that a pickle may access by name."""
    return type(name, (Record,), {"__slots__": (), "members": members})


def enumeration(name: str, **values: int) -> type[Record]:
    """A class of records whose named members are computed from their values."""
    made = record(name)
    made.members = {member: partial(made, value) for member, value in values.items()}
    return made


class UnlistedName(pickle.UnpicklingError):
    """A pickle uses a name that is not listed; the message states it."""


@dataclass(frozen=True, slots=True)
class StorageType:
    """``torch.FloatStorage`` and similar; without a dtype ``UntypedStorage``."""

    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes that tensors are views of."""

    file: Path
    offset: int
    nbytes: int
    dtype: DType | None
