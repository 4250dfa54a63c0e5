"""Completions by a transformers model in memory: batched, resumable, and each drawn by its own seed."""

from __future__ import annotations

import gc
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser import extras, system
from merganser.errors import InputError, ResourceError
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
"""Completions of a batch, at most: beyond, one that runs long holds up too many."""

FALLBACK_MEMORY = 8 * 2**30
"""Bytes of memory that a machine is taken to have where it does not say."""

MEMORY_SHARE = 0.5
"""Of the free memory that keys and values of a batch may take, by estimate."""


class Inference:
    """A backend: a model and its tokenizer.

    Requests are sorted by their prompts' lengths and padded on the left. Drawing goes by the inverse of the
    cumulative distribution, with numbers of a generator of each request's own, made of the seed, the
    prompt and the sample's number: what is drawn does not depend on what else is in the batch, but for
    the last bits of the model's own arithmetic. Of the model's generation config only the end tokens count.

    Attributes:
        batch_size: of completions at once; found when None, and halved where memory does not suffice.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        end_tokens: Sequence[int],
        *,
        label: str = "the model",
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_tokens = list(end_tokens)
        self.label = label
        self.batch_size = batch_size

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`merganser.evaluation.generation.Backend`; tokens are counted within a batch too.

        Raises:
            InputError: when the model cannot take a prompt.
            ResourceError: when memory does not suffice for one request.
        """
        import torch

        prompts = {_text(r.prompt): r.prompt for r in requests}
        ids = {text: self._encode(prompt) for text, prompt in prompts.items()}
        rows = [ids[_text(request.prompt)] for request in requests]
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        size = self.batch_size or self._guess(len(rows[order[0]]) + sampling.max_tokens)
        while order:
            chosen = order[:size]
            try:
                with torch.inference_mode():
                    found = self._complete(
                        [rows[i] for i in chosen],
                        [requests[i] for i in chosen],
                        sampling,
                        on_tokens,
                    )
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if len(chosen) == 1:
                    raise ResourceError(
                        f"{self.label}: memory does not suffice for {len(rows[chosen[0]])} tokens of "
                        f"prompt and {sampling.max_tokens} of completion"
                    ) from None
                size = self.batch_size = max(1, len(chosen) // 2)
                _free()
                continue
            order = order[size:]
            yield from zip(chosen, found, strict=True)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """One completion's text as it comes: the one that a call gives for the prompt's first sample.

        The model works in a thread of its own until it is done, the context is full, or the iterator is
        closed. Stop texts are not looked for.

        Returns:
            The whole completion.

        Raises:
            InputError: when the model cannot take the prompt.
            ResourceError: when memory does not suffice.
        """
        row = self._encode(prompt)
        if (context := self._context()) is not None:
            room = min(sampling.max_tokens, context - len(row))
            sampling = replace(sampling, max_tokens=room)
        told: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()
        feed = _Feed(told, closed)

        def work() -> None:
            import torch

            try:
                with torch.inference_mode():
                    self._generate([row], [Request(prompt)], sampling, streamer=feed)
            except _Closed:
                pass
            except BaseException as error:
                told.put(error)
            told.put(None)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        tokens: list[int] = []
        shown = ""
        try:
            while (found := told.get()) is not None:
                if isinstance(found, BaseException):
                    if _out_of_memory(found):
                        raise ResourceError(f"{self.label}: memory does not suffice") from None
                    raise found
                tokens += found
                text = self._completion(tokens, sampling).text
                if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a letter
                    yield text[len(shown) :]
                    shown = text
            completion = self._completion(tokens, sampling)
            yield completion.text[len(shown) :]
            return completion
        finally:
            closed.set()
            worker.join()

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt)["input_ids"]
        else:
            if not getattr(self.tokenizer, "chat_template", None):
                raise InputError(
                    f"{self.label}: its tokenizer has no chat template; set chat: false to give "
                    "problems as plain text"
                )
            try:
                found = self.tokenizer.apply_chat_template(
                    [dict(message) for message in prompt],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                )
            except Exception as error:  # a template may raise whatever it likes
                reason = " ".join(str(error).split())[:120]
                raise InputError(
                    f"{self.label}: its chat template refuses a prompt ({reason})"
                ) from None
            ids = found["input_ids"]
        if not ids:
            raise InputError(f"{self.label}: a prompt has no tokens")
        context = self._context()
        if context is not None and len(ids) >= context:
            text = " ".join(_text(prompt).split())
            raise InputError(
                f"{self.label}: a prompt has {len(ids):,} tokens, and the model's context is "
                f"{context:,}: {text[:60]}{'…' if len(text) > 60 else ''}"
            )
        return [int(i) for i in ids]

    def _context(self) -> int | None:
        """The most tokens that the model takes by its config; None where that does not say."""
        config = self.model.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None)
        if not isinstance(length, int) or length <= 0:
            return None
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        factor = rope.get("factor", 1) if isinstance(rope, Mapping) else 1
        return int(length * max(1, factor)) if isinstance(factor, int | float) else length

    def _complete(
        self,
        rows: Sequence[Sequence[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens,
    ) -> list[Completion]:
        # A completion that ends by a stop text is followed by padding, without an end token.
        ends = [*self.end_tokens, *([self._padding()] if sampling.stop else [])]
        output = self._generate(rows, requests, sampling, _Counter(len(rows), ends, on_tokens))
        width = max(map(len, rows))
        return [self._completion(row[width:].tolist(), sampling) for row in output.cpu()]

    def _generate(
        self,
        rows: Sequence[Sequence[int]],
        requests: Sequence[Request],
        sampling: Sampling,
        streamer: Any = None,
    ) -> torch.Tensor:
        """Tokens of prompts, padded on the left to one length, and completions, padded on the right."""
        import torch

        transformers = extras.load("transformers", "eval")

        ends = self.end_tokens
        pad = self._padding()
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
            processors.append(_drawing([_seeded(r, sampling) for r in requests], sampling, width))
        device = self.model.device
        output: torch.Tensor = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=processors,
            tokenizer=self.tokenizer if sampling.stop else None,
            streamer=streamer,
        )
        return output

    def _padding(self) -> int:
        """The token that fills up prompts and completions of a batch."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.end_tokens[0] if self.end_tokens else 0)

    def _completion(self, tokens: list[int], sampling: Sampling) -> Completion:
        ended = next((i for i, token in enumerate(tokens) if token in self.end_tokens), None)
        own = tokens if ended is None else tokens[:ended]
        text = str(self.tokenizer.decode(own, skip_special_tokens=True))
        cuts = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        count = len(own) + (ended is not None)
        if cuts:
            # Behind a stop text only padding follows, where others of the batch ran longer.
            count = self._shortest(own, text[: min(cuts)], sampling.stop)
            return Completion(text[: min(cuts)], count, "stop")
        return Completion(text, count, "length" if ended is None else "stop")

    def _shortest(self, tokens: list[int], kept: str, stops: Sequence[str]) -> int:
        """How many tokens it took until a stop text was whole."""
        for count in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[:count], skip_special_tokens=True)
            if len(text) > len(kept) and any(stop in text for stop in stops):
                return count
        return len(tokens)

    def _guess(self, length: int) -> int:
        """A batch whose keys and values fit into a part of the free memory."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        wide = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        each = 2 * config.num_hidden_layers * heads * wide * size * length
        each += 12 * config.vocab_size  # logits and what is made of them
        return int(
            min(MOST_AT_ONCE, max(1, MEMORY_SHARE * _free_memory(self.model.device) // each))
        )


class _Closed(Exception):
    """Nobody listens to a stream any more."""


class _Feed:
    """What transformers tells of new tokens, as its ``streamer``: first the prompt, then one at a time."""

    def __init__(self, told: queue.SimpleQueue[Any], closed: threading.Event) -> None:
        self.told = told
        self.closed = closed
        self.begun = False

    def put(self, tokens: torch.Tensor) -> None:
        if self.closed.is_set():
            raise _Closed
        if self.begun:
            self.told.put([int(token) for token in tokens.flatten()])
        self.begun = True

    def end(self) -> None: ...


class _Counter:
    """A ``streamer`` of transformers that counts the tokens of a batch, padding left out."""

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


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(list(map(dict, prompt)))


def _seeded(request: Request, sampling: Sampling) -> Any:
    """Numbers from 0 to 1, one a token, of a request's own."""
    text = f"{sampling.seed}\n{request.sample}\n{_text(request.prompt)}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return random.random(sampling.max_tokens)


def _drawing(numbers: Sequence[Any], sampling: Sampling, width: int) -> Callable[..., Any]:
    """A step of generation that leaves each row the one token that its number draws."""
    import torch

    def draw(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = ids.shape[1] - width
        # Apple's GPUs have no float64, so what is drawn there is drawn on the CPU.
        exact = (scores.cpu() if scores.device.type == "mps" else scores).double()
        shares = torch.softmax(exact / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            ordered, places = shares.sort(dim=-1, descending=True, stable=True)
            beyond = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
            shares = shares.masked_fill(beyond.scatter(-1, places, beyond), 0.0)
        reached = shares.cumsum(dim=-1)
        drawn = torch.tensor([row[step] for row in numbers], dtype=torch.float64)
        wanted = drawn.to(reached.device)[:, None] * reached[:, -1:]
        chosen = torch.searchsorted(reached, wanted, right=True)
        last = (shares > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(-1, torch.minimum(chosen, last).to(scores.device), 0.0)

    return draw


def _out_of_memory(error: BaseException) -> bool:
    import torch

    told = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "out of memory" in told or "can't allocate memory" in told
    )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_memory(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    facts: Mapping[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            facts = {k: int(v.split()[0]) * 1024 for k, _, v in (x.partition(":") for x in lines)}
    except (OSError, ValueError, IndexError):
        pass
    return facts.get("MemAvailable", (system.memory_size() or FALLBACK_MEMORY) // 2)
