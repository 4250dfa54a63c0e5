"""Rows that join and leave at every step get what each gets alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

import peers
from checkpoints_on_disk import make_model
from merganser.errors import ResourceError
from merganser.evaluation import drawing
from merganser.evaluation.generation import Completion, EngineFailure, Request, Sampling
from merganser.serving import transformers_engine
from merganser.serving.batches import Batch, Reading
from merganser.serving.generation import Increment, TokenScore, Wanted
from merganser.serving.names import Catalogue, Served
from merganser.serving.roomy_cache import RoomyLayer
from merganser.serving.rows import joined
from merganser.serving.transformers_engine import TransformersEngine
from merganser.study.live_model import LiveModel
from served_study import Alone

PROMPTS = ["1 + 2 =", "3", "9 - 4 + 2 - 1 = ?", "user 7 7 7 7 7 7 7 7 7 7 7 7 7 7", "0 0"]
"""In words of the test's tokenizer."""


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(LiveModel(), **options)
    try:
        yield engine
    finally:
        await engine.close()


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(scenario(), 60)

    return asyncio.run(bounded())


def sampling(number: int) -> Sampling:
    """Settings that change from request to request."""
    return [
        Sampling(max_tokens=5 + number % 30),
        Sampling(1.2, 0.9, 20, seed=number),
        Sampling(0.7, 1.0, 1 + number % 3),
        Sampling(max_tokens=25, stop=("9", "3 +")),
    ][number % 4]


async def ask(
    engine: TransformersEngine, served: Served, prompt: str, how: Sampling, *, stream: bool = False
) -> tuple[Completion, list[Increment]]:
    codec = (
        (await engine.become(served)).codec
        if served not in engine._facts
        else engine._facts[served].codec
    )
    seed = drawing.seed_of(Request(prompt), how)
    wanted = Wanted(codec.encode(prompt), how, seed, None, stream)
    parts = []
    async with aclosing(engine.generate(served, [wanted])) as found:
        async for _, part in found:
            parts.append(part)
    assert parts[-1].completion is not None
    return parts[-1].completion, parts


def test_rows_that_join_and_leave_get_what_each_gets_alone(
    catalogue: Catalogue, alone: Alone
) -> None:
    served = catalogue.models["m_w0.3"]

    async def scenario() -> list[tuple[Completion, list[Increment]]]:
        async with running() as engine:
            await engine.become(served)

            async def later(number: int) -> tuple[Completion, list[Increment]]:
                await asyncio.sleep(number * 0.004)
                prompt = PROMPTS[number % len(PROMPTS)]
                return await ask(engine, served, prompt, sampling(number), stream=number % 3 == 0)

            return await asyncio.gather(*map(later, range(24)))

    for number, (completion, parts) in enumerate(run(scenario)):
        prompt = PROMPTS[number % len(PROMPTS)]
        assert completion == alone.answer(served.plan, prompt, sampling(number))
        assert "".join(part.text for part in parts) == completion.text
        assert (len(parts) > 1) == (number % 3 == 0 and completion.tokens > 1)


def test_requests_that_come_together_are_read_together(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = catalogue.models["m_w0.3"]
    sizes: list[int] = []
    begin = Reading.__init__

    def noted(reading: Reading, forward: Any, rows: Sequence[Any], piece: int) -> None:
        sizes.append(len(rows))
        begin(reading, forward, rows, piece)

    monkeypatch.setattr(Reading, "__init__", noted)

    async def scenario() -> None:
        async with running() as engine:
            await engine.become(served)

            async def later(number: int) -> None:
                for _ in range(2 * number):  # as if read from connections one after the other
                    await asyncio.sleep(0)
                await ask(engine, served, PROMPTS[number], Sampling(max_tokens=2))

            await asyncio.gather(*map(later, range(5)))

    run(scenario)
    assert sizes == [5]


def test_parts_that_have_come_are_sent_as_one() -> None:
    last = Completion("ab cd", 3, "stop")
    scores = [TokenScore(number, 0.0) for number in range(3)]
    parts: list[tuple[int, Any]] = [
        (1, Increment("x")),
        (0, Increment("a", [scores[0]])),
        (0, Increment("b ", [scores[1]])),
        (0, Increment("cd", [scores[2]], last)),
    ]
    assert joined(parts) == [(1, Increment("x")), (0, Increment("ab cd", tuple(scores), last))]
    assert joined(parts[:1]) == parts[:1]
    with pytest.raises(ResourceError):
        joined([*parts, (1, ResourceError("no memory"))])


FAMILIES: dict[str, Any] = {
    "gemma3": peers.FAMILIES["gemma3"],
    "mamba": lambda layers: transformers.MambaConfig(
        vocab_size=peers.VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=layers
    ),
}
"""With windows that slide, and without keys and values."""


@pytest.mark.parametrize("family", FAMILIES)
def test_other_caches_than_keys_and_values_of_all_tokens(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peers.FAMILIES, family, FAMILIES[family])
    monkeypatch.setattr(transformers_engine, "PIECE", 4)
    monkeypatch.setattr(transformers_engine, "READ_TOGETHER", 12)
    [served] = Catalogue([str(peers.make_model(tmp_path / "model", family))]).models.values()
    prompts = ["what is 1 + 2 =", "3", "1 2 3 4 5 6 7 8 9 0 1 2"]
    how = Sampling(1.0, 0.95, max_tokens=70, seed=1)

    async def scenario() -> tuple[bool, list[Completion]]:
        async with running() as engine:
            await engine.become(served)
            assert engine._forward is not None
            asked = [ask(engine, served, prompt, how) for prompt in prompts]
            return engine._forward.joins, [each for each, _ in await asyncio.gather(*asked)]

    joins, found = run(scenario)
    assert joins is (family == "gemma3")
    alone = Alone()
    assert found == [alone.answer(served.plan, prompt, how) for prompt in prompts]


def test_a_cache_with_room_holds_what_was_put_in() -> None:
    """In pieces of any size, also after rows have left."""
    generator = torch.Generator().manual_seed(0)
    layer, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for number, new in enumerate([5, 1, 700, 1, 1, 2048, 4096, *[1] * 70]):
        keys, values = torch.randn(2, rows, 2, new, 4, generator=generator)
        found = layer.update(keys, values)
        wanted = plain.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        if number in (3, 60):
            rows -= 1
            for each in (layer, plain):
                each.batch_select_indices(torch.arange(rows))


def test_a_model_s_rows_are_held_while_another_has_its_turn(
    catalogue: Catalogue, alone: Alone
) -> None:
    one, other = catalogue.models["m_w0.2"], catalogue.models["m_w0.8"]
    how = Sampling(1.1, 0.95, max_tokens=60, seed=4)

    async def scenario() -> tuple[Completion, Completion]:
        async with running() as engine:
            await engine.become(one)
            long = asyncio.create_task(ask(engine, one, "1 + 2", how, stream=True))
            while engine.state.tokens < 5:
                await asyncio.sleep(0.001)
            await engine.become(other)
            short, _ = await ask(engine, other, "1 + 2", how)
            assert not long.done()
            assert engine.state.held == 1
            await engine.become(one)
            return (await long)[0], short

    long, short = run(scenario)
    assert long == alone.answer(one.plan, "1 + 2", how)
    assert short == alone.answer(other.plan, "1 + 2", how)
    assert long.text != short.text


def test_samples_of_one_prompt_are_read_once_and_drawn_apart(
    catalogue: Catalogue, alone: Alone
) -> None:
    served = catalogue.models["m_w0.5"]
    how = Sampling(1.5, 1.0, max_tokens=8, seed=1)

    async def scenario() -> list[Completion]:
        async with running() as engine:
            codec = (await engine.become(served)).codec
            row = codec.encode("1 + 2")
            seeds = [drawing.seed_of(Request("1 + 2", i), how) for i in range(6)]
            wanted = [Wanted(row, how, seed) for seed in seeds]
            found: dict[int, Completion] = {}
            async for index, part in engine.generate(served, wanted):
                assert part.completion is not None
                found[index] = part.completion
            assert engine.state.prompt_tokens == len(row)
            return [found[i] for i in range(6)]

    found = run(scenario)
    assert found == [alone.answer(served.plan, "1 + 2", how, i) for i in range(6)]
    assert len({completion.text for completion in found}) > 3


def test_log_probabilities_are_the_model_s(catalogue: Catalogue, alone: Alone) -> None:
    served = catalogue.models["m_w0.5"]
    how = Sampling(max_tokens=6)

    async def scenario() -> tuple[Sequence[int], list[Any]]:
        async with running() as engine:
            codec = (await engine.become(served)).codec
            row = codec.encode("1 + 2")
            parts = [part async for _, part in engine.generate(served, [Wanted(row, how, 0, 3)])]
            return row, list(parts[-1].scores)

    row, scores = run(scenario)
    tokens = [score.token for score in scores]
    alone.live.settle(served.plan)
    ids = torch.tensor([[*row, *tokens]])
    with torch.inference_mode():
        shares = alone.live.module(input_ids=ids).logits[0, len(row) - 1 : -1].log_softmax(-1)
    for place, score in enumerate(scores):
        best = shares[place].topk(3)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert score.logprob == pytest.approx(float(shares[place, score.token]), abs=1e-4)
        assert [p for _, p in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_who_leaves_ends_what_runs(catalogue: Catalogue) -> None:
    served = catalogue.models["m_w0.5"]

    async def scenario() -> None:
        async with running() as engine:
            codec = (await engine.become(served)).codec
            codec.end_tokens, ends = [], codec.end_tokens
            wanted = Wanted(codec.encode("1"), Sampling(max_tokens=100_000), 0, None, True)
            for _ in range(2):
                async with aclosing(engine.generate(served, [wanted, wanted])) as parts:
                    await anext(parts)
                    assert engine.state.running == 2
            codec.end_tokens = ends
            for _ in range(1000):
                if engine.state.running == 0:
                    break
                await asyncio.sleep(0.002)
            assert engine.state.running == 0
            assert not engine._station.batches

    run(scenario)


def test_too_little_memory_for_all_makes_rows_wait(
    catalogue: Catalogue, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for those that grew in the meantime, which are read again."""
    monkeypatch.setattr(transformers_engine, "AHEAD", 0)
    served = catalogue.models["m_w0.4"]
    how = Sampling(1.0, 1.0, max_tokens=40, seed=2)

    async def scenario() -> list[Completion]:
        async with running() as engine:
            await engine.become(served)
            engine._budget = 60 * engine._token_bytes
            both = [ask(engine, served, prompt, how) for prompt in PROMPTS]
            return [completion for completion, _ in await asyncio.gather(*both)]

    assert run(scenario) == [alone.answer(served.plan, prompt, how) for prompt in PROMPTS]


def test_memory_that_runs_out_halves_what_runs(
    catalogue: Catalogue, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = catalogue.models["m_w0.4"]
    how = Sampling(max_tokens=10)
    step = Batch.step
    sizes: list[int] = []

    def scarce(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise MemoryError
        return step(batch)

    monkeypatch.setattr(Batch, "step", scarce)

    async def scenario() -> list[Completion]:
        async with running() as engine:
            await engine.become(served)
            asked = [ask(engine, served, prompt, how) for prompt in PROMPTS]
            return [completion for completion, _ in await asyncio.gather(*asked)]

    assert run(scenario) == [alone.answer(served.plan, prompt, how) for prompt in PROMPTS]
    assert max(sizes) > 2

    def none(_batch: Batch) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(Batch, "step", none)

    async def alone_too() -> None:
        async with running() as engine:
            with pytest.raises(ResourceError, match="memory does not suffice for"):
                await ask(engine, served, "1", how)

    run(alone_too)


@pytest.mark.parametrize("step", ["of a row", "of no row"])
def test_a_step_that_fails_fails_what_runs_and_nothing_later(
    step: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = catalogue.models["m_w0.4"]

    async def scenario() -> None:
        async with running() as engine:
            with monkeypatch.context() as patch:
                if step == "of a row":
                    patch.setattr(Reading, "step", lambda _: 1 / 0)
                else:
                    patch.setattr(engine, "_next_rows", lambda: 1 / 0)
                with pytest.raises(EngineFailure, match="ZeroDivisionError"):
                    await ask(engine, served, "1", Sampling(max_tokens=3))
            completion, _ = await ask(engine, served, "1", Sampling(max_tokens=3))
            assert completion.tokens == 3
            assert engine.is_alive

    run(scenario)


def test_weights_that_cannot_be_read_fail_their_rows_and_the_next_model_is_right(
    study: Path, alone: Alone, tmp_path: Path
) -> None:
    """The failure may leave half of the weights behind."""
    for name in "ab":
        (tmp_path / name).symlink_to(study.parent / name)
    make_model(tmp_path / "bad", hidden=32, dtype=torch.float32)
    good = Catalogue([str(study)]).models["m_w0.3"]
    [bad] = Catalogue([str(tmp_path / "bad")]).models.values()
    weights = tmp_path / "bad" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    how = Sampling(max_tokens=12)

    async def scenario() -> Completion:
        async with running() as engine:
            first, _ = await ask(engine, good, "1 + 2", how)
            with pytest.raises(Exception, match=r"model\.safetensors"):
                await engine.become(bad)
            await engine.become(good)
            assert (await ask(engine, good, "1 + 2", how))[0] == first
            return first

    assert run(scenario) == alone.answer(good.plan, "1 + 2", how)


def test_a_loaded_model_is_no_work_for_the_garbage_collector(catalogue: Catalogue) -> None:
    served = catalogue.models["m_w0.4"]

    async def scenario(freezes: bool) -> int:
        async with running() as engine:
            engine.freezes = freezes
            await engine.become(served)
            assert engine._live.module is not None
            return sum(each is engine._live.module for each in gc.get_objects())

    try:
        assert run(lambda: scenario(False)) == 1
        assert run(lambda: scenario(True)) == 0
    finally:
        gc.unfreeze()


def test_a_closed_engine_fails_what_runs(catalogue: Catalogue) -> None:
    served = catalogue.models["m_w0.4"]

    async def scenario() -> None:
        async with running() as engine:
            await engine.become(served)
            long = asyncio.create_task(ask(engine, served, "1", Sampling(max_tokens=10_000)))
            await asyncio.sleep(0.01)
        if not long.done():
            await asyncio.wait({long})
        with pytest.raises(EngineFailure, match="the engine has stopped"):
            await ask(engine, served, "1", Sampling(max_tokens=1))

    run(scenario)
