"""Sweeps that a page makes of its blend, and study files that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from merganser import methods
from merganser.errors import MerganserError
from merganser.recipe.sweep_file import Point, load_points
from merganser.studio import study_files, sweeps
from merganser.studio.commands import Asked
from studio_client import RECIPE, Client

TASK = {"problems": "problems.jsonl", "scorers": ["exact", "tokens"]}


def axes(text: str = RECIPE, **more: Any) -> sweeps.Axes:
    """What a page asks for: by default three weights of two models."""
    asked = {"step": 0.25, "low": 0.25, "high": 0.75, "tasks": [TASK], "text": text}
    return sweeps.Axes.model_validate(asked | more)


def points_of(client: Client, wanted: sweeps.Axes) -> list[Point]:
    """The points of a sweep's file, as the command line reads it."""
    file = client.library.root / "sweep_of_a_test.yml"
    made = sweeps.make(wanted, client.library)
    file.write_text(made.text)
    try:
        points = load_points(file)
    finally:
        file.unlink()
    assert len(points) == made.points
    return points


def parameter(point: Point, index: int, name: str = "weight") -> str | None:
    models = point.recipe.recipe.models or []
    setting = models[index].parameters.get(name)
    return None if setting is None else str(setting.rules[0].value)


@pytest.fixture
def written(client: Client) -> Iterator[Path]:
    yield client.library.root
    for file in client.library.root.glob("swept*"):
        file.unlink()


def test_a_sweep_is_made_of_a_blend(client: Client, written: Path) -> None:
    asked = {
        "kind": "sweep", "text": RECIPE, "name": "swept", "step": 0.25, "low": 0.25, "high": 0.75,
        "tasks": [TASK],
    }  # fmt: skip
    command = TypeAdapter(Asked).validate_python(asked).command(client.library)
    assert command.words == ["sweep", "swept.yml", "swept", "--no-write"]
    assert (command.folder, command.network) == ("swept", "none")
    points = load_points(written / "swept.yml")
    assert [point.values["w"] for point in points] == [0.25, 0.5, 0.75]
    assert (parameter(points[2], 0), parameter(points[2], 1)) == ("0.75", "0.25")
    for wrong in (
        {"tasks": [TASK | {"problems": "../secret"}]},
        {"tasks": [TASK | {"scorers": ["os.system"]}]},
        {"tasks": [TASK | {"scorers": ["code"]}]},
        {"tasks": [TASK | {"scorers": []}]},
        {"tasks": []},
        {"step": 0.0},
        {"low": 5},
        {"methods": ["tis"]},
    ):
        assert client.post("/studio/jobs", asked | {"name": "other"} | wrong).status == 400, wrong


def test_methods_have_the_parameters_that_they_know(client: Client) -> None:
    text = (
        "merge_method: ties\nbase_model: a\nmodels:\n"
        "- {model: a, parameters: {weight: 0.5, density: 0.4}}\n"
        "- {model: b, parameters: {weight: 0.5, density: [0.2, 0.8]}}\n"
        "parameters: {normalize: true, lambda: 0.9}\n"
    )
    names = ["linear", "ties", "slerp", "ram"]
    points = points_of(client, axes(text, methods=names))
    listed = {point.name: point for point in points}
    assert set(listed) == {
        *(f"{name}_w{w}" for name in names[:3] for w in (0.25, 0.5, 0.75)),
        "ram_w0.5",
    }
    linear, ties, slerp, ram = (listed[f"{name}_w0.5"] for name in names)
    assert [p.recipe.recipe.merge_method for p in (linear, ties, slerp, ram)] == names
    assert [
        getattr(p.recipe.recipe.base_model, "text", None) for p in (linear, ties, slerp, ram)
    ] == [
        None,
        "a",
        "a",
        "a",
    ]
    assert [parameter(p, 1, "density") is None for p in (linear, ties, slerp, ram)] == [
        True,
        False,
        True,
        True,
    ]
    assert [parameter(p, 0) for p in (linear, ties, slerp, ram)] == ["0.5", "0.5", None, None]
    assert str(listed["slerp_w0.25"].recipe.recipe.parameters["t"].rules[0].value) == "0.75"
    assert "lambda" not in linear.recipe.recipe.parameters
    assert str(ties.recipe.recipe.parameters["lambda"].rules[0].value) == "0.9"


def test_all_methods_that_the_page_offers_can_be_swept(client: Client) -> None:
    text = RECIPE + "base_model: a\n"
    names = [name for name in methods.names() if sweeps.use_of(methods.get(name), 2)]  # type: ignore[arg-type]
    points = points_of(client, axes(text, methods=names, low=0.5, high=0.5))
    assert [point.recipe.recipe.merge_method for point in points if point.name.startswith(names[0])]
    assert {point.recipe.recipe.merge_method for point in points} == set(names)
    assert {"linear", "ties", "slerp", "sce"} <= set(names)
    assert not {"relex", "nearswap", "passthrough"} & set(names)


def test_three_models_have_all_weights_that_add_up_to_1(client: Client) -> None:
    text = RECIPE + "  - model: a\n    parameters: {weight: 0}\n"
    points = points_of(client, axes(text, step=0.5))
    assert len(points) == 6
    inside = points_of(client, axes(text, step=0.25, inside=True, methods=["linear", "karcher"]))
    assert len(inside) == 2 * 3
    for point in inside:
        assert sum(float(parameter(point, i) or 0) for i in range(3)) == 1


def test_a_parameter_is_varied_too(client: Client) -> None:
    text = RECIPE.replace("linear", "ties") + "base_model: a\n"
    over = {"parameter": "density", "values": [0.2, 0.8]}
    points = points_of(client, axes(text, over=over))
    assert len(points) == 6
    assert [parameter(point, 1, "density") for point in points[:2]] == ["0.2", "0.8"]
    points = points_of(client, axes(text, over={"parameter": "lambda", "values": [0.5, 1.5]}))
    assert str(points[1].recipe.recipe.parameters["lambda"].rules[0].value) == "1.5"


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        (RECIPE, {"methods": ["linear", "ties"]}, "TIES needs a base"),
        (RECIPE, {"methods": ["nearswap"]}, "cannot be swept"),
        (
            RECIPE,
            {"over": {"parameter": "density", "values": [1.0]}},
            "Linear has no parameter 'density'",
        ),
        ("merge_method: linear\nmodels:\n- {model: a}\n", {}, "two or more models"),
        ("models: 3\n", {}, "two or more models"),
        (RECIPE, {"step": 0.01, "low": -4, "high": 4}, "at most 500"),
        (RECIPE, {"tasks": [{"preset": "nothing"}]}, "there is no 'nothing'"),
        (RECIPE, {"tasks": [{"preset": "greedy", "scorers": ["exact"]}]}, "choose a file or a set"),
    ],
)
def test_what_cannot_be_swept_is_said_in_one_line(
    client: Client, text: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(MerganserError, match=message) as error:
        sweeps.make(axes(text, **more), client.library)
    assert "\n" not in str(error.value)


def test_the_page_sees_the_file_and_how_much_it_is(client: Client) -> None:
    sets = [
        {"problems": "gsm8k", "limit": 10, "scorers": ["exact"], "samples": 2},
        {"preset": "open-rs"},
    ]
    asked = axes(tasks=[TASK]).model_dump()
    found = client.post("/studio/sweep", asked).data
    assert (found["points"], found["models"], found["problems"], found["completions"]) == (
        3,
        2,
        1,
        5,
    )
    assert "sweep:" in found["text"]
    found = client.post("/studio/sweep", asked | {"tasks": sets}).data
    assert found["problems"] == 10 + 30 + 500 + 40 + 272 + 675
    assert found["network"] is True
    reply = client.post("/studio/sweep", asked | {"methods": ["ties"]})
    assert reply.data["error"] == "TIES needs a base; choose one on the screen Blend"


STUDY = """name: p{{ w }}
sweep: {w: [0.3, 0.6]}
merge_method: linear
models:
- {model: a, parameters: {weight: "{{ w }}"}}
- {model: b, parameters: {weight: "{{ 1 - w }}"}}
evaluate:
  tasks:
  - {problems: problems.jsonl, scorers: [exact, {scorer: tokens, name: length}]}
"""


def test_study_files_are_run_where_they_run_nothing_else(client: Client, written: Path) -> None:
    file = written / "swept.yml"
    file.write_text(STUDY)
    assert client.get("/studio/library").data["sweeps"] == ["swept.yml"]
    assert study_files.check("swept.yml", client.library) is False
    file.write_text(STUDY.replace("problems.jsonl", "gsm8k"))
    assert study_files.check("swept.yml", client.library) is True
    for wrong, message in (
        (STUDY.replace("exact", "'mine.py:run'"), "the scorer mine.py:run"),
        (STUDY + "  allow_code: true\n", "allow_code"),
        (STUDY + "  engine: endpoint\n  engine_options: {url: 'http://127.0.0.1:1'}\n", "endpoint"),
        (STUDY + "  track: wandb\n", "track"),
        (STUDY + "  base: ../secret\n", "is not below"),
        (STUDY.replace("model: b", "model: way_out"), "is not below"),
        (STUDY.replace("problems.jsonl", "../secret/README.md"), "is not below"),
        (STUDY.replace("evaluate:", "assess:"), "no evaluate: block"),
    ):
        file.write_text(wrong)
        with pytest.raises(MerganserError, match=message):
            study_files.check("swept.yml", client.library)
        assert client.post("/studio/jobs", {"kind": "again", "name": "swept"}).status == 400


def test_slerp_is_swept_from_its_base_to_its_model(client: Client) -> None:
    text = "merge_method: slerp\nbase_model: a\nmodels:\n- {model: b}\nparameters: {t: 0.5}\n"
    points = points_of(client, axes(text, methods=["slerp", "linear"]))
    assert [point.name for point in points[:2]] == ["slerp_w0.25", "slerp_w0.5"]
    assert str(points[0].recipe.recipe.parameters["t"].rules[0].value) == "0.75"
    assert [parameter(points[3], index) for index in range(2)] == ["0.25", "0.75"]
