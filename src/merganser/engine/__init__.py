"""Run plans: read tiles, measure, combine, round once, pass on. The engine makes no decisions.

``running`` has :func:`run`, ``crew`` the threads, ``tiles`` and ``worker`` their work.
``measurements`` computes what a merge must know about a tensor beforehand, ``budget`` the numbers
of threads and the sizes of tiles.
"""

import importlib
from typing import TYPE_CHECKING, Any

from merganser.engine.budget import OVERHEAD as OVERHEAD
from merganser.engine.budget import TILE as TILE
from merganser.engine.budget import buffer_bytes as buffer_bytes
from merganser.engine.budget import default_threads as default_threads
from merganser.engine.budget import memory_needed as memory_needed

if TYPE_CHECKING:
    from merganser.engine.effective_weights import ModelWeight as ModelWeight
    from merganser.engine.effective_weights import Report as Report
    from merganser.engine.effective_weights import TensorOutcome as TensorOutcome
    from merganser.engine.events import Event as Event
    from merganser.engine.events import Finished as Finished
    from merganser.engine.events import Listener as Listener
    from merganser.engine.events import Merged as Merged
    from merganser.engine.events import Started as Started
    from merganser.engine.running import Outcome as Outcome
    from merganser.engine.running import run as run

_HOMES = {
    "effective_weights": ("ModelWeight", "Report", "TensorOutcome"),
    "events": ("Event", "Finished", "Listener", "Merged", "Started"),
    "running": ("Outcome", "run"),
}
"""Names that are imported when they are first used: planning needs neither kernels nor numpy."""


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"merganser.engine.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
