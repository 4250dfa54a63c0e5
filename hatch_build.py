"""Compiles the kernels while a wheel is built, or while the package is installed for editing.

A wheel belongs to a platform and to no version of Python. ``MERGANSER_TARGET`` names another platform than this one,
see ``TARGETS`` in ``src/merganser/kernels/build.py``. Where no kernels can be built, the wheel has none, and numpy
computes the same bits, slower.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Adds the compiled libraries to the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless that is done; called before files are collected."""
        file = Path(self.root) / "src/merganser/kernels/build.py"
        spec = importlib.util.spec_from_file_location("merganser_kernels_build", file)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        here = build.this_platform()
        target = os.environ.get("MERGANSER_TARGET", here)
        if target is None:
            self.app.display_warning("no kernels for this platform: numpy will compute, slower")
            return
        folder = build.BUILT if target == here else Path(self.root) / "build" / target
        try:
            libraries = build.build(target, folder)
        except RuntimeError as error:
            if target != here:
                raise
            self.app.display_warning(f"{error}\nnumpy will compute, slower")
            return
        own = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        tag = own if target == here and version == "editable" else build.TARGETS[target][2]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
        if version != "editable":
            for path in libraries:
                build_data["force_include"][str(path)] = f"merganser/kernels/built/{path.name}"
