"""A live vLLM model: tensors stream from the merge engine into vLLM."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from merganser import engine
from merganser.engine.stream import TensorStream
from merganser.errors import MerganserError, RecipeError
from merganser.evaluation import engines
from merganser.evaluation.codec import Codec
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.generation import (
    Completion,
    EngineFailure,
    OnTokens,
    Prompt,
    Request,
    Sampling,
    ignore_tokens,
)
from merganser.evaluation.vllm_backend import VllmBackend, length_of
from merganser.planning import Plan
from merganser.study import shell
from merganser.study.live_model import Computing, Live, Subject, find_device

LENGTH = 2048
"""Default maximum of tokens in a prompt and its completion."""

STEP = 256
"""Lengths are rounded up to multiples of this, so that a slightly longer task needs no new engine."""

ATTEMPTS = 2
"""Maximum number of attempts to generate a point's completions when the engine fails."""


class VllmModel(Live):
    """A vLLM model that :meth:`become` turns into the merge of any plan.

    The engine starts with the first plan's config and tokenizer and without weights. Each plan of
    the same shape is then merged and passed to the engine tensor by tensor, so that no weights are
    written and memory holds no second copy of the model. A plan of another shape restarts the engine,
    and so do completions that are longer than the engine's maximum.

    Args:
        device: ``auto``, or the device of the installed vLLM: ``cpu`` or ``cuda``.
        dtype: the compute dtype.
        threads: threads of the merge; None for the default.
        batch_size: number of simultaneous completions; vLLM's option ``max_num_seqs`` overrides it.
        options: options of the vLLM engine.

    Raises:
        MerganserError: vLLM is not installed, or its version is not tested.
        RecipeError: the installed vLLM uses another device.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        dtype: Computing = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        options: VllmOptions | None = None,
    ) -> None:
        self.options = options or VllmOptions()
        engines.check_installed(self.options)
        super().__init__(self.options, _device(device), dtype, threads)
        self._batch_size = batch_size
        self._shape: Plan | None = None
        self._wanted: Plan | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._codec: Codec | None = None
        self._length = 0
        self._running: VllmBackend | None = None

    @property
    def backend(self) -> VllmModel:
        """See :class:`merganser.study.live_model.Live`."""
        if self._wanted is None:
            raise MerganserError("the live model holds no merge yet; call become() first")
        return self

    @property
    def codec(self) -> Codec:
        """The tokenizer and config of the current model."""
        if self._codec is None:
            raise MerganserError("the live model holds no merge yet; call become() first")
        return self._codec

    @property
    def has_chat_template(self) -> bool:
        """See :class:`merganser.study.live_model.Live`."""
        return bool(getattr(self.codec.tokenizer, "chat_template", None))

    def become(self, plan: Plan, *, report: bool = True) -> engine.Outcome:
        """See :class:`merganser.study.live_model.Live`.

        Raises:
            EngineFailure: vLLM failed; the next call restarts it.
        """
        self._open(plan)
        running = self._start()
        self.plan = None
        stream = TensorStream(plan, threads=self._threads, report=report, on_event=self.on_event)
        try:
            running.load(stream)
        except BaseException:
            self._stop()  # some weights are still the old ones
            raise
        self.plan = plan
        assert stream.outcome is not None
        return stream.outcome

    def _complete(
        self, subject: Subject, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Complete prompts with a merge; restart an engine that fails once."""
        left = list(range(len(requests)))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._open(subject.plan)
                self._demand(requests, sampling)
                self.settle(subject.plan, subject.on_outcome)
                asked = list(left)
                batch = [requests[index] for index in asked]
                assert self._running is not None
                for place, completion in self._running(batch, sampling, subject.on_tokens):
                    left.remove(asked[place])
                    yield asked[place], completion
                return
            except EngineFailure as error:
                self._stop()
                if attempt == ATTEMPTS:
                    raise MerganserError(
                        f"{error}, {ATTEMPTS} times; stored completions are reused: run it "
                        "again, or use engine: transformers"
                    ) from error

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :class:`merganser.evaluation.generation.StreamingBackend`."""
        assert self._wanted is not None
        return self.backend_of(self._wanted, on_tokens=on_tokens)(requests, sampling)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """See :class:`merganser.evaluation.generation.StreamingBackend`.

        Raises:
            EngineFailure: vLLM failed; the next call restarts it.
        """
        assert self._wanted is not None
        self._demand([Request(prompt)], sampling)
        self.settle(self._wanted)
        assert self._running is not None
        try:
            return (yield from self._running.stream(prompt, sampling))
        except EngineFailure:
            self._stop()
            raise

    def close(self) -> None:
        """See :class:`merganser.study.live_model.Live`."""
        self._stop()
        self._shape = self._wanted = self._codec = None
        self._length = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _open(self, plan: Plan) -> None:
        """Write a plan's config and tokenizer, unless the running engine has equal ones."""
        if self._shape is None or not shell.are_alike(self._shape, plan):
            self.close()
            self._folder = tempfile.TemporaryDirectory(prefix="merganser-")
            self._codec = shell.make(plan, Path(self._folder.name))
            self._shape = plan
        self._wanted = plan

    def _demand(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Stop the engine if its maximum length is too short for some requests."""
        longest = length_of(self.codec, requests, sampling)
        allowed = self.options.max_model_len
        if allowed is not None and longest > allowed:
            raise RecipeError(
                f"engine_options.max_model_len: a prompt and its completion may take {longest:,} "
                f"tokens, {allowed:,} are allowed"
            )
        if longest > self._length:
            self._stop()
            self._length = self._within(-(-longest // STEP) * STEP)

    def _within(self, length: int) -> int:
        """Return a length, limited to what the model and the options allow."""
        return min(length, self.codec.context or length, self.options.max_model_len or length)

    def _start(self) -> VllmBackend:
        self._length = self._length or self._within(self.options.max_model_len or LENGTH)
        if self._running is None:
            assert self._folder is not None
            assert self._shape is not None
            self._running = VllmBackend(
                Path(self._folder.name),
                self.codec,
                dtype=self.dtype_of(self._shape),
                options=self.options,
                length=self._length,
                at_once=self._batch_size,
            )
        return self._running

    def _stop(self) -> None:
        running, self._running, self.plan = self._running, None, None
        if running is not None:
            running.close()


def _device(name: str) -> str:
    """Return the device of the installed vLLM.

    Raises:
        RecipeError: the requested device is another one.
    """
    installed = "cpu" if engines.is_vllm_for_cpus() else find_device("auto")
    if name not in ("auto", installed):
        raise RecipeError(
            f"device: the installed vLLM computes on {installed}, not on {name}; choose among several GPUs "
            "by CUDA_VISIBLE_DEVICES"
        )
    return installed
