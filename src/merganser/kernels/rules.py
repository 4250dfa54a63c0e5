"""Rules for which of a model's deltas are kept, and their form for C++.

Magnitudes are compared as the bits of float32, which have the same order as the numbers; such a
number is a *key*. A delta is above a cut if its key is greater than the cut, or equal and among
the first such deltas in the tensor. The number of these ties in each cell is counted beforehand.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from merganser.kernels import LANES
from merganser.kernels.arguments import checked

ALL, NOTHING, BETWEEN, DRAWN, MASKED = range(5)
"""Kinds of rules: keep all deltas, none, those between two cuts, those with a low draw, those with a
bit in the mask."""

VARIANCE = -1
"""In place of a model's number: the variance between all models."""

L1, L2, LINF = range(3)
NORMS = {"l1": L1, "l2": L2, "linf": LINF}
"""Codes of the norms, by their names in recipes."""

ABSENT = np.uint32(0xFFFFFFFF)
"""A key above all others."""


class Rules(NamedTuple):
    """Which deltas of a tensor are kept.

    Attributes:
        kinds: int64 [models]; with one more entry, that one is a rule by variance for all models.
        cuts: uint32 [kinds, 2], keys of the upper and the lower cut; ABSENT for none.
        allowed, present: int64 [kinds, 2, cells of the tensor], number of ties above the cut, and
            of all ties.
        chances: uint64 [models]; smaller draws are kept.
        seeds: uint64 [models], for the draws.
        masks: uint8 [models, bytes], one bit per element of the tensor plus LANES bytes: read by
            the rule MASKED, and written by DRAWN if present.
    """

    kinds: Any
    cuts: Any
    allowed: Any
    present: Any
    chances: Any
    seeds: Any
    masks: Any


class RulesStruct(ctypes.Structure):
    """``Rules`` in ``source/rules.hpp``."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("kinds", ctypes.c_void_p),
        ("cuts", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
        ("present", ctypes.c_void_p),
        ("cells", ctypes.c_int64),
        ("chances", ctypes.c_void_p),
        ("seeds", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


def struct_of(rules: Rules, models: int, end: int, cells: int) -> RulesStruct:
    """The C++ struct for a number of models, elements up to ``end``, and the tensor's cells up to
    there.

    Raises:
        ValueError: when an array has a wrong size.
    """
    kinds, room = len(rules.kinds), rules.masks.shape[1]
    if kinds not in (models, models + 1):
        raise ValueError(f"{kinds} rules for {models} models")
    masked = np.any(rules.kinds == MASKED)
    if (room or masked) and room < -(-end // 8) + LANES // 8:
        raise ValueError(f"masks of {room} bytes for {end} elements")
    if masked and kinds != models:
        raise ValueError("masks are for the models one by one")
    if rules.allowed.shape[2] < cells or rules.allowed.shape != rules.present.shape:
        raise ValueError(f"ties of {rules.allowed.shape[2]} cells, not {cells}")
    ties = (kinds, 2, rules.allowed.shape[2])
    return RulesStruct(
        kinds,
        checked(rules.kinds, np.int64, kinds),
        checked(rules.cuts, np.uint32, kinds, 2),
        checked(rules.allowed, np.int64, *ties),
        checked(rules.present, np.int64, *ties),
        rules.allowed.shape[2],
        checked(rules.chances, np.uint64, models),
        checked(rules.seeds, np.uint64, models),
        checked(rules.masks, np.uint8, models, room),
        room,
    )
