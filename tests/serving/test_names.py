"""What a server has, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import merganser
from merganser.errors import RecipeError
from merganser.evaluation.statistics import Score
from merganser.planning import make_plan
from merganser.results import scores as results
from merganser.results.scores import Entry, Results
from merganser.serving.names import Catalogue, UnknownModel
from messages import assert_one_line


def test_a_sweep_has_its_points_its_experts_and_all_between(study: Path) -> None:
    catalogue = Catalogue([str(study)])
    points = [f"m_w0.{n}" for n in range(1, 10)]
    assert list(catalogue.models) == ["a", "b", *points]
    assert catalogue.models["a"].role == "expert"
    assert catalogue.models["m_w0.3"].values == {"w": 0.3}
    for name in ("sweep#w=0.3", f"{study}#w=0.3", "sweep.yml#m_w0.3", "sweep#w=0.30"):
        assert catalogue.find(name) is catalogue.models["m_w0.3"]
    between = catalogue.find("sweep#w=0.73")
    assert between is catalogue.find("sweep#w=0.73")
    assert between.values == {"w": 0.73}
    written = {
        "merge_method": "linear",
        "models": [
            {"model": str(study.parent / "a"), "parameters": {"weight": 0.27}},
            {"model": str(study.parent / "b"), "parameters": {"weight": 0.73}},
        ],
        "dtype": "float32",
    }
    own = make_plan(written).recipe.recipe.models
    assert own is not None
    assert [m.parameters for m in between.plan.recipe.recipe.models or ()] == [
        m.parameters for m in own
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m_w0.33", "did you mean 'm_w0.3'?"),
        ("other#w=0.3", "there is no model 'other#w=0.3'"),
        ("sweep#w=1.5", "w = 1.5 is outside the sweep's 0.1 to 0.9"),
        ("sweep#w=nan", "the sweep has no w = nan"),
        ("sweep#w=1e999", "w = inf is outside the sweep's"),
        ("sweep#v=0.3", "the sweep has no 'v'; it has w"),
        ("sweep#w=0.3&w=0.4", "write it like #w=0.73"),
        ("sweep#", "there is no point ''"),
        ("sweep#nothing", "there is no point 'nothing'"),
    ],
)
def test_what_there_is_not(study: Path, name: str, message: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        Catalogue([str(study)]).find(name)
    assert_one_line(str(caught.value), message)


def test_a_server_of_the_grid_only(study: Path) -> None:
    catalogue = Catalogue([str(study)], grid_only=True)
    assert catalogue.find("sweep#w=0.3").name == "m_w0.3"
    with pytest.raises(UnknownModel, match="the server has no others"):
        catalogue.find("sweep#w=0.35")


def test_single_models_beside_a_study(study: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "half.yml"
    folder = study.parent
    recipe.write_text(
        f"merge_method: linear\nmodels: [{{model: {folder}/a}}, {{model: {folder}/b}}]\n"
        "parameters: {weight: 0.5}\n"
    )
    catalogue = Catalogue([str(recipe), f"{study}#w=0.3"])
    assert list(catalogue.models) == ["half", "m_w0.3"]
    (tmp_path / "a").symlink_to(folder / "b")
    with pytest.raises(RecipeError, match="two models are called 'a'"):
        Catalogue([str(study), str(tmp_path / "a")])


@pytest.mark.parametrize("order", [1, -1], ids=["study-first", "study-last"])
def test_a_model_that_is_given_twice_is_one(study: Path, tmp_path: Path, order: int) -> None:
    """By whatever path, and as its study describes it."""
    (tmp_path / "a").symlink_to(study.parent / "a")
    given = [str(study), str(tmp_path / "a"), f"{study}#w=0.3"]
    catalogue = Catalogue(given[::order])
    assert set(catalogue.models) == set(Catalogue([str(study)]).models)
    expert, point = catalogue.models["a"], catalogue.models["m_w0.3"]
    assert (expert.role, point.values) == ("expert", {"w": 0.3})
    assert catalogue.find(str(tmp_path / "a")) is expert
    assert catalogue.find(f"{study}#w=0.3") is catalogue.find("sweep#m_w0.3") is point


def test_the_folder_of_a_study_has_its_scores(study: Path, tmp_path: Path) -> None:
    """Wherever its results are: the models are where the study found them."""
    out = tmp_path / "out"
    out.mkdir()
    score = Score(0.5, 0.1, 0.3, 0.7, 20)
    entries = (
        Entry("a", "expert", model="./a", scores={"exact": score}),
        Entry("m_w0.3", "point", values={"w": 0.3}, scores={"exact": score}),
        Entry("elsewhere", "published", scores={"exact": score}, source="a paper"),
    )
    found = Results(
        "sweep", study.read_text(), {"exact": "max"}, {}, entries,
        places=results.places(out, study.parent),
    )  # fmt: skip
    results.write(found, out)
    catalogue = Catalogue([str(out)])
    assert list(catalogue.models) == ["a", "m_w0.3"]
    assert catalogue.models["m_w0.3"].scores == {"exact": score}
    sweep = Catalogue([str(study)])
    assert catalogue.models["m_w0.3"].plan.digest == sweep.models["m_w0.3"].plan.digest
    assert catalogue.find("out#w=0.35").values == {"w": 0.35}


GRID = """
sweep:
  - {method: [linear, slerp], t: [1, 3]}
  - {w: {simplex: [x, y], step: 0.25}, t: [2], method: [linear], where: w.x >= 0.5}
name: "p_{{ method }}_{{ t }}"
"""


@pytest.mark.parametrize(
    ("fragment", "values"),
    [
        ("method=SLERP&t=2", {"method": "slerp", "t": 2}),
        ("method=slerp&t=1", {"method": "slerp", "t": 1}),
        ("w.x=0.6&w.y=0.4", {"method": "linear", "t": 2, "w": {"x": 0.6, "y": 0.4}}),
        ("method=slerp&t=1.5", "t is a whole number in this sweep"),
        ("method=slerp", "it lacks a value for t"),
        ("method=ties&t=1", "the sweep has no method = ties; it has linear, slerp"),
        ("w.x=0.6&w.y=0.6", "the values of w must add up to 1"),
    ],
)
def test_values_of_several_keys(fragment: str, values: Any) -> None:
    import yaml

    from merganser.recipe import Document
    from merganser.recipe.axes import read_grids
    from merganser.serving import names

    data = yaml.safe_load(GRID)
    problem = ""
    for grid in read_grids(Document(data), data["sweep"]):
        try:
            found = names._values_in(grid, names._read_values(fragment))
        except ValueError as error:
            problem += str(error)
            continue
        assert found == values
        return
    assert isinstance(values, str)
    assert values in problem


def test_points_are_those_that_a_sweep_writes(study: Path, tmp_path: Path) -> None:
    catalogue = Catalogue([str(study)])
    merganser.sweep(study, tmp_path / "out", only=["w=0.3"])
    written = merganser.plan(catalogue.models["m_w0.3"].plan.recipe)
    assert written.digest == catalogue.models["m_w0.3"].plan.digest
