"""Differences of models against sums in float64."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from checkpoints_on_disk import make_model
from merganser import cli
from merganser.cli import diff_table
from merganser.differences import effective_rank
from merganser.differences.diff import diff
from merganser.errors import InputError, RecipeError
from merganser.kernels import CELL
from messages import assert_one_line
from peers import _ordered, load

BITS = ["bfloat16", "float16", "float32", "float64"]


def buckets(distances: torch.Tensor) -> list[int]:
    edges = [-1.0, 0.0, *(2.0**n for n in range(16)), 2.0**64]
    numbers = distances.double()
    return [
        int(((numbers > low) & (numbers <= high)).sum()) for low, high in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("dtype", BITS)
def test_figures_are_those_of_float64(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    large = (CELL + 77,)  # more than a cell
    generator = torch.Generator().manual_seed(5)
    base = 0.02 * torch.randn(large, generator=generator, dtype=torch.float64)
    for i, name in enumerate("abc"):
        step = 1e-4 * i * torch.randn(large, generator=generator, dtype=torch.float64)
        number = (base + step * (torch.rand(large, generator=generator) < 0.5)).to(kind)
        number[:2] = torch.tensor([0.0, -0.0] if i else [-0.0, 0.0], dtype=kind)
        make_model(tmp_path / name, dtype=kind, extra={"model.extra": number})
    c, a, b = (str(tmp_path / name) for name in "abc")
    whole = diff(a, b, base=c, threads=2)
    found = {t.name: t for t in whole.tensors}
    again = {t.name: t for t in diff(a, b, base=c, threads=1).tensors}
    tensors = [load(Path(model)) for model in (a, b, c)]
    assert found.keys() == tensors[0].keys()
    for name, each in found.items():
        x, y, z = (t[name].double().flatten() for t in tensors)
        apart = (_ordered(tensors[0][name]) - _ordered(tensors[1][name])).abs().flatten()
        if dtype == "float64":
            apart[x * y < 0] = 2**62  # their distance does not fit
        assert each.histogram.tolist() == buckets(apart), name
        if name != "model.extra":
            continue
        da, db = x - z, y - z
        both = (da != 0) & (db != 0)
        wanted = {
            "changed": float((x != y).double().mean()),
            "distance": float((x - y).norm()),
            "relative": float((x - y).norm() / x.norm()),
            "relative_a": float(da.norm() / z.norm()),
            "relative_b": float(db.norm() / z.norm()),
            "cosine": float(da @ db / da.norm() / db.norm()),
            "same_sign": float((da * db > 0).sum() / both.sum()),
            "interference": float(1 - (da + db).abs().sum() / (da.abs().sum() + db.abs().sum())),
        }
        assert whole.figures([each]) == pytest.approx(wanted, rel=1e-6, abs=1e-9), name
        assert each.sums.tolist() == again[name].sums.tolist()


@pytest.mark.parametrize("ulp", ["bfloat16", "float16", "float32"])
def test_units_are_counted_in_the_dtype_that_is_asked_for(tmp_path: Path, ulp: str) -> None:
    """Both models are rounded to it, whatever they are stored in; norms are those of the numbers as they are."""
    generator = torch.Generator().manual_seed(3)
    wide = 0.02 * torch.randn(CELL + 77, generator=generator, dtype=torch.float64)
    step = 1e-4 * torch.randn(CELL + 77, generator=generator, dtype=torch.float64)
    narrow = (wide + step).float()
    numbers = [
        wide.bfloat16(),
        narrow,
        (narrow + step.float()).double(),
    ]  # torch rounds float64 twice
    for name, number in zip("abc", numbers, strict=True):
        make_model(tmp_path / name, dtype=number.dtype, extra={"model.extra": number})
    for first, second in itertools.combinations("abc", 2):
        models = str(tmp_path / first), str(tmp_path / second)
        plain, found = diff(*models), diff(*models, ulp=ulp)
        tensors = [load(Path(model)) for model in models]
        for before, each in zip(plain.tensors, found.tensors, strict=True):
            x, y = (own[each.name].to(getattr(torch, ulp)) for own in tensors)
            apart = (_ordered(x) - _ordered(y)).abs().flatten()
            assert each.histogram.tolist() == buckets(apart), each.name
            assert each.sums.tolist() == before.sums.tolist()
    assert found.as_dict()["ulp_dtype"] == ulp
    with pytest.raises(RecipeError, match="ulp: 'float8' is not one of bfloat16, float16, float32"):
        diff(*models, ulp="float8")


def test_a_model_does_not_differ_from_itself(pair: tuple[Path, Path]) -> None:
    found = diff(str(pair[0]), str(pair[0])).as_dict()
    assert found["whole"] == {"changed": 0.0, "distance": 0.0, "relative": 0.0}
    assert list(found["layers"]) == ["–", "0", "1"]
    assert set(found["roles"]) == {"embedding", "attention", "mlp", "norm", "head"}


def test_tensors_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    extra = {"model.steps": torch.zeros(3, dtype=torch.int64), "only_a": torch.zeros(2)}
    a = make_model(tmp_path / "a", extra=extra)
    b = make_model(
        tmp_path / "b", vocab=40, dtype=torch.float32, extra={"model.steps": torch.zeros(3)}
    )
    skipped = diff(str(a), str(b)).skipped
    assert skipped["model.steps"] == "int64 is not compared"
    assert skipped["only_a"].startswith("not in ")
    assert skipped["model.embed_tokens.weight"] == "shapes differ: [32, 16], [40, 16]"
    with pytest.raises(InputError) as error:
        diff(str(a), str(tmp_path / "gone"))
    assert_one_line(str(error.value), "gone: no such")


def test_the_command(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    shown = CliRunner().invoke(cli.main, ["diff", a, b])
    assert shown.exit_code == 0, shown.output
    assert "most different" in shown.output
    assert "\nrelative  distance over the L2 norm of A\n" in shown.output
    rounded = CliRunner().invoke(cli.main, ["diff", a, b, "--ulp", "float16"])
    assert "units in the last place of float16" in rounded.output
    told = CliRunner().invoke(cli.main, ["diff", a, b, "--base", a, "--json"])
    data = json.loads(told.output)
    assert data["whole"]["relative_a"] == 0
    assert data["whole"]["cosine"] is None
    assert sum(data["ulps"].values()) == sum(
        sum(t["ulps"].values()) for t in data["tensors"].values()
    )


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_picture(pair: tuple[Path, Path], tmp_path: Path, form: str) -> None:
    a, b = map(str, pair)
    file = tmp_path / f"diff.{form}"
    shown = CliRunner().invoke(cli.main, ["diff", a, b, "--base", a, "--figure", str(file)])
    assert shown.exit_code == 0, shown.output
    assert file.read_bytes().startswith(b"\x89PNG" if form == "png" else b"<?xml")
    cells = diff(a, b).cells()
    assert list(cells)[:2] == ["embed_tokens", "input_layernorm"]
    assert list(cells["self_attn.q_proj"]) == ["0", "1"]
    again = CliRunner().invoke(cli.main, ["diff", a, b, "--figure", str(tmp_path / "diff.doc")])
    assert again.exit_code == 2
    assert "must end in" in again.output


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 9), (30, 30)])
@pytest.mark.parametrize("true", [1, 3, 24])
def test_effective_ranks_are_those_of_the_singular_values(
    shape: tuple[int, int], true: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effective_rank, "AT_ONCE", 100)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape[0], true, generator=generator, dtype=torch.float64)
    matrix = left @ torch.randn(true, shape[1], generator=generator, dtype=torch.float64)
    singular = torch.linalg.svdvals(matrix)
    shares = singular[singular > 1e-7 * singular[0]] / singular.sum()
    wanted = float(torch.exp(-(shares * shares.log()).sum()))
    found = effective_rank.effective_rank(shape, lambda begin, end: matrix[begin:end].numpy())
    assert found == pytest.approx(wanted, rel=1e-5)
    assert 1 - 1e-9 <= found <= min(*shape, true) + 1e-9


def test_ranks_of_models(tmp_path: Path) -> None:
    step = torch.outer(torch.arange(1.0, 33.0), torch.arange(1.0, 17.0)) / 64
    for name, scale in (("a", 0.0), ("b", 1.0)):
        make_model(tmp_path / name, seed=1, extra={"model.step": scale * step})
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    found = diff(a, b, rank=True)
    ranked = {tensor.name: tensor.rank for tensor in found.tensors}
    assert ranked.pop("model.step") == pytest.approx(1.0)
    assert set(ranked.values()) == {None}
    assert found.as_dict()["whole"]["effective_rank"] == pytest.approx(1.0)
    assert "effective_rank" not in diff(a, b).as_dict()["whole"]
    printed = CliRunner().invoke(cli.main, ["diff", a, b, "--rank"])
    assert printed.exit_code == 0, printed.output
    assert "effective rank" in printed.output


@pytest.mark.parametrize("width", [60, 80])
def test_the_tables_of_a_comparison_fit_the_terminal(
    pair: tuple[Path, Path],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Headings and numbers are whole, and names are whole or folded."""
    a, b = map(str, pair)
    found = diff(a, b, base=a, rank=True)
    monkeypatch.setattr(diff_table, "stdout", lambda: Console(width=width))
    diff_table.show_diff(found)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    for heading in found.figures(found.tensors):
        assert out.count(heading.replace("_", " ")) >= 4, heading
    if width == 80:
        assert "\nmodel.layers.1.mlp.gate_proj.weight " in out


def test_what_is_not_finite_has_no_rank(tmp_path: Path) -> None:
    """Nor does numpy speak of it: here warnings are errors."""
    inf = torch.inf
    for seed, name in enumerate("ab"):
        extra = {"model.x": torch.full((4, 8), inf), "model.y": torch.full((8, 4), inf)}
        make_model(tmp_path / name, seed=seed, extra=extra)
    found = diff(str(tmp_path / "a"), str(tmp_path / "b"), rank=True)
    ranked = {tensor.name: tensor.rank for tensor in found.tensors}
    assert ranked["model.x"] is ranked["model.y"] is None
    assert ranked["lm_head.weight"]
