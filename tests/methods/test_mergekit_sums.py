"""The sum of weights by which MergeKit divides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merganser.methods import Combination, Finish, get
from merganser.methods.mergekit.rounded_sums import added


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_added_as_torch_adds_them(dtype: str) -> None:
    random = np.random.default_rng(0)
    for count in (*range(1, 40), 64, 65, 127):
        numbers = random.normal(size=count).tolist()
        wanted = torch.tensor(numbers, dtype=getattr(torch, dtype)).sum()
        assert added(numbers, dtype) == float(wanted)


def test_only_mergekits_linear_has_a_finish() -> None:
    exact, theirs = (get("linear", arithmetic) for arithmetic in ("exact", "mergekit"))
    assert exact is not None
    assert theirs is not None
    weights = {"weight": (0.1, 0.2, 0.4)}
    normalised = theirs.function(**weights, normalize=True)
    assert exact.function(**weights, normalize=True).finish == Finish()
    single = np.float32(0.1) + np.float32(0.2) + np.float32(0.4)  # 0.70000005
    assert normalised.finish.divisors == (float(single), 0.1 + 0.2 + 0.4)
    assert normalised.shares == pytest.approx((1 / 7, 2 / 7, 4 / 7), abs=1e-15)
    assert theirs.function(weight=(1.0,), normalize=False) != Combination((1.0,))
