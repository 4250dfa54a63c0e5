"""Which of a model's changes are kept, and how a rule is told to C++.

Magnitudes are compared as the bits of float32, which are ordered like the numbers; such a number is a *key*.
A change is above a cut if its key is greater than the cut's, or equal and among the first of these in the
tensor: how many of them in each cell is counted beforehand.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from merganser.kernels import LANES
from merganser.kernels.arguments import checked

ALL, NOTHING, BETWEEN, DRAWN, MASKED = range(5)
"""Rules: all or none are kept, those between two cuts, those whose draw is low enough, those whose bit is set."""

VARIANCE = -1
"""In place of a model: the variance between all models."""

L1, L2, LINF = range(3)
NORMS = {"l1": L1, "l2": L2, "linf": LINF}
"""Norms that can be added up."""

ABSENT = np.uint32(0xFFFFFFFF)
"""A key above all others."""


class Rules(NamedTuple):
    """Which changes of a tensor are kept.

    Attributes:
        kinds: int64 [models], or one more for a rule by variance, which is then for all.
        cuts: uint32 [kinds, 2], keys of the upper and the lower cut; ABSENT where there is none.
        allowed, present: int64 [kinds, 2, cells of the tensor], ties that are above the cut, and all.
        chances: uint64 [models], draws below are kept.
        seeds: uint64 [models], for the draws.
        masks: uint8 [models, bytes], bits of the whole tensor and room for LANES bytes more: what is kept
            by the rule MASKED, and written by DRAWN if there is room.
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
    """For C++, of so many models, for elements up to ``end``, and cells of the tensor up to there.

    Raises:
        ValueError: when an array does not fit.
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
