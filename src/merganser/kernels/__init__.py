"""The compiled kernels: stored bytes in, stored bytes out, all intermediate values in registers.

Each family of methods is one C++ template (``source/``). ``build`` compiles it for every
instruction level. Calls go through ctypes without the GIL; a function raises
ValueError for an array of a wrong dtype or size. ``library`` loads the level for this
processor; without one, ``plain`` computes the same bits in numpy, slower.
"""

from __future__ import annotations

CELL = 65536
"""Elements per cell. Each cell is summed separately, so sums do not depend on the tiles."""

BLOCK = 4096
"""Elements per block of a kernel's loop."""

LANES = 16
"""Elements per vector, on every processor."""

MOST = 128
"""Maximum number of inputs of a compiled kernel; numpy merges more."""

CODES = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3}
"""The kernels' codes of dtypes."""

WIDTHS = (2, 2, 4, 8)
"""Bytes per number, by code."""
