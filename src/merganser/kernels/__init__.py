"""The compiled kernels: stored bytes in, stored bytes out, everything between in registers.

One C++ template for each family of methods (``source/``), built for every instruction level by ``build``, called
through ctypes without Python's lock. ``library`` loads the one for this processor; where there is none, ``plain``
computes the same bits in numpy, slower.
"""

from __future__ import annotations

CELL = 65536
"""Elements that are summed by themselves, so that sums do not depend on how a tensor is cut into tiles."""

BLOCK = 4096
"""Elements that are worked on at once."""

LANES = 16
"""Elements of a vector, on every processor."""

MOST = 128
"""Inputs of a compiled kernel; more of them are merged in numpy."""

CODES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
"""The kernels' codes of dtypes."""

WIDTHS = (2, 2, 4, 8)
"""Bytes of a number, by code."""
