"""Requests of one point run together, points take turns, and whatever happens nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.serving.gate import EngineGone, Gate, GateClosed, QueueFull


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


async def storm(
    gate: Gate[str],
    points: str,
    chance: random.Random,
    visit: Callable[[str, int], Coroutine[Any, Any, str]],
) -> list[Any]:
    """What 80 visits end with that come and leave at random; afterwards nobody may be left."""
    tasks = []
    for _ in range(80):
        point, steps = chance.choice(points), chance.randrange(12)
        tasks.append(asyncio.create_task(visit(point, steps)))
        if chance.random() < 0.3:
            await spin(chance.randrange(8))
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not gate.inside
    assert not gate.waiting
    assert results.count("done") > 20
    return results


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
        for result in await storm(gate, "abcd", chance, partial(visit, gate, weights)):
            assert result in ("done", "failed") or isinstance(
                result, InputError | asyncio.CancelledError
            ), result

    run(scenario)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next event, so that hours take milliseconds."""

    def __init__(self) -> None:
        super().__init__(selectors.DefaultSelector())
        self.now = 0.0
        wait = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            assert timeout is not None, "nothing will ever happen again"
            self.now += timeout + 1e-9  # as in any clock, no two moments are one
            return wait(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


POINTS = "abcdefghi"
SWAP = 1.5
"""Seconds of a swap at 1.8 B."""


def waits_of(
    requests: list[tuple[float, str, float]], *, turn: float, longest: float | None
) -> list[float]:
    """The time until each request is admitted, in seconds.

    Args:
        requests: when each comes, for which point, and how many seconds of its point's turns it needs.
        turn, longest: of the gate.
    """

    async def scenario() -> list[float]:
        clock = asyncio.get_running_loop().time
        turns = {point: asyncio.Event() for point in POINTS}

        async def become(point: str) -> None:
            for each in turns.values():
                each.clear()
            await asyncio.sleep(SWAP)
            turns[point].set()

        gate = Gate(become, turn=turn, longest=longest)

        async def ask(when: float, point: str, needs: float) -> float:
            await asyncio.sleep(when)
            began = clock()
            async with gate.admitted(point):
                waited = clock() - began
                while needs > 0:  # the engine works for it only in turns of its point
                    await turns[point].wait()
                    await asyncio.sleep(0.25)
                    needs -= 0.25
            return waited

        found = await asyncio.gather(*(ask(*each) for each in requests))
        assert not gate.inside
        assert not gate.waiting
        return found

    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(scenario())


def busy(seed: int) -> list[tuple[float, str, float]]:
    """Three minutes of requests, half of them for one point, some of them longer than a turn may be."""
    chance = random.Random(seed)
    return [
        (
            chance.uniform(0, 180),
            "a" if chance.random() < 0.5 else chance.choice(POINTS),
            chance.choice([0.25, 1.0, 1.0, 3.0, 30.0]),
        )
        for _ in range(240)
    ]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("turn", "longest"), [(2.0, 5.0), (0.3, 2.0)])
def test_the_wait_is_bounded_by_the_turns_of_the_other_points(
    seed: int, turn: float, longest: float
) -> None:
    """The running turn's rest and its swap, and those of the points between: nine at most."""
    worst = max(waits_of(busy(seed), turn=turn, longest=longest))
    assert worst <= len(POINTS) * (longest + SWAP)
    assert worst > 4 * (longest + SWAP), "the gate was hardly used"


def test_without_the_rule_the_wait_is_not_bounded() -> None:
    """The bound above is the rule's: long answers hold the others up."""
    waits = waits_of(busy(0), turn=2.0, longest=None)
    assert max(waits) > len(POINTS) * (5.0 + SWAP)


# -- several engines -------------------------------------------------------------------------------


def test_points_go_to_engines_that_have_them_and_others_to_idle_ones() -> None:
    async def scenario() -> None:
        engines = [Weights(), Weights()]
        gate = Gate(*(engine.become for engine in engines), turn=0.0)
        guests = [Guest(gate, point) for point in "abab"]
        await spin()
        assert all(guest.is_in for guest in guests)
        assert [engine.swaps for engine in engines] == [["a"], ["b"]]
        assert gate.loaded == ["a", "b"]
        third = Guest(gate, "c")
        await spin()
        assert not third.is_in
        for guest in (guests[1], guests[3]):
            await guest.go()
        await spin()
        assert third.is_in
        assert engines[1].swaps == ["b", "c"]
        assert gate.inside == {"a": 2, "c": 1}
        for guest in (guests[0], guests[2], third):
            await guest.go()

    run(scenario)


def test_a_busy_point_is_loaded_into_an_idle_engine() -> None:
    """While its requests still come, and where many wait for its first load."""

    async def scenario() -> None:
        for burst in (False, True):
            engines = [Weights(), Weights()]
            gate = Gate(*(engine.become for engine in engines))
            guests = []
            for _ in range(12):
                guests.append(Guest(gate, "a"))
                await spin(0 if burst else 8)
            await spin(20)
            assert all(guest.is_in for guest in guests)
            assert [engine.swaps for engine in engines] == [["a"], ["a"]]
            assert min(lane.load for lane in gate._lanes) >= 4
            for guest in guests:
                await guest.go()

    run(scenario)


def test_an_engine_that_is_gone_leaves_its_points_to_the_others() -> None:
    async def scenario() -> None:
        good = Weights()

        async def gone(_point: str) -> None:
            raise EngineGone("it is gone")

        gate = Gate(gone, good.become, turn=0.0)
        guests = [Guest(gate, point) for point in "ab"]
        await spin(20)
        assert sum(guest.is_in for guest in guests) == 1
        for guest in sorted(guests, key=lambda guest: not guest.is_in):
            await guest.go()
        assert sorted(good.swaps) == ["a", "b"]
        alone = Gate(gone, turn=0.0)
        for _ in range(2):
            with pytest.raises(EngineGone):
                await Guest(alone, "a").task

    run(scenario)


def test_an_engine_that_lost_its_weights_loads_them_again() -> None:
    async def scenario() -> None:
        weights = Weights()
        gate = Gate(weights.become)
        await Guest(gate, "a").go()
        gate.reload(0)
        assert gate.loaded == [None]
        await spin()
        assert weights.swaps == ["a", "a"]
        assert gate.loaded == ["a"]

    run(scenario)


@pytest.mark.parametrize("longest", [None, 0.002], ids=["drained", "interrupted"])
@pytest.mark.parametrize("seed", range(10))
def test_under_chance_several_engines_give_no_wrong_weights_and_leave_nobody(
    seed: int, longest: float | None
) -> None:
    chance = random.Random(seed)

    async def visit(gate: Gate[str], engines: list[Weights], point: str, steps: int) -> str:
        async with gate.admitted(point) as number:
            for _ in range(steps):
                tries = 0
                while engines[number].point != point:
                    assert longest is not None
                    tries += 1
                    assert tries < 20_000
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
        return "done"

    async def scenario() -> None:
        engines = [Weights() for _ in range(3)]
        gate = Gate(*(engine.become for engine in engines), turn=0.001, longest=longest)
        for result in await storm(gate, "aaabcde", chance, partial(visit, gate, engines)):
            assert result == "done" or isinstance(result, asyncio.CancelledError), result

    run(scenario)
