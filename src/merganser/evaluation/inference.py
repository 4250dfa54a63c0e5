"""Completions by a transformers model in memory, in batches, with one random seed per request."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser import extras, system
from merganser.errors import ResourceError
from merganser.evaluation import drawing
from merganser.evaluation.codec import Codec, TextStream
from merganser.evaluation.generation import (
    Completion,
    OnTokens,
    Prompt,
    Request,
    Sampling,
    ignore_tokens,
)

if TYPE_CHECKING:
    import torch

MOST_AT_ONCE = 256
"""Maximum number of completions in a batch; in a larger one, a long completion delays too many others."""

FALLBACK_MEMORY = 8 * 2**30
"""Assumed total memory in bytes, if the system reports none."""

MEMORY_SHARE = 0.5
"""Fraction of the free memory that a batch's keys and values may take, by estimate."""


class Inference:
    """A backend: a transformers model, with static batches.

    Requests are sorted by prompt length and padded on the left. Tokens are drawn by the inverse of the
    cumulative distribution, with one random generator per request, seeded by the task's seed, the prompt
    and the sample's number. So draws do not depend on the other requests of a batch, except through
    rounding in the model's arithmetic. The model's generation config is ignored, except its end tokens.

    Attributes:
        batch_size: number of simultaneous completions; chosen automatically if None, and halved
            when memory runs out.
    """

    def __init__(
        self,
        model: Any,
        codec: Codec,
        *,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.codec = codec
        self.batch_size = batch_size

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`merganser.evaluation.generation.Backend`. Calls ``on_tokens`` at each step.

        Raises:
            InputError: when a prompt does not fit the model.
            ResourceError: when the memory does not suffice for a single request.
        """
        import torch

        rows = self.codec.encode_all([request.prompt for request in requests])
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        size = self.batch_size or self._guess(len(rows[order[0]]) + sampling.max_tokens)
        while order:
            chosen = order[:size]
            try:
                with torch.inference_mode():
                    completions = self._complete(
                        [rows[i] for i in chosen],
                        [requests[i] for i in chosen],
                        sampling,
                        on_tokens,
                    )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(chosen) == 1:
                    raise ResourceError(
                        f"{self.codec.label}: there is not enough memory for {len(rows[chosen[0]])} tokens of "
                        f"prompt and {sampling.max_tokens} of completion"
                    ) from None
                size = self.batch_size = max(1, len(chosen) // 2)
                release_memory()
                continue
            order = order[size:]
            yield from zip(chosen, completions, strict=True)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of the prompt's first sample in parts, as it is generated.

        The model runs in a separate thread until the completion ends, the context is full, or the
        iterator is closed. Stop texts are ignored.

        Returns:
            The full completion.

        Raises:
            InputError: the prompt does not fit the model.
            ResourceError: the memory does not suffice.
        """
        row = self.codec.encode(prompt)
        if (context := self.codec.context) is not None:
            room = min(sampling.max_tokens, context - len(row))
            sampling = replace(sampling, max_tokens=room)
        steps: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()
        feed = _Feed(steps, closed)

        def work() -> None:
            import torch

            try:
                with torch.inference_mode():
                    self._generate([row], [Request(prompt)], sampling, streamer=feed)
            except _Closed:
                pass
            except BaseException as error:
                steps.put(error)
            steps.put(None)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        text = TextStream(self.codec, sampling)
        try:
            while (item := steps.get()) is not None:
                if isinstance(item, BaseException):
                    if is_out_of_memory(item):
                        raise ResourceError(
                            f"{self.codec.label}: there is not enough memory"
                        ) from None
                    raise item
                yield text.add(item)
            yield text.finish()
            return text.completion
        finally:
            closed.set()
            worker.join()

    def _complete(
        self,
        rows: Sequence[Sequence[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens,
    ) -> list[Completion]:
        # A completion that ends by a stop text is followed by padding, without an end token.
        ends = [*self.codec.end_tokens, *([self.codec.padding] if sampling.stop else [])]
        output = self._generate(rows, requests, sampling, _Counter(len(rows), ends, on_tokens))
        width = max(map(len, rows))
        return [self.codec.completion(row[width:].tolist(), sampling) for row in output.cpu()]

    def _generate(
        self,
        rows: Sequence[Sequence[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        streamer: Any = None,
    ) -> torch.Tensor:
        """Return token ids [requests, length]: prompts padded on the left, completions on the right."""
        import torch

        transformers = extras.load("transformers", "eval")

        ends = self.codec.end_tokens
        pad = self.codec.padding
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        config = transformers.GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=pad,
            stop_strings=list(sampling.stop) or None,
        )
        processors = transformers.LogitsProcessorList()
        if sampling.temperature > 0:
            processors.append(_drawing(requests, sampling, width))
        device = self.model.device
        output: torch.Tensor = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=processors,
            tokenizer=self.codec.tokenizer if sampling.stop else None,
            streamer=streamer,
        )
        return output

    def _guess(self, length: int) -> int:
        """Return a batch size whose keys and values fit into a share of the free memory."""
        size = next(self.model.parameters()).element_size()
        each = self.codec.key_value_bytes(size) * length
        each += (
            12 * self.model.config.get_text_config().vocab_size
        )  # logits and their temporary copies
        return int(
            min(MOST_AT_ONCE, max(1, MEMORY_SHARE * free_memory(str(self.model.device)) // each))
        )


class _Closed(Exception):
    """The reader of a stream has closed it."""


class _Feed:
    """The ``streamer`` that transformers calls with new tokens: first the prompt, then one at a time."""

    def __init__(self, items: queue.SimpleQueue[Any], closed: threading.Event) -> None:
        self.items = items
        self.closed = closed
        self.begun = False

    def put(self, tokens: torch.Tensor) -> None:
        if self.closed.is_set():
            raise _Closed
        if self.begun:
            self.items.put([int(token) for token in tokens.flatten()])
        self.begun = True

    def end(self) -> None: ...


class _Counter:
    """A ``streamer`` of transformers that counts the tokens of a batch, without padding."""

    def __init__(self, rows: int, ends: Sequence[int], on_tokens: OnTokens) -> None:
        self.running = np.ones(rows, bool)
        self.ends = list(ends)
        self.on_tokens = on_tokens
        self.begun = False

    def put(self, tokens: torch.Tensor) -> None:
        if self.begun:  # the first tokens are the prompts'
            self.on_tokens(int(self.running.sum()))
            self.running &= ~np.isin(tokens.flatten().numpy(), self.ends)
        self.begun = True

    def end(self) -> None: ...


def _drawing(
    requests: Sequence[Request], sampling: Sampling, width: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a logits processor that draws one token per row; see :func:`drawing.draw`."""
    numbers = [
        drawing.numbers_of(drawing.seed_of(request, sampling), sampling.max_tokens)
        for request in requests
    ]

    def draw(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = [row[ids.shape[1] - width] for row in numbers]
        return drawing.draw(scores, step, sampling.temperature, sampling.top_p)

    return draw


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports insufficient memory of the machine or the GPU."""
    import torch

    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in message or "can't allocate memory" in message
    )


def release_memory() -> None:
    """Collect garbage, and free the GPU memory that torch caches without using it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory(device: str) -> int:
    """Return the free memory of a torch device in bytes: of the GPU, or of the machine."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    facts: Mapping[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            facts = {k: int(v.split()[0]) * 1024 for k, _, v in (x.partition(":") for x in lines)}
    except (OSError, ValueError, IndexError):
        pass
    return facts.get("MemAvailable", (system.memory_size() or FALLBACK_MEMORY) // 2)
