"""Planning: recipe and headers in, plan out.

``planner`` is the pipeline. ``inputs`` opens the models, ``layout`` groups the input tensors of
each output tensor, ``jobs`` resolves parameters and dtypes. ``plan_data`` is the plan;
``plan_json`` writes it as JSON, ``plan_loading`` reads it back.
"""

from merganser.planning.options import MemoryKeywords as MemoryKeywords
from merganser.planning.options import PlanKeywords as PlanKeywords
from merganser.planning.options import PlanOptions as PlanOptions
from merganser.planning.plan_data import DISK_MARGIN as DISK_MARGIN
from merganser.planning.plan_data import Arithmetic as Arithmetic
from merganser.planning.plan_data import Names as Names
from merganser.planning.plan_data import OpenSource as OpenSource
from merganser.planning.plan_data import Plan as Plan
from merganser.planning.plan_data import Read as Read
from merganser.planning.plan_data import Rounding as Rounding
from merganser.planning.plan_data import Shard as Shard
from merganser.planning.plan_data import Source as Source
from merganser.planning.plan_data import TensorJob as TensorJob
from merganser.planning.plan_data import TokenizerEdit as TokenizerEdit
from merganser.planning.plan_data import relocated as relocated
from merganser.planning.plan_json import describe as describe
from merganser.planning.planner import make_plan as make_plan
from merganser.planning.planner import plan as plan
from merganser.recipe import Config as Config
