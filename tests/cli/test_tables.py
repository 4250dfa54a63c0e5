"""Tables fit the terminal, say once what all rows share, and have no padding in pipes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

import merganser
from checkpoints_on_disk import make_model
from merganser import methods, number_format
from merganser.cli import columns, method_table, plan_table


def test_names_are_folded_where_there_is_no_room_and_never_cut(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [{"model": str(path), "parameters": {"weight": 1}} for path in pair]
    plan = merganser.plan({"merge_method": "linear", "models": models})
    monkeypatch.setattr(plan_table, "stdout", lambda: Console(width=60))
    plan_table.show_plan(plan)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 60
    first = shown.splitlines()[2:]
    name = first[: next(i for i, line in enumerate(first) if line.startswith("B"))]
    assert str(pair[0]) in "".join(line[3:].rstrip() for line in name)


@pytest.mark.parametrize("width", [60, 80])
def test_a_plan_says_once_what_all_tensors_share(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_model(tmp_path / name, seed=seed)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("COLUMNS", str(width))

    def shown(weight: object, verbose: bool = False) -> list[str]:
        models = [
            {"model": "./a", "parameters": {"weight": weight}},
            {"model": "./b", "parameters": {"weight": 0.4}},
        ]
        plan = merganser.plan({"merge_method": "linear", "models": models})
        plan_table.show_plan(plan, verbose=verbose)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert lines == [line.rstrip() for line in lines]
        return lines

    lines = shown(0.6)
    count = len(load_file(tmp_path / "a" / "model.safetensors"))
    assert any(
        line.startswith(f"all {count} tensors: linear; from A + B; weight 0.6, 0.4;")
        for line in lines
    )
    assert not any(line.startswith(("norm ", "mlp ", "tensors ")) for line in lines)
    lines = shown([0.2, 0.8])
    assert any(
        line.split() == ["mlp", "6", "3,072", "0.2", "…", "0.8,", "0.4"] for line in lines
    ), lines
    assert f"all {count} tensors: linear; from A + B; normalize true" in lines
    lines = shown([0.2, 0.8], verbose=True)
    assert sum(line.startswith("model.layers.1.mlp.") and "0.8, 0.4" in line for line in lines) == 3


def test_tables_are_as_wide_as_they_need_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    names = ["n" * 300, "m"]
    columns.print_columns(
        columns.stdout(), [columns.Column("a", names), columns.Column("b", ["1", ""])]
    )
    assert capsys.readouterr().out.splitlines()[1:] == [f"{'n' * 300}  1", "m"]


def test_models_have_letters() -> None:
    assert [columns.letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip


def test_weights_name_their_models() -> None:
    both = [{"runs/acc": 0.3, "runs/fmt": 0.7}, None, {}, {"runs/acc": 0.5, "runs/fmt": None}]
    column = columns.weights_column("weights", both)
    assert column.title == "weights (runs/acc, runs/fmt)"
    assert column.cells == ["0.300, 0.700", "–", "", "0.500, –"]
    column = columns.weights_column("weights", [*both, {"runs/len": 1.0}])
    assert column.title == "weights"
    assert column.cells[0] == "runs/acc 0.300, runs/fmt 0.700"
    assert column.cells[4] == "runs/len 1.000"
    long = columns.weights_column("weights", [{9 * letter: 0.1 for letter in "abcde"}])
    assert long.title == "weights"
    assert str(long.cells[0]).startswith("aaaaaaaaa 0.100, bbbbbbbbb 0.100, ")


def test_one_is_no_plural() -> None:
    counts = [number_format.counted(count, "point") for count in (0, 1, 2, 1000)]
    assert counts == ["0 points", "1 point", "2 points", "1,000 points"]


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_methods_fit_the_terminal(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are whole, nothing is cut, and there are no backticks of docstrings."""
    monkeypatch.setenv("COLUMNS", str(width or ""))
    known = [method for name in methods.names() if (method := methods.get(name)) is not None]
    for full in (False, True):
        method_table.show_methods(known, full=full)
        lines = capsys.readouterr().out.splitlines()
        assert width is None or max(map(len, lines)) <= width
        assert not [line for line in lines if re.search(r"\b0\+", line)]
        assert not [line for line in lines if "…" in line or "``" in line or line.endswith(" ")]
        words = [line.split()[0] for line in lines if line.strip()]
        for method in known:
            assert method.name in words
            for parameter in method.parameters if full else ():
                assert parameter.name in words


def test_a_table_of_points_says_that_it_shortens_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"merge_accfmt_MRL4096_ROLLOUT4_LR2e-6_w0.{n}_linear" for n in (3, 5)]
    plans = [columns.Column("plan", ["0123456789abcdef", "fedcba9876543210"])]
    for width in (60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        columns.print_points(columns.stdout(), names, plans)
        lines = capsys.readouterr().out.splitlines()
        said = " ".join(lines[3:])
        if width == 80:
            assert lines[1:] == [f"{names[0]}  0123456789abcdef", f"{names[1]}  fedcba9876543210"]
        else:
            assert lines[1:3] == ["w0.3   0123456789abcdef", "w0.5   fedcba9876543210"]
            assert said == (
                f"names are shortened: w0.3 is {names[0]}; `SWEEP.yml#NAME` and `--only NAME` take both"
            )
