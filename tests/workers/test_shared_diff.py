"""Differences of models that several processes compute together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from checkpoints_on_disk import make_model
from merganser import cli
from merganser.differences import diff as diffs
from merganser.differences.diff import Comparison, diff
from merganser.errors import InputError, MerganserError, OutputExistsError
from merganser.workers import shared_diff
from merganser.workers.claims import Claims
from merganser.workers.shared_diff import diff_with_others
from messages import assert_one_line


def assert_equal(one: diffs.Diff, other: diffs.Diff) -> None:
    assert one.skipped == other.skipped
    for a, b in zip(one.tensors, other.tensors, strict=True):
        assert (a.name, a.role, a.layer, a.elements) == (b.name, b.role, b.layer, b.elements)
        assert np.array_equal(a.histogram, b.histogram)
        assert np.array_equal(a.sums, b.sums)
        assert a.rank == b.rank


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few tensors."""
    monkeypatch.setattr(shared_diff, "LEAST", 3000)


def test_parts_are_the_differences_of_one_process(
    tmp_path: Path, pair: tuple[Path, Path], units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process ends after two units, another does the rest, a third one computes nothing."""
    a, b = map(str, pair)
    base, folder = str(make_model(tmp_path / "base")), tmp_path / "deep" / "shared"
    expected = diff(a, b, base=base, rank=True)
    compare, sizes = Comparison.compare, []

    def count(self: Comparison, names: Any) -> Any:
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(names))
        return compare(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "compare", count)
        with pytest.raises(KeyboardInterrupt):
            diff_with_others(a, b, folder, base=base, rank=True)
    assert 0 < sum(sizes) < len(expected.tensors)
    assert len(list(folder.glob("*.result"))) == 2
    assert_equal(diff_with_others(a, b, folder, base=base, rank=True), expected)
    monkeypatch.setattr(Comparison, "compare", None)
    assert_equal(diff_with_others(a, b, folder, base=base, rank=True), expected)
    arguments = ["diff", a, b, "--base", base, "--rank", "--share", str(folder), "--json"]
    done = CliRunner().invoke(cli.main, arguments)
    assert json.loads(done.stdout) == json.loads(json.dumps(expected.as_dict())), done.output


def test_other_comparisons_and_other_files_are_refused(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    a, b = map(str, pair)
    folder = tmp_path / "shared"
    diff_with_others(a, b, folder)
    with pytest.raises(OutputExistsError, match="is of another comparison; choose another folder"):
        diff_with_others(b, a, folder)
    make_model(tmp_path / "b", seed=7)
    with pytest.raises(InputError) as refused:
        diff_with_others(a, b, folder)
    assert_one_line(str(refused.value), f"sees another {tmp_path}/b/model.safetensors than")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("merge_method: passthrough\nmodels: [{model: ./a}]\n")
    with pytest.raises(InputError, match="is merged in memory; merge it into a folder"):
        diff_with_others(str(recipe), b, tmp_path / "other")


def test_tensors_that_kill_processes_are_named(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    claims = Claims(tmp_path / "shared", stale=-1)
    for _ in range(3):
        assert claims.take("00000")
    assert claims.take("00000") is None
    with pytest.raises(MerganserError, match=r"^\S+: 3 processes died while they compared it"):
        diff_with_others(a, b, tmp_path / "shared")
