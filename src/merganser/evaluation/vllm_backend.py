"""Completions by vLLM in this process, whose weights can be replaced while it runs."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from merganser import extras
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import drawing, vllm_settings
from merganser.evaluation.codec import Codec, TextStream
from merganser.evaluation.engines import VllmOptions, vllm_version
from merganser.evaluation.generation import (
    Completion,
    EngineFailure,
    OnTokens,
    Prompt,
    Request,
    Sampling,
    ignore_tokens,
)
from merganser.evaluation.vllm_feed import Feed

if TYPE_CHECKING:
    import torch

IN_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run the engine in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # V2 has another interface for logits processors
}
"""Further default values of environment variables."""

Result = TypeVar("Result")


class VllmBackend:
    """A backend: a vLLM engine, started without weights; :meth:`load` sets them.

    Encoding, sampling, decoding and token counts are those of the transformers engine: vLLM receives token
    ids, draws with :mod:`merganser.evaluation.vllm_drawing`, and returns token ids, which ``codec`` decodes.

    Args:
        folder: a folder with the model's config and tokenizer, without weights; it must exist as long
            as the engine.
        codec: the model's codec.
        dtype: torch's name of the compute dtype, such as ``bfloat16``.
        options: the engine's options.
        length: maximum number of tokens of a prompt with its completion.
        at_once: maximum number of simultaneous completions; None for :data:`MOST_AT_ONCE`. The option
            ``max_num_seqs`` takes precedence.

    Raises:
        InputError: vLLM does not support the model.
        RecipeError: vLLM rejects an option.
    """

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        *,
        dtype: str,
        options: VllmOptions,
        length: int,
        at_once: int | None = None,
    ) -> None:
        self.codec = codec
        self.length = length
        self._workers = options.tensor_parallel_size
        self._numbers = itertools.count()
        self._on_tokens: OnTokens = ignore_tokens
        vllm = _import()
        if not options.unchecked:
            _check_known(vllm, codec)
        arguments = vllm_settings.engine_arguments(
            folder,
            codec,
            dtype=dtype,
            options=options,
            length=length,
            at_once=at_once,
            on_cpu=_is_on_cpu(vllm),
        )
        arguments["logits_processors"] = ["merganser.evaluation.vllm_drawing:Drawing"]
        self._engine = _start(vllm, codec.label, arguments | options.arguments)
        self._sampling_params = vllm.SamplingParams
        self._kinds = vllm.sampling_params.RequestOutputKind
        self._count_tokens()

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the weights of the engine's model, and clear its prefix cache.

        Args:
            tensors: pairs of name and tensor, for all tensors, named as in the model's files.

        Raises:
            InputError: weights of the model are missing.
            EngineFailure: the engine failed, and must be created again.
        """
        lacking = self._send(tensors) if self._workers > 1 else self._call("load", tensors)
        if missing := sorted({name for names in lacking for name in names}):
            raise InputError(
                f"{self.codec.label}: lacks tensor {missing[0]!r}, which vLLM's model needs "
                f"({len(missing)} missing in all)"
            )
        # The prefix cache contains keys and values of the old weights.
        if not self._guard(self._engine.reset_prefix_cache):
            raise EngineFailure(f"{self.codec.label}: vLLM keeps blocks of the old weights")

    def _send(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[list[str]]:
        """Send tensors to workers in other processes; return the missing names by worker."""
        feed = Feed(tensors, self._workers)
        try:
            with feed:
                return self._call("receive", *feed.address)
        except EngineFailure:
            if isinstance(feed.failure, MerganserError):
                raise feed.failure from None
            raise

    def _call(self, method: str, *arguments: Any) -> list[list[str]]:
        """Call a method of :class:`vllm_worker.Loading` in every worker; return the results by worker."""
        completions: list[list[str]] = self._guard(
            lambda: self._engine.collective_rpc(f"merganser_{method}", args=arguments)
        )
        return completions

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`merganser.evaluation.generation.Backend`.

        Raises:
            InputError: a prompt does not fit the model.
            EngineFailure: the engine failed, and must be created again.
        """
        rows = self.codec.encode_all([request.prompt for request in requests])
        self._on_tokens = on_tokens
        for index, tokens in self._run(rows, requests, sampling):
            yield index, self.codec.completion(tokens, sampling)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Stream one completion's text; see :meth:`merganser.evaluation.inference.Inference.stream`.

        Raises:
            InputError: the prompt does not fit the model.
            EngineFailure: the engine failed, and must be created again.
        """
        row = self.codec.encode(prompt)
        self._on_tokens = ignore_tokens
        text = TextStream(self.codec, sampling)
        for _, tokens in self._run([row], [Request(prompt)], sampling, in_parts=True):
            yield text.add(tokens)
        yield text.finish()
        return text.completion

    def close(self) -> None:
        """Stop the engine and free its memory."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(Exception):  # a failed engine may not shut down cleanly
                engine.engine_core.shutdown()
            del engine
            gc.collect()

    def needs(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """The number of tokens of the longest request with its completion; see :func:`length_of`."""
        return length_of(self.codec, requests, sampling)

    def _run(
        self,
        rows: Sequence[Sequence[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        in_parts: bool = False,
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield index and token ids of each ended request; with ``in_parts``, its new ids at each step."""
        running: dict[str, int] = {}
        try:
            for index, (row, request) in enumerate(zip(rows, requests, strict=True)):
                params = self._params(row, request, sampling, in_parts)
                number = str(next(self._numbers))
                prompt = {"prompt_token_ids": list(row)}
                self._guard(partial(self._engine.add_request, number, prompt, params))
                running[number] = index
            while running:
                for output in self._guard(self._engine.step):
                    number = output.request_id.partition("-")[0]
                    if number not in running:
                        continue
                    if in_parts or output.finished:
                        yield running[number], list(output.outputs[0].token_ids)
                    if output.finished:
                        del running[number]
        finally:
            if running and self._engine is not None:
                with suppress(Exception):  # a failed engine has no requests to abort
                    self._engine.abort_request(list(running))

    def _params(
        self, row: Sequence[int], request: Request, sampling: Sampling, in_parts: bool
    ) -> Any:
        draws: dict[str, Any] = {}
        if sampling.temperature > 0:
            draws["seed"] = f"{drawing.seed_of(request, sampling):x}"
            draws |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return self._sampling_params(
            temperature=0.0,
            max_tokens=max(1, min(sampling.max_tokens, self.length - len(row))),
            stop_token_ids=self.codec.end_tokens,
            ignore_eos=True,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop),
            output_kind=self._kinds.DELTA if in_parts else self._kinds.FINAL_ONLY,
            extra_args={"merganser": draws} if draws else None,
        )

    def _count_tokens(self) -> None:
        """Call ``on_tokens`` at every step; vLLM itself reports a request only when it ends."""
        core = self._engine.engine_core
        get_output = core.get_output

        def counted() -> Any:
            output = get_output()
            self._on_tokens(sum(len(each.new_token_ids) for each in output.outputs))
            return output

        core.get_output = counted

    def _guard(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work``, with its exceptions converted.

        Raises:
            EngineFailure: the engine failed.
        """
        try:
            return work()
        except MerganserError:
            raise
        except Exception as error:
            raise EngineFailure(f"{self.codec.label}: vLLM failed ({_reason(error)})") from error


def length_of(codec: Codec, requests: Sequence[Request], sampling: Sampling) -> int:
    """Return the number of tokens of the longest request with its completion, at most the model's context.

    Raises:
        InputError: a prompt does not fit the model.
    """
    rows = codec.encode_all([request.prompt for request in requests])
    wanted = max(map(len, rows), default=1) + sampling.max_tokens
    return min(wanted, codec.context or wanted)


def _import() -> Any:
    for name, value in (vllm_settings.ENVIRONMENT | IN_PROCESS).items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vllm = extras.load("vllm", "vllm")
        extras.load("vllm.sampling_params", "vllm")
    return vllm


def _start(vllm: Any, label: str, arguments: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return vllm.LLM(**arguments).llm_engine
    except TypeError as error:
        raise RecipeError(
            f"engine_options.arguments: vLLM refuses them ({_reason(error)})"
        ) from None
    except Exception as error:  # vLLM may raise any exception
        raise InputError(
            f"{label}: vLLM {vllm_version()} cannot run this model ({_reason(error)}); "
            "engine: transformers may"
        ) from None


def _check_known(vllm: Any, codec: Codec) -> None:
    """Check that vLLM supports the model, and that replacing its weights is tested.

    Raises:
        InputError: the model is not supported, or replacing its weights is not tested.
    """
    names = list(codec.config.architectures or [])
    known = vllm.ModelRegistry.get_supported_archs()
    if not any(name in known for name in names):
        what = names[0] if names else "a model without architectures in its config.json"
        raise InputError(
            f"{codec.label}: vLLM {vllm_version()} does not know {what}; use engine: transformers"
        )
    vllm_settings.check_tested(codec)


def _is_on_cpu(vllm: Any) -> bool:
    platforms = extras.load("vllm.platforms", "vllm")
    return bool(platforms.current_platform.is_cpu())


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
