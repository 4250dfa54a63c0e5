"""The public Python API: its names, its messages, and what it shows in a notebook."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import merganser
from checkpoints_on_disk import make_model
from command_line import commands
from merganser.cli.flag_names import in_flags
from merganser.evaluation.statistics import Score
from merganser.hub import publishing
from merganser.results.scores import Entry, Results
from merganser.sinks import NullSink
from recipe_files import RecipeFile

SOURCE = Path(merganser.__file__).parent

# -- messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("merge", "give force=True", "give --force"),
        ("merge", "tensor_names='union' merges", "--tensor-union (-u) merges"),
        ("merge", "x; seed=3 and more", "x; --seed 3 and more"),
        ("verify", "first: load_methods('my.py')", "first: --methods my.py"),
        ("verify", "give force=True", "give force=True"),
        ("merge", "data/force=True/x", "data/force=True/x"),
        ("merge", "say replace=True", "say replace=True"),
    ],
)
def test_the_command_line_names_its_own_flags(command: str, message: str, expected: str) -> None:
    assert in_flags(message, commands()[command]) == expected


def test_messages_of_the_library_name_no_flags() -> None:
    """The command line puts its flags in: see ``cli/flag_names.py``."""
    flags = {
        flag
        for command in commands().values()
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    }
    assert "--force" in flags
    named = re.compile("|".join(rf"(?<![\w`-]){flag}(?![\w-])" for flag in flags))
    found = [
        f"{file.relative_to(SOURCE)}:{number}: {line.strip()}"
        for file in sorted(SOURCE.rglob("*.py"))
        if not {"cli", "card.py", "commands.py"} & set(file.parts)  # these write command lines
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []


# -- names -------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, merganser; print([m for m in ('torch', 'numpy', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def typed_names() -> set[str]:
    """The names that a type checker sees."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname for node in imports for alias in node.names if alias.asname}


def test_every_public_name_is_there_typed_and_documented() -> None:
    names = set(dir(merganser)) - {"__version__"}
    assert names == typed_names()
    listed = set(re.findall(r"\w+", merganser.__doc__ or ""))
    assert names <= listed
    for name in names:
        value = getattr(merganser, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name


def test_all_that_the_command_line_does_is_in_python() -> None:
    same = {"eval": "evaluate", "chat": "LiveModel", "methods": "merge_method", "schema": "Recipe"}
    same |= {"worker": "work", "models": "list_models"}
    for command in commands().keys() - {"studio"}:  # a page, for people
        assert same.get(command, command) in dir(merganser)


def test_help_fits_a_few_screens() -> None:
    text = pydoc.plain(pydoc.render_doc(merganser))
    assert len(text.splitlines()) < 120
    assert "merge(config, out)" in text


# -- traps -------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """A live model with the tensors of a state dict."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.tensors


def test_a_recipe_is_blended_as_a_plan_is(linear: Path) -> None:
    plan = merganser.plan(linear)
    models = [
        Model({job.name: torch.zeros(job.spec.shape, dtype=torch.bfloat16) for job in plan.jobs})
        for _ in range(2)
    ]
    merganser.blend(models[0], plan)
    merganser.blend(models[1], str(linear))
    for name, tensor in models[0].tensors.items():
        assert bool(tensor.any())
        assert torch.equal(tensor, models[1].tensors[name])


@pytest.mark.parametrize(
    ("plans", "sinks", "kind", "message"),
    [
        (1, [], ValueError, "1 plans for 0 sinks"),
        (["recipe.yml"], [NullSink()], TypeError, r"merganser.plan\(recipe\) makes one"),
        (1, [object()], TypeError, "merganser.Sink is their base class"),
    ],
)
def test_run_names_wrong_arguments(
    linear: Path, plans: Any, sinks: list[Any], kind: type[Exception], message: str
) -> None:
    given = [merganser.plan(linear)] if plans == 1 else plans
    with pytest.raises(kind, match=message):
        merganser.run(given, sinks)


def test_a_sink_needs_write_alone(linear: Path) -> None:
    sizes: dict[str, int] = {}

    class Sizes(merganser.Sink):
        def write(self, name: str, start: int, data: memoryview) -> None:
            sizes[name] = sizes.get(name, 0) + len(data)

    plan = merganser.plan(linear)
    merganser.run([plan], [Sizes()])
    assert sizes == {job.name: job.spec.nbytes for job in plan.jobs}
    with pytest.raises(NotImplementedError, match="Sink"):
        merganser.Sink().write("t", 0, memoryview(b""))


def test_a_report_takes_a_folder_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(merganser.MerganserError, match=r"results\.json"):
        merganser.report(str(tmp_path))


# -- what a notebook shows ---------------------------------------------------------------------------

RESULTS = Results(
    "study",
    "",
    {"accuracy": "max"},
    {},
    (
        Entry(
            "<b>base</b>", "base", model="base", scores={"accuracy": Score(0.5, 0.1, 0.3, 0.7, 9)}
        ),
        Entry("m_w0.5", "point", values={"w": 0.5}),
    ),
    {"m_w0.5": "the best accuracy"},
)


@pytest.fixture
def shown(tmp_path: Path, recipe_file: RecipeFile) -> Iterator[dict[str, Any]]:
    """One of each thing that people look at, of models with hundreds of tensors."""
    for seed, name in enumerate(("a", "b")):
        make_model(tmp_path / name, layers=20, seed=seed)
    text = "merge_method: linear\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {weight: 0.5}\n"
    recipe = recipe_file(text)
    sweep = recipe_file(text.replace("0.5", '"{{ w }}"') + "sweep: {w: [0.5]}\n", "sweep.yml")
    plan = merganser.plan(recipe)
    merged = merganser.merge(recipe, tmp_path / "out")
    return {
        "plan": plan,
        "merge": merged,
        "outcome": merged.outcome,
        "results": RESULTS,
        "diff": merganser.diff(str(tmp_path / "a"), str(tmp_path / "b")),
        "fact sheet": merganser.inspect(str(tmp_path / "a")),
        "sweep": merganser.sweep(sweep, tmp_path / "sweep"),
        "chain": merganser.merge_all(recipe, tmp_path / "chain"),
    }


def test_what_people_look_at_is_short(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        text = repr(value)
        assert len(text) < 400, name
        assert "\n" not in text
    assert repr(shown["plan"]).startswith("Plan(linear of 2 models, 243 tensors, ")
    assert "out'" in repr(shown["merge"])
    for name in ("plan", "merge", "results", "diff", "fact sheet", "sweep"):
        page = shown[name]._repr_html_()
        assert page.startswith("<table>"), name
        assert page.count("<td>") > 3
        assert len(page) < 20_000
    assert "&lt;b&gt;base" in RESULTS._repr_html_()
    assert "0.5 ± 0.1" in RESULTS._repr_html_()
    assert "stored" in shown["merge"]._repr_html_()


# -- publishing --------------------------------------------------------------------------------------


def test_a_card_is_written_anew_and_local_paths_are_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the Hub is asked")

    monkeypatch.setattr(publishing, "account", asked)
    models = [
        {"model": str(make_model(tmp_path / name)), "parameters": {"weight": 1}} for name in "ab"
    ]
    out = tmp_path / "out"
    merganser.merge({"merge_method": "linear", "models": models}, out)
    (out / "README.md").write_text("mine")
    merganser.card(str(out))
    assert "## Reproduce" in (out / "README.md").read_text()
    with pytest.raises(
        merganser.MerganserError,
        match=r"nothing was sent, since .*; public=True replaces them by names",
    ):
        merganser.push(str(out), "org/name")
    with pytest.raises(AssertionError, match="the Hub is asked"):
        merganser.push(out, "org/name", with_paths=True)
