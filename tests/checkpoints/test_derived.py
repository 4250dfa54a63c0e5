"""Tensors that are computed while they are read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from merganser.checkpoints.computed.derived import cached


def test_threads_share_a_call_and_the_latest_results_are_cached() -> None:
    calls = []

    def slow(key: int) -> int:
        calls.append(key)
        time.sleep(0.01)
        return key * key

    function = cached(slow, 2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(function, [3, 3, 3, 3])) == [9, 9, 9, 9]
    assert calls == [3]
    assert [function(key) for key in (4, 3, 5, 3, 4)] == [16, 9, 25, 9, 16]
    assert calls == [3, 4, 5, 4]  # 4 was the one that had not been asked for the longest
