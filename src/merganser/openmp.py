"""Set what the threads of torch and numpy do, before these are imported."""

from __future__ import annotations

import os
import sys


def wait_passively() -> None:
    """Let idle OpenMP threads sleep rather than spin, unless the user has chosen otherwise.

    A small model spends most of each step between short parallel regions. Threads that spin there
    take the processor from whatever else runs on the machine, and from each other where there are
    more of them than free cores. OpenMP reads the variable once, when torch is imported; after that
    this function changes nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_numpy_alone() -> None:
    """Let numpy's BLAS start no threads, unless the user has chosen otherwise: merges do not use it.

    It starts one for every core as numpy is imported, which takes 40 ms.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
