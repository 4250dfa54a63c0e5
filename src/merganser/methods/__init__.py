"""Merge methods: pure mathematics in plain functions, whose signatures are their declarations.

A method has one of three forms, according to its return type:

* ``-> Combination``: the result is a linear combination of the inputs, and the method only says
  with which coefficients. With a parameter ``gram`` it takes the inputs' Gram matrix (the float64
  inner products of this tensor's inputs), which the engine measures in a pass of its own; with a
  parameter ``changes`` that of the differences to the base (of the inputs, where there is no base),
  and the coefficients are those of the differences.
* ``-> SparseDeltas``: the base plus some of what each model changed in it; the method says which,
  and how they are weighted. The engine finds thresholds by exact selection, in passes of its own.
* ``-> Tensor``: the method computes the result itself in torch from ``tensors`` (and ``base``). It
  takes whole tensors, or tiles of them if it is ``elementwise``. With a parameter ``facts`` it also
  takes what its ``measure`` counted in all tiles; with a parameter ``generators`` torch's random
  generators for this tensor, by the model's number.

The engine does the first two in fused loops that need no torch.

Keyword-only parameters are the recipe's. ``Annotated[Sequence[float], PerModel()]`` is one number
a model, ``Range`` the values that make sense, and a trailing underscore is dropped in recipes
(``lambda_`` is ``lambda``). Methods never log, read files, cast, move or change their inputs.
"""

from __future__ import annotations

from merganser.methods.forms import (
    Array,
    Combination,
    Finish,
    Generators,
    Gram,
    Keep,
    Largest,
    MostVaried,
    Random,
    Ranked,
    SparseDeltas,
    Vectors,
)
from merganser.methods.parameters import Density, Parameter, PerModel, Range, Rescale, Weight
from merganser.methods.registry import (
    FAMILIES,
    Method,
    Origin,
    describe,
    get,
    load_file,
    loaded_files,
    merge_method,
    names,
    variant_of,
)
from merganser.methods.signature import BaseUse

__all__ = [
    "FAMILIES",
    "Array",
    "BaseUse",
    "Combination",
    "Density",
    "Finish",
    "Generators",
    "Gram",
    "Keep",
    "Largest",
    "Method",
    "MostVaried",
    "Origin",
    "Parameter",
    "PerModel",
    "Random",
    "Range",
    "Ranked",
    "Rescale",
    "SparseDeltas",
    "Vectors",
    "Weight",
    "describe",
    "get",
    "load_file",
    "loaded_files",
    "merge_method",
    "names",
    "variant_of",
]
