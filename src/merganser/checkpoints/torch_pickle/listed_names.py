"""The names that a pickle may use, and the stand-in for each."""

from __future__ import annotations

import pickle
from typing import Any

from merganser.checkpoints.torch_pickle.stand_ins import (
    Dictionary,
    Function,
    Named,
    Names,
    PickledTensor,
    Record,
    Storage,
    StorageType,
    UnlistedName,
    enumeration,
    record,
)
from merganser.tensors import BY_NAME, DType

MAX_AXES = 16
"""Limit on the number of axes, above that of any tensor."""


def number(value: Any) -> int:
    """A size, stride or offset.

    Raises:
        ValueError: when it is not an integer in range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        shown = repr(value)[:20] if isinstance(value, int | float | str) else type(value).__name__
        raise ValueError(f"{shown} is not a size")
    return value


def sizes_of(values: Any = ()) -> tuple[int, ...]:
    """Sizes, strides or offsets along each axis; the result of ``torch.Size``.

    Raises:
        ValueError: when they are not integers in range.
    """
    if not isinstance(values, list | tuple) or len(values) > MAX_AXES:
        raise ValueError("a tensor has no size")
    return tuple(map(number, values))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any
) -> PickledTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, DType):
        raise pickle.UnpicklingError("a tensor has no storage")
    if metadata:
        raise pickle.UnpicklingError("a tensor is conjugated or negated on the fly")
    sizes, strides = sizes_of(size), sizes_of(stride)
    if len(sizes) != len(strides):
        raise pickle.UnpicklingError("a tensor has more axes than steps")
    last = number(offset) + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * dtype.itemsize > storage.nbytes:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return PickledTensor(
        storage.file, storage.offset + offset * dtype.itemsize, dtype, sizes, strides
    )


def _rebuild_tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> PickledTensor:
    dtype = storage.dtype if isinstance(storage, Storage) else None
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
        raise pickle.UnpicklingError("a tensor is built by something that is not a function")
    made = function(*arguments)
    if isinstance(made, Record):
        made.__setstate__(state)
    return made


def _rebuild_wrapper_subclass(cls: Any, *arguments: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Record)):
        raise pickle.UnpicklingError("a tensor is an instance of something that is not a class")
    return cls(*arguments)


def _getattr(*asked: Any) -> Any:
    """Replaces ``getattr``: returns listed members of record classes, and no other attribute."""
    match asked:
        case [type() as cls, str() as name] if issubclass(cls, Record) and name in cls.members:
            return cls.members[name]()
        case [cls, name, *_]:
            named = isinstance(name, str)
            target = f"the attribute {name[:40]!r}" if named else "a nameless attribute"
            owner = repr(cls) if isinstance(cls, Named) else f"a {type(cls).__name__}"
            raise UnlistedName(f"{target} of {owner}")
        case _:
            raise UnlistedName("an attribute of nothing")


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
    ("torch", "UntypedStorage"): StorageType(None),
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", name): StorageType(BY_NAME[dtype]) for name, dtype in _STORAGES.items()},
    **{("torch", dtype.name): dtype for dtype in BY_NAME.values()},
}
"""Names that every pickle may use."""

GETATTR: Names = {(module, "getattr"): Function(_getattr) for module in ("builtins", "__builtin__")}
"""Names for pickles with enumeration members, or with nested classes.

Python 3.11.0 to 3.11.3 pickle a member as ``getattr(CLASS, NAME)``, all other releases as
``CLASS(VALUE)``.
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
"""The enumerations for the memory format in descriptions of sharded tensors."""
