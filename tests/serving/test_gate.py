"""Requests of one point run together, points take turns, and whatever happens nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.serving.gate import Gate, GateClosed, QueueFull


class Weights:
    """What an engine holds; swaps take some steps of the event loop, and may fail."""

    def __init__(self, fails: Callable[[str], bool] = lambda _point: False) -> None:
        self.point: str | None = None
        self.swaps: list[str] = []
        self.fails = fails

    async def become(self, point: str) -> None:
        self.point = None
        await asyncio.sleep(0)
        if self.fails(point):
            raise InputError(f"{point} cannot be read")
        self.point = point
        self.swaps.append(point)


async def spin(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(scenario(), 20)

    return asyncio.run(bounded())


class Guest:
    """A request that stays until it is told to go."""

    def __init__(self, gate: Gate[str], point: str) -> None:
        self.is_in = False
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self.visit(gate, point))

    async def visit(self, gate: Gate[str], point: str) -> None:
        async with gate.admitted(point):
            self.is_in = True
            await self.may_go.wait()

    async def go(self) -> None:
        self.may_go.set()
        await self.task


def test_requests_of_one_point_run_together_and_the_oldest_point_is_next() -> None:
    async def scenario() -> None:
        weights = Weights()
        gate = Gate(weights.become, turn=0.0)
        first, second = Guest(gate, "a"), Guest(gate, "a")
        await spin()
        assert first.is_in
        assert second.is_in
        others = [Guest(gate, point) for point in "bcb"]
        await asyncio.sleep(0.001)  # the turn is over now
        late = Guest(gate, "a")
        await spin()
        assert [guest.is_in for guest in (*others, late)] == [False] * 4
        assert gate.waiting == {"b": 2, "c": 1, "a": 1}
        await first.go()
        await spin()
        assert not others[0].is_in
        await second.go()
        await spin()
        assert [guest.is_in for guest in others] == [True, False, True]
        for guest in (others[0], others[2], others[1], late):
            await spin()
            await guest.go()
        assert weights.swaps == ["a", "b", "c", "a"]
        assert gate.swaps == 4
        assert not gate.inside
        assert not gate.waiting

    run(scenario)


def test_who_comes_early_in_a_turn_joins_it_although_others_wait() -> None:
    async def scenario() -> None:
        gate = Gate(Weights().become, turn=60.0)
        first = Guest(gate, "a")
        await spin()
        other, late = Guest(gate, "b"), Guest(gate, "a")
        await spin()
        assert late.is_in
        assert not other.is_in
        for guest in (first, late, other):
            await guest.go()

    run(scenario)


def test_a_long_turn_is_interrupted_and_goes_on_later() -> None:
    async def scenario() -> None:
        weights = Weights()
        gate = Gate(weights.become, turn=0.0, longest=0.02)
        long = Guest(gate, "a")
        await spin()
        other = Guest(gate, "b")
        await spin()
        assert not other.is_in
        await asyncio.sleep(0.04)
        assert other.is_in
        assert long.is_in
        await other.go()
        await spin()
        assert weights.swaps == ["a", "b", "a"]
        await long.go()
        assert not gate.inside

    run(scenario)


def test_no_point_waits_longer_than_the_turns_before_its_own() -> None:
    """Whoever keeps asking for one point cannot keep the others out."""

    async def scenario() -> None:
        weights = Weights()
        gate = Gate(weights.become, turn=0.0, longest=0.01)
        greedy = [Guest(gate, "a") for _ in range(3)]
        await spin()
        others = [Guest(gate, "b"), Guest(gate, "c")]
        for _ in range(10):
            await asyncio.sleep(0.005)
            greedy.append(Guest(gate, "a"))
        assert all(guest.is_in for guest in others)
        assert weights.swaps[:3] == ["a", "b", "c"]
        for guest in (*others, *greedy):
            await guest.go()

    run(scenario)


def test_a_failed_swap_fails_its_waiters_only_and_the_weights_are_swapped_again() -> None:
    async def scenario() -> None:
        weights = Weights(fails=lambda point: point == "bad")
        gate = Gate(weights.become, turn=0.0)
        first = Guest(gate, "a")
        await spin()
        bad, again = Guest(gate, "bad"), Guest(gate, "a")
        await first.go()
        await spin()
        with pytest.raises(InputError, match="bad cannot be read"):
            await bad.task
        await spin()
        assert again.is_in
        await again.go()
        assert weights.swaps == ["a", "a"]

    run(scenario)


def test_who_gives_up_leaves_the_queue() -> None:
    async def scenario() -> None:
        weights = Weights()
        gate = Gate(weights.become, turn=0.0)
        first = Guest(gate, "a")
        await spin()
        gone, stays = Guest(gate, "b"), Guest(gate, "c")
        await spin()
        gone.task.cancel()
        await first.go()
        await spin()
        assert stays.is_in
        assert weights.swaps == ["a", "c"]
        await stays.go()

    run(scenario)


def test_who_gives_up_when_let_in_gives_the_place_back() -> None:
    async def scenario() -> None:
        gate = Gate(Weights().become)
        guest = Guest(gate, "a")
        while not gate.inside:  # let in, but not running yet
            await asyncio.sleep(0)
        guest.task.cancel()
        other = Guest(gate, "b")
        await spin()
        assert other.is_in
        await other.go()
        assert not gate.inside

    run(scenario)


def test_a_full_queue_refuses() -> None:
    async def scenario() -> None:
        gate = Gate(Weights().become, turn=0.0, most_waiting=2)
        first = Guest(gate, "a")
        await spin()
        waiting = [Guest(gate, "b"), Guest(gate, "c")]
        await spin()
        with pytest.raises(QueueFull, match="2 requests wait already"):
            await Guest(gate, "b").task
        for guest in (first, *waiting):
            await guest.go()

    run(scenario)


def test_a_closed_gate_refuses_who_waits_and_who_comes() -> None:
    async def scenario() -> None:
        gate = Gate(Weights().become, turn=0.0)
        first = Guest(gate, "a")
        await spin()
        waiting = Guest(gate, "b")
        await spin()
        gate.close()
        for guest in (waiting, Guest(gate, "a")):
            with pytest.raises(GateClosed):
                await guest.task
        await first.go()

    run(scenario)


@pytest.mark.parametrize("longest", [None, 0.002], ids=["drained", "interrupted"])
@pytest.mark.parametrize("seed", range(20))
def test_under_chance_nobody_gets_wrong_weights_and_nobody_is_left(
    seed: int, longest: float | None
) -> None:
    chance = random.Random(seed)

    async def visit(gate: Gate[str], weights: Weights, point: str, steps: int) -> str:
        async with gate.admitted(point):
            for _ in range(steps):
                if longest is None:
                    assert weights.point == point
                tries = 0
                while weights.point != point:  # held
                    tries += 1
                    assert tries < 20_000
                    await asyncio.sleep(0)
                    if failed.get(point):
                        return "failed"
                await asyncio.sleep(0)
        return "done"

    failed: dict[str, bool] = {}

    def fails(point: str) -> bool:
        failed[point] = bool(seed % 2) and chance.random() < 0.2
        return failed[point]

    async def scenario() -> None:
        weights = Weights(fails)
        gate = Gate(weights.become, turn=0.001, longest=longest)
        tasks = []
        for _ in range(80):
            point, steps = chance.choice("abcd"), chance.randrange(12)
            tasks.append(asyncio.create_task(visit(gate, weights, point, steps)))
            if chance.random() < 0.3:
                await spin(chance.randrange(8))
            if chance.random() < 0.2:
                chance.choice(tasks).cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not gate.inside
        assert not gate.waiting
        for result in results:
            assert result in ("done", "failed") or isinstance(
                result, InputError | asyncio.CancelledError
            ), result
        assert results.count("done") > 20

    run(scenario)
