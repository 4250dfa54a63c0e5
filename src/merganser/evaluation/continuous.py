"""Continuous batching by transformers: a new request joins the batch as soon as a completion ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from merganser import extras
from merganser.errors import MerganserError
from merganser.evaluation.engines import CONTINUOUS_SINCE
from merganser.evaluation.generation import (
    Completion,
    EngineFailure,
    OnTokens,
    Request,
    Sampling,
    ignore_tokens,
)
from merganser.evaluation.inference import MEMORY_SHARE, MOST_AT_ONCE, Inference, free_memory

PAGE = 32
"""Tokens per page of the key-value cache."""

MOST_TOKENS = 2048
"""Maximum number of tokens, of prompts and completions together, that one step computes."""

PATIENCE = 600.0
"""Seconds without a finished completion after which the batch fails."""


class ContinuousInference(Inference):
    """A backend: a transformers model with continuous batching.

    Only greedy completions without stop texts use continuous batches; their results are those of static
    batches. Other completions use static batches, because continuous batching in transformers has one
    seed for all requests and no stop texts.
    """

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :class:`merganser.evaluation.inference.Inference`.

        Raises:
            EngineFailure: when transformers' batches fail.
        """
        if sampling.temperature > 0 or sampling.stop:
            yield from super().__call__(requests, sampling, on_tokens)
            return
        rows = self.codec.encode_all([request.prompt for request in requests])
        for index, tokens in self.run(rows, [sampling.max_tokens] * len(rows)):
            on_tokens(len(tokens))
            yield index, self.codec.completion(tokens, sampling)

    def run(
        self, rows: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the index of each prompt and its generated token ids, as soon as it is finished.

        Args:
            rows: the token ids of each prompt.
            lengths: the maximum number of generated tokens of each prompt.

        Raises:
            MerganserError: when the installed transformers has no continuous batching.
            EngineFailure: when transformers' batches fail.
        """
        transformers = extras.load("transformers", "eval")
        if not hasattr(self.model, "init_continuous_batching"):
            raise MerganserError(
                f"engine_options.batching: this transformers ({transformers.__version__}) has no "
                f"usable continuous batching; install transformers {CONTINUOUS_SINCE} or newer, or "
                "set batching: static"
            )
        longest = max(len(row) + length for row, length in zip(rows, lengths, strict=True))
        before = self.model.config._attn_implementation
        manager = self.model.init_continuous_batching(
            generation_config=transformers.GenerationConfig(
                do_sample=False, eos_token_id=self.codec.end_tokens or [-1]
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=self._blocks(longest, len(rows)),
                max_batch_tokens=MOST_TOKENS,
                allow_block_sharing=False,  # shared prefix blocks would survive a change of weights
            ),
        )
        manager.start()
        try:
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                manager.add_request(list(row), request_id=str(index), max_new_tokens=length)
            for _ in rows:
                result: Any = manager.get_result(timeout=PATIENCE)
                if result is None or result.error is not None:
                    reason = "no answer" if result is None else str(result.error)
                    raise EngineFailure(
                        f"{self.codec.label}: transformers' continuous batching failed ({reason})"
                    )
                yield int(result.request_id), list(result.generated_tokens)
        finally:
            manager.stop(block=True, hard_stop=True)
            self.model.set_attn_implementation(before)

    def _blocks(self, longest: int, rows: int) -> int:
        """The number of cache pages: enough for a full batch, within :data:`MEMORY_SHARE` of free memory."""
        size = next(self.model.parameters()).element_size()
        each = -(-longest // PAGE) + 1
        bound = MEMORY_SHARE * free_memory(str(self.model.device))
        bound //= self.codec.key_value_bytes(size) * PAGE
        return int(max(each, min(each * min(rows, self.batch_size or MOST_AT_ONCE), bound)))
