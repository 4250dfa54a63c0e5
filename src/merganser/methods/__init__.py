"""Merge methods: pure mathematics in plain functions, whose signatures are their declarations.

A method has one of three forms, according to its return type:

* ``-> Combination``: the result is a linear combination of the inputs, and the method
  returns the coefficients. With a parameter ``gram`` it takes the inputs' Gram matrix (the float64
  inner products of the tensor's inputs), which the engine measures in a separate pass. With a
  parameter ``changes`` it takes the Gram matrix of the differences to the base (of the inputs, if
  there is no base), and returns the coefficients of these.
* ``-> SparseDeltas``: the result is the base plus a weighted sum of some of the models' deltas;
  the method returns which ones, and their weights. The engine computes exact thresholds in separate
  passes.
* ``-> Tensor``: the method computes the result in torch from ``tensors`` (and ``base``). It
  takes whole tensors, or tiles of them if it is ``elementwise``. With a parameter ``facts`` it also
  takes what its ``measure`` counts in all tiles, with a parameter ``generators`` torch's random
  generators for the tensor, by the model's number.

The engine computes the first two forms in fused loops, without torch.

Keyword-only parameters are the recipe's. ``Annotated[Sequence[float], PerModel()]`` is one number
per model, ``Range`` declares the usual and the valid values, and recipes drop a trailing underscore
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
