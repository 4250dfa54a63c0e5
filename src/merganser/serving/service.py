"""Answers a request: find the model, wait for its turn, generate, write the answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from merganser.errors import InputError
from merganser.evaluation import drawing
from merganser.evaluation.codec import PromptTooLong
from merganser.evaluation.generation import Request, Sampling
from merganser.serving.answers import DONE, ChatForm, Form, TextForm, completion_of, usage_of
from merganser.serving.base_service import BaseService
from merganser.serving.generation import Engine, Increment, Wanted
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue, Served
from merganser.serving.tool_calls import are_calls_of
from merganser.serving.wire import AnyRequest, BadRequest, ChatRequest, parse

INLINE = 20_000
"""Prompts of at most this many characters are tokenized in the event loop; longer ones in a thread."""

MOST_TOKENS = 2**20
"""Maximum tokens of a completion if neither the request nor the model has a limit."""

LEAST_TEMPERATURE = 1e-3
"""Lower temperatures count as 0: logits divided by them overflow."""


class Service(BaseService):
    """Answers requests with an engine in this process.

    Args:
        catalogue: the models.
        engine: generates the completions.
        limits: the limits of the server.
    """

    def __init__(self, catalogue: Catalogue, engine: Engine, limits: Limits = Limits()) -> None:  # noqa: B008  # frozen
        super().__init__(
            catalogue, engine, [self._become], limits, longest_turn=limits.longest_turn
        )
        self.engine = engine

    async def warm_up(self) -> None:
        """Load the first model, so that its errors appear before the first request.

        Raises:
            MerganserError: the model cannot be run.
        """
        async with self.gate.admitted(next(iter(self.catalogue.models.values()))):
            pass

    def reply(self, body: bytes, kind: type[AnyRequest]) -> AsyncGenerator[bytes | dict[str, Any]]:
        """See :class:`BaseService`."""
        return self.answer(parse(body, kind))

    async def answer(self, request: AnyRequest) -> AsyncGenerator[bytes | dict[str, Any]]:
        """Yield the answer to a request: one JSON object, or the events of a stream.

        Closing the iterator cancels its completions.

        Raises:
            BadRequest: the request cannot be answered; raised only before the first event of a stream.
            MerganserError: the engine fails.
        """
        began = time.monotonic()
        self.check_open()
        prompts = request.prompts
        served = await self.find(request.model)
        async with self.turn(served, began):
            codec = self.facts[served].codec
            rows = [await self._encode(served, prompt, request) for prompt in prompts]
            wanted = [
                self._wanted(request, served, prompt, row, sample)
                for prompt, row in zip(prompts, rows, strict=True)
                for sample in range(request.n or 1)
            ]
            kind: type[Form] = ChatForm if isinstance(request, ChatRequest) else TextForm
            scored = request.top is not None
            template = getattr(codec.tokenizer, "chat_template", None)
            calls = bool(request.functions) and are_calls_of(template)
            form = kind(request.model, served.plan.digest, codec, scored=scored, calls=calls)
            prompt_tokens = sum(map(len, rows))
            async with aclosing(self.engine.generate(served, wanted)) as parts:
                if request.stream:
                    async for event in _events(request, form, parts, wanted, prompt_tokens):
                        yield event
                    complete = None
                else:
                    complete = await _complete(form, parts, wanted, prompt_tokens)
        if complete is not None:
            yield complete
        self.metrics.add_answer(time.monotonic() - began)

    async def _become(self, served: Served) -> None:
        self.facts[served] = await self.engine.become(served)

    async def _encode(self, served: Served, prompt: Any, request: AnyRequest) -> Sequence[int]:
        """Return the ids of a prompt's tokens, after checking that the context has room for a completion.

        Raises:
            BadRequest: the model does not accept the prompt.
        """
        facts = self.facts[served]
        codec, context = facts.codec, facts.context
        if _is_tokens(prompt):
            row: Sequence[int] = prompt
        else:
            if not isinstance(prompt, str) and not getattr(codec.tokenizer, "chat_template", None):
                raise BadRequest(
                    f"{served.name} has no chat template; ask /v1/completions", param="messages"
                )
            try:
                length = (
                    len(prompt) if isinstance(prompt, str) else sum(len(str(m)) for m in prompt)
                )
                if length > INLINE:
                    row = await asyncio.to_thread(codec.encode, prompt, request.functions)
                else:
                    row = codec.encode(prompt, request.functions)
            except PromptTooLong as error:
                raise BadRequest(str(error), code="context_length_exceeded") from None
            except InputError as error:
                raise BadRequest(str(error)) from None
        if max(row) >= facts.vocabulary:
            raise BadRequest(f"prompt: the model has no token {max(row)}", param="prompt")
        if context is not None and len(row) + (request.limit or 1) > context:
            raise BadRequest(
                f"the model's context is {context:,} tokens, the prompt has {len(row):,}, and the "
                f"completion may have {request.limit or 1:,}",
                code="context_length_exceeded",
            )
        most = self.limits.max_tokens
        if most is not None and (request.limit or 1) > most:
            raise BadRequest(
                f"max_tokens: the server generates at most {most:,} tokens", param="max_tokens"
            )
        return row

    def _wanted(
        self, request: AnyRequest, served: Served, prompt: Any, row: Sequence[int], sample: int
    ) -> Wanted:
        context = self.facts[served].context
        limits = [request.limit, self.limits.max_tokens, MOST_TOKENS]
        if context is not None:
            limits.append(context - len(row))
        seed = secrets.randbits(63) if request.seed is None else request.seed
        temperature = 1.0 if request.temperature is None else request.temperature
        sampling = Sampling(
            temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            max_tokens=min(limit for limit in limits if limit is not None),
            stop=tuple(request.stop or ()),
            seed=seed,
        )
        text = str(prompt) if _is_tokens(prompt) else prompt
        number = drawing.seed_of(Request(text, sample), sampling)
        return Wanted(row, sampling, number, request.top, bool(request.stream))


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


async def _complete(
    form: Form,
    parts: AsyncIterator[tuple[int, Increment]],
    wanted: Sequence[Wanted],
    prompt_tokens: int,
) -> dict[str, Any]:
    found: list[list[Increment]] = [[] for _ in wanted]
    async for index, part in parts:
        found[index].append(part)
    generated = sum(completion_of(each).tokens for each in found)
    return form.complete(found, usage_of(prompt_tokens, generated))


async def _events(
    request: AnyRequest,
    form: Form,
    parts: AsyncIterator[tuple[int, Increment]],
    wanted: Sequence[Wanted],
    prompt_tokens: int,
) -> AsyncIterator[bytes]:
    counts = request.wants_usage
    generated = 0
    for index in range(len(wanted)):
        if opening := form.opening(index):
            yield form.event(opening, None, counts=counts)
    async for index, part in parts:
        yield form.event([form.added(index, part)], None, counts=counts)
        if part.completion is not None:
            generated += part.completion.tokens
    if counts:
        yield form.event([], usage_of(prompt_tokens, generated), counts=True)
    yield DONE
