"""One model in memory that becomes one merge after the other, without writing any."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from merganser import engine, extras
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import running
from merganser.evaluation.codec import Codec
from merganser.evaluation.generation import (
    Backend,
    Completion,
    OnTokens,
    Request,
    Sampling,
    ignore_tokens,
)
from merganser.evaluation.inference import Inference
from merganser.evaluation.statistics import Score
from merganser.evaluation.tasks import Task
from merganser.planning import Plan
from merganser.release import config as configs
from merganser.release import contents
from merganser.release import tokenizer as tokenizers
from merganser.sinks import LiveSink, StateDictSink

Computing = Literal["auto", "float32", "bfloat16", "float16"]
"""What a model computes in: ``auto`` is float32 on the CPU, and the plan's own dtype on a GPU."""


class LiveModel:
    """A model that :meth:`become` makes whatever a plan says.

    The first plan is blended in memory and loaded as transformers loads a folder, with the config and the
    tokenizer that the merge would write. From then on a plan of the same shape is blended into the
    parameters in place, each byte converted once; another is loaded anew, and so are models whose
    weights have other names in memory than on the disk.

    Args:
        device: ``auto``, or what torch calls it.
        dtype: what the model computes in.
        threads: of the merge; None for as many as pay off.
        batch_size: of completions at once; found by itself if None.

    Attributes:
        module: the transformers model; None before the first plan.
        tokenizer: its tokenizer.
        plan: the plan that it is now.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: Computing = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.device = _device(device)
        self.computing = dtype
        self.module: Any = None
        self.tokenizer: Any = None
        self.plan: Plan | None = None
        self._threads = threads
        self._batch_size = batch_size
        self._end_tokens: list[int] = []
        self._places: dict[str, Any] | None = None
        self._backend: Inference | None = None

    @property
    def backend(self) -> Inference:
        """What completes prompts with the model as it is now."""
        if self._backend is None:
            raise MerganserError("a live model must become some plan first")
        return self._backend

    def backend_of(
        self,
        plan: Plan,
        on_outcome: Callable[[engine.Outcome], None] | None = None,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Backend:
        """A backend that becomes a plan when it is first asked something.

        Args:
            plan: what to be.
            on_outcome: told what the engine measured; None to measure nothing.
            on_tokens: gets the number of tokens at each step.
        """

        def backend(
            requests: Sequence[Request], sampling: Sampling
        ) -> Iterator[tuple[int, Completion]]:
            return self.settled(plan, on_outcome)(requests, sampling, on_tokens)

        return backend

    def settled(
        self, plan: Plan, on_outcome: Callable[[engine.Outcome], None] | None = None
    ) -> Inference:
        """Be what a plan says, if that is not so already; see :meth:`backend_of`."""
        if self.plan is not plan:
            outcome = self.become(plan, report=on_outcome is not None)
            if on_outcome is not None:
                on_outcome(outcome)
        return self.backend

    def become(self, plan: Plan, *, report: bool = True) -> engine.Outcome:
        """Be what a plan says.

        Args:
            plan: what to be.
            report: whether to measure effective weights.

        Returns:
            What the engine measured.

        Raises:
            InputError: when transformers cannot make the model, or lacks some of its weights.
        """
        if self._places is not None and self.plan is not None and _alike(self.plan, plan):
            sink = LiveSink(self._places, _specs(plan))
            [outcome] = engine.run([plan], [sink], threads=self._threads, report=report)
            self.plan = plan
            return outcome
        self.module = self.tokenizer = self.plan = self._places = self._backend = None
        whole = StateDictSink(_specs(plan))
        [outcome] = engine.run([plan], [whole], threads=self._threads, report=report)
        self._load(plan, whole.tensors)
        self.plan = plan
        return outcome

    def _load(self, plan: Plan, tensors: dict[str, Any]) -> None:
        transformers = extras.load("transformers", "eval")
        with _quietly(transformers):
            self._load_with(transformers, plan, tensors)

    def _load_with(self, transformers: Any, plan: Plan, tensors: dict[str, Any]) -> None:
        import torch

        label = str(plan.sources[plan.donor].reference)
        if not plan.sources[plan.donor].checkpoint.config:
            raise InputError(f"{label}: has no config.json, so it cannot be run")
        _check_runnable(plan.sources[plan.donor].checkpoint.config, label)
        with tempfile.TemporaryDirectory(prefix="merganser-") as home:
            folder = Path(home)  # of small files: config and tokenizer, never weights
            configs.write_config(plan, folder)
            configs.write_companions(plan, folder)
            tokenizers.write_tokenizer(plan, folder)
            try:
                config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False
                )
                with torch.device("meta"):
                    kind = type(transformers.AutoModelForCausalLM.from_config(config))
            except Exception as error:  # whatever a config can make libraries raise
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{label}: transformers cannot make this model ({reason})"
                ) from None
            generation = _read_generation(transformers, folder, config)
        ends = [generation.eos_token_id, config.get_text_config().eos_token_id]
        ends.append(self.tokenizer.eos_token_id)
        self._end_tokens = _numbers(ends)
        names = list(tensors)
        self.module, told = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=self._computes_in(plan),
            output_loading_info=True,
        )
        tensors.clear()
        if lacking := sorted({*told["missing_keys"], *map(str, told["mismatched_keys"])}):
            raise InputError(
                f"{label}: {lacking[0]!r}, which its model needs, is not among its weights, or has "
                f"another shape ({len(lacking)} such)"
            )
        self.module = self.module.to(self.device).eval()
        self._places = self._find(names, set(told["unexpected_keys"]))
        codec = Codec(self.tokenizer, self._end_tokens, config, label)
        self._backend = Inference(self.module, codec, batch_size=self._batch_size)

    def _computes_in(self, plan: Plan) -> Any:
        import torch

        name: str = self.computing
        if name == "auto":
            name = "float32" if self.device == "cpu" else plan.dtype.name
        return getattr(torch, name)

    def _find(self, names: Sequence[str], unused: set[str]) -> dict[str, Any] | None:
        """Where each tensor of the merge lies in the module; None if that is not one to one."""
        own = dict(self.module.state_dict(keep_vars=True))
        found: dict[str, Any] = {}
        taken: set[int] = set()
        for name in names:
            tensor = own.get(name)
            if tensor is None and name not in unused:
                return None
            if tensor is not None and tensor.data_ptr() in taken:
                return None
            found[name] = tensor
            taken |= set() if tensor is None else {tensor.data_ptr()}
        written = all(tensor.data_ptr() in taken for tensor in own.values() if tensor.numel())
        return found if written else None


def evaluate_plan(
    plan: Plan,
    tasks: Sequence[Task],
    *,
    live: LiveModel | None = None,
    samples: Path | None = None,
) -> dict[str, Score]:
    """Score a merge in memory.

    Args:
        plan: what to merge.
        tasks: what it is asked.
        live: the live model to use, for one plan after the other; a new one if None.
        samples: the file in which completions are kept, and looked for; None to keep none.

    Returns:
        Scores by name: the scorer's, or ``task/scorer`` where there are several tasks.

    Raises:
        MerganserError: of the kind that fits.
    """
    stage = live or LiveModel()

    key = model_key(plan, stage) if samples is not None else {}
    found = running.evaluate(stage.backend_of(plan), tasks, key=key, samples=samples)
    return dict(found.scores)


def model_key(plan: Plan, live: LiveModel) -> dict[str, str]:
    """All that decides a model's completions, by what it is called: the recipe, the contents of its
    inputs, the dtype and the device.

    Raises:
        InputError: when an input cannot be read.
    """
    models = {f"the model {name}": digest for name, digest in contents.of_models(plan).items()}
    return {
        "the recipe": plan.digest,
        **models,
        "the dtype": str(live.computing),
        "the device": live.device,
    }


def _specs(plan: Plan) -> Mapping[str, Any]:
    return {job.name: job.spec for job in plan.jobs}


def _alike(one: Plan, other: Plan) -> bool:
    """Whether two plans make models of one shape, config and tokenizer."""
    if one is other:
        return True
    return (
        _specs(one) == _specs(other)
        and configs.edited_config(one) == configs.edited_config(other)
        and one.sources[one.donor].folders == other.sources[other.donor].folders
        and one.chat_template == other.chat_template
        and one.tokenizer is None
        and other.tokenizer is None
    )


def _read_generation(transformers: Any, folder: Path, config: Any) -> Any:
    if (folder / "generation_config.json").is_file():
        try:
            return transformers.GenerationConfig.from_pretrained(folder)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"generation_config.json cannot be read ({reason})") from None
    return transformers.GenerationConfig(eos_token_id=config.get_text_config().eos_token_id)


def _numbers(found: Sequence[Any]) -> list[int]:
    """All end tokens of a model: one, several or none in each place."""
    flat = [i for part in found for i in (part if isinstance(part, list) else [part])]
    return sorted({i for i in flat if isinstance(i, int) and not isinstance(i, bool)})


def _check_runnable(config: Mapping[str, Any], label: str) -> None:
    """Refuse a model that cannot generate text here, whatever its weights are.

    Raises:
        InputError: it needs code of its own, or its class has no head for language.
    """
    import transformers

    if config.get("auto_map") and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{label}: its model is code of its own (auto_map in config.json), which is never run here; "
            "write the merge, and load it with trust_remote_code=True yourself"
        )
    classes = config.get("architectures") or []
    heads = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
    if classes and all(str(name).endswith(heads) for name in classes):
        raise InputError(f"{label}: is a {classes[0]}, which classifies and does not generate text")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecipeError(f"device: {name!r} is not there ({reason})") from None
    return name


def _quietly(transformers: Any) -> ExitStack:
    """What the library reports of loading a model that it was never given as files is no news."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with ExitStack() as stack:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        stack.callback(logging.set_verbosity, verbosity)
        if bars:
            stack.callback(logging.enable_progress_bar)
        return stack.pop_all()
