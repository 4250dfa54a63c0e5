"""A live model: it takes the weights of one merge after the other, in memory."""

from __future__ import annotations

import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from merganser import engine, extras
from merganser.engine import events
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import engines, running
from merganser.evaluation.codec import Codec
from merganser.evaluation.continuous import ContinuousInference
from merganser.evaluation.engines import AnyOptions, TransformersOptions
from merganser.evaluation.generation import (
    Backend,
    Completion,
    OnTokens,
    Request,
    Sampling,
    StreamingBackend,
    ignore_tokens,
)
from merganser.evaluation.inference import Inference
from merganser.evaluation.statistics import Score
from merganser.evaluation.tasks import Task
from merganser.planning import Plan
from merganser.release import contents
from merganser.sinks import LiveSink, Sink, StateDictSink
from merganser.study import shell

Computing = Literal["auto", "float32", "bfloat16", "float16"]
"""Compute dtypes: ``auto`` is float32 on the CPU, and the plan's dtype on a GPU."""

_LOADING = threading.Lock()
"""While transformers loads a model, it sets torch's default dtype, for all threads."""

OnOutcome = Callable[[engine.Outcome], None]


class Subject(NamedTuple):
    """A merge to complete prompts with; see :meth:`Live.backend_of`."""

    plan: Plan
    on_outcome: OnOutcome | None
    on_tokens: OnTokens
    name: str


class Live(ABC):
    """A model in an engine that :meth:`become` turns into the merge of any plan.

    Args:
        options: options of the engine.
        device: the device of the model.
        dtype: the compute dtype.
        threads: threads of the merge; None for the default.

    Attributes:
        engine_name: the engine's name with its version.
        device: the device of the model.
        computing: the compute dtype.
        plan: the plan whose merge is loaded; None before the first.
        on_event: called with the progress of each merge.
    """

    def __init__(
        self, options: AnyOptions, device: str, dtype: Computing, threads: int | None
    ) -> None:
        self.engine_name = engines.describe(options)
        self.device = device
        self.computing: Computing = dtype
        self.plan: Plan | None = None
        self.on_event: events.Listener = events.ignore
        self._threads = threads

    @property
    @abstractmethod
    def backend(self) -> StreamingBackend:
        """The backend that completes prompts with the current weights."""

    @property
    @abstractmethod
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template, so that prompts can be conversations."""

    @abstractmethod
    def become(self, plan: Plan, *, report: bool = True) -> engine.Outcome:
        """Turn the model into the merge of a plan.

        Args:
            plan: the merge.
            report: whether to measure effective weights.

        Returns:
            The merge engine's measurements.

        Raises:
            InputError: the engine does not support the model, or weights that it needs are missing.
        """

    def backend_of(
        self,
        plan: Plan,
        on_outcome: OnOutcome | None = None,
        on_tokens: OnTokens = ignore_tokens,
        name: str = "",
    ) -> Backend:
        """Return a backend that turns the model into the merge of a plan at its first request.

        Args:
            plan: the merge.
            on_outcome: called with the engine's measurements; None to measure nothing.
            on_tokens: called with the number of tokens at each step.
            name: the model's name in the study.
        """
        return partial(self._complete, Subject(plan, on_outcome, on_tokens, name))

    def _complete(
        self, subject: Subject, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Complete prompts with a merge; yield a request's index with its completion."""
        self.settle(subject.plan, subject.on_outcome)
        return self.backend(requests, sampling, subject.on_tokens)

    def settle(self, plan: Plan, on_outcome: OnOutcome | None = None) -> None:
        """Turn the model into the merge of a plan, unless that is loaded already; see :meth:`backend_of`."""
        if self.plan is not plan:
            outcome = self.become(plan, report=on_outcome is not None)
            if on_outcome is not None:
                on_outcome(outcome)

    def key(self, plan: Plan, name: str = "") -> dict[str, str]:
        """Return what determines a merge's completions, as texts by kind: digests of the recipe and of each
        input, the dtype, the device and the engine.

        Args:
            plan: the merge.
            name: the model's name in the study.

        Raises:
            InputError: when an input cannot be read.
        """
        models = {f"the model {key}": digest for key, digest in contents.of_models(plan).items()}
        return {
            "the recipe": plan.digest,
            **models,
            "the dtype": str(self.computing),
            "the device": self.device,
            "the engine": self.engine_name,
        }

    def dtype_of(self, plan: Plan) -> str:
        """Return the compute dtype of a merge."""
        if self.computing != "auto":
            return self.computing
        return "float32" if self.device == "cpu" else plan.dtype.name

    def close(self) -> None:
        """Release the engine's memory. :meth:`become` can be called again."""
        self.plan = None


class LiveModel(Live):
    """A transformers model that :meth:`become` turns into the merge of any plan.

    The first merge is computed in memory and loaded as transformers loads a folder, with the config and
    the tokenizer that the merge would write. Later merges with the same tensors are written into the
    parameters in place. Merges with other tensors are loaded again, and so are models whose weights have
    other names in memory than on disk.

    Args:
        device: ``auto``, or a name of torch such as ``cuda:1``.
        dtype: the compute dtype.
        threads: threads of the merge; None for the default.
        batch_size: number of completions at once; None chooses it automatically.
        options: options of the transformers engine.

    Attributes:
        module: the transformers model; None before the first plan.
        tokenizer: the model's tokenizer.
        plan: the plan whose merge is loaded; None before the first.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: Computing = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        options: TransformersOptions | None = None,
    ) -> None:
        self.options = options or TransformersOptions()
        super().__init__(self.options, find_device(device), dtype, threads)
        self.module: Any = None
        self.tokenizer: Any = None
        self._batch_size = batch_size
        self._places: dict[str, Any] | None = None
        self._backend: Inference | None = None

    @property
    def backend(self) -> Inference:
        """The backend that completes prompts with the current weights."""
        if self._backend is None:
            raise MerganserError("the live model holds no merge yet; call become() first")
        return self._backend

    def close(self) -> None:
        """See :class:`Live`."""
        self.module = self.tokenizer = self.plan = self._places = self._backend = None

    @property
    def has_chat_template(self) -> bool:
        """See :class:`Live`."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def become(self, plan: Plan, *, report: bool = True) -> engine.Outcome:
        """See :meth:`Live.become`."""
        if self._places is not None and self.plan is not None and shell.are_alike(self.plan, plan):
            sink = LiveSink(self._places, shell.specs(plan))
            outcome = self._merge(plan, sink, report)
            self.plan = plan
            return outcome
        self.close()
        tensors = StateDictSink(shell.specs(plan))
        outcome = self._merge(plan, tensors, report)
        self._load(plan, tensors.tensors)
        self.plan = plan
        return outcome

    def _merge(self, plan: Plan, sink: Sink, report: bool) -> engine.Outcome:
        [outcome] = engine.run(
            [plan], [sink], threads=self._threads, report=report, on_event=self.on_event
        )
        return outcome

    def _load(self, plan: Plan, tensors: dict[str, Any]) -> None:
        transformers = extras.load("transformers", "eval")
        with (
            tempfile.TemporaryDirectory(prefix="merganser-") as folder,
            _LOADING,
            shell.quiet(transformers),
        ):
            self._load_with(transformers, plan, shell.make(plan, Path(folder)), tensors)

    def _load_with(
        self, transformers: Any, plan: Plan, codec: Codec, tensors: dict[str, Any]
    ) -> None:
        import torch

        try:
            with torch.device("meta"):
                kind = type(transformers.AutoModelForCausalLM.from_config(codec.config))
        except Exception as error:  # a config can make libraries raise anything
            raise InputError(shell.cannot_make(codec.label, error)) from None
        self.tokenizer = codec.tokenizer
        names = list(tensors)
        self.module, report = kind.from_pretrained(
            None,
            config=codec.config,
            state_dict=tensors,
            dtype=getattr(torch, self.dtype_of(plan)),
            output_loading_info=True,
        )
        tensors.clear()
        if lacking := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
            raise InputError(
                f"{codec.label}: tensor {lacking[0]!r} of its model is missing or has another shape "
                f"({len(lacking)} such)"
            )
        self.module = self.module.to(self.device).eval()
        self._places = self._find(names, set(report["unexpected_keys"]))
        is_continuous = self.options.batching == "continuous"
        inference = ContinuousInference if is_continuous else Inference
        self._backend = inference(self.module, codec, batch_size=self._batch_size)

    def _find(self, names: Sequence[str], unused: set[str]) -> dict[str, Any] | None:
        """Return the module's parameter for each tensor of the merge; None if the mapping is not
        one to one."""
        state = dict(self.module.state_dict(keep_vars=True))
        places: dict[str, Any] = {}
        taken: set[int] = set()
        for name in names:
            tensor = state.get(name)
            if tensor is None and name not in unused:
                return None
            if tensor is not None and tensor.data_ptr() in taken:
                return None
            places[name] = tensor
            taken |= set() if tensor is None else {tensor.data_ptr()}
        written = all(tensor.data_ptr() in taken for tensor in state.values() if tensor.numel())
        return places if written else None


def evaluate_plan(
    plan: Plan,
    tasks: Sequence[Task],
    *,
    live: Live | None = None,
    samples: Path | None = None,
) -> dict[str, Score]:
    """Score a merge in memory.

    Args:
        plan: what to merge.
        tasks: the tasks to score it on.
        live: the live model to reuse between calls; a new one if None.
        samples: the file that completions are read from and stored in; None to store none.

    Returns:
        Scores by name: ``scorer``, or ``task/scorer`` if there are several tasks.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    stage = live or LiveModel()

    key = stage.key(plan) if samples is not None else {}
    result = running.evaluate(stage.backend_of(plan), tasks, key=key, samples=samples)
    return dict(result.scores)


def find_device(name: str) -> str:
    """Return torch's name of a device; ``auto`` becomes the best available one.

    Raises:
        RecipeError: when the device is not available.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        if reason.startswith("Expected one of"):  # and all that torch has ever known
            reason = "devices are auto, cpu, mps, cuda, and cuda:1 for the second GPU"
        raise RecipeError(f"device: {name!r} is not available ({reason})") from None
    return name
