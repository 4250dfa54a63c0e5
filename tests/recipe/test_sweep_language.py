"""The sweep language: every point is the recipe that somebody would have written by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import merganser
from checkpoints_on_disk import make_model
from merganser.errors import RecipeError
from merganser.recipe import expressions, is_sweep
from merganser.recipe.short_names import matching, shorten
from merganser.recipe.sweep_file import find_point, load_points, read_pattern, select
from merganser.sinks import DigestSink
from messages import assert_one_line
from recipe_files import RecipeFile

STUDY = """
name: merge_w{{ w }}_linear
sweep: {w: {from: 0.1, to: 0.9, step: 0.2}}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
parameters: {normalize: true}
dtype: bfloat16
"""


def rendered(text: str, **values: Any) -> Any:
    template = expressions.parse(text)
    assert template is not None
    return expressions.render(template, values)


def weights(file: Path) -> list[list[Any]]:
    return [
        [entry["parameters"]["weight"] for entry in point.recipe.data["models"]]
        for point in load_points(file)
    ]


def sweep(block: Any, **keys: Any) -> dict[str, Any]:
    """A sweep as a mapping, whose points differ in a weight of two models."""
    models = [{"model": "a"}, {"model": "b", "parameters": {"weight": "{{ w }}"}}]
    return {"merge_method": "linear", "models": models, "sweep": block} | keys


def test_the_sweep_of_the_study(recipe_file: RecipeFile) -> None:
    file = recipe_file(STUDY)
    assert is_sweep(file)
    points = load_points(file)
    assert [p.name for p in points] == [f"merge_w{w}_linear" for w in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert [p.values for p in points] == [{"w": w} for w in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert weights(file) == [[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0.1, 0.9]]
    for point in points:
        assert "sweep" not in point.recipe.data
        assert point.recipe.recipe.name == point.name
        assert point.recipe.document.text is not None
        assert "{{" not in point.recipe.document.text


@given(
    first=st.integers(-500, 500),
    step=st.integers(1, 300),
    count=st.integers(1, 40),
    digits=st.integers(0, 6),
    beyond=st.floats(0, 0.99),
)
def test_ranges_are_decimal(first: int, step: int, count: int, digits: int, beyond: float) -> None:
    scale = 10**digits
    ends = first, first + (count - 1) * step + int(beyond * step), step
    low, high, by = (float(Fraction(end, scale)) for end in ends)
    points = load_points(sweep({"w": {"from": low, "to": high, "step": by}}))
    wanted = [float(Fraction(first + i * step, scale)) for i in range(count)]
    assert [point.values["w"] for point in points] == wanted
    assert all(float(expressions.text(point.values["w"])) == point.values["w"] for point in points)


def test_ranges_go_down_and_keep_whole_numbers() -> None:
    points = load_points(sweep({"w": {"from": 4, "to": 0, "step": -2}}))
    assert [repr(point.values["w"]) for point in points] == ["4", "2", "0"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_have_the_shortest_text(number: float) -> None:
    text = expressions.text(number)
    assert float(text) == number
    assert len(text.replace("-", "")) <= max(len(repr(number).replace("-", "")), 18)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0.9, "0.9"), (1.0, "1"), (2e-6, "2e-6"), (1.5e-5, "1.5e-5"), (0.00025, "0.00025")],
        *[
            (4096, "4096"),
            (100.0, "100"),
            (-0.5, "-0.5"),
            (True, "true"),
            (0.0, "0"),
            (1e20, "1e20"),
        ],
    ],
)
def test_numbers_are_written_as_people_do(number: float, text: str) -> None:
    assert expressions.text(number) == text


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_arithmetic_is_decimal(a: int, b: int) -> None:
    w, v = a / 1000, b / 1000
    assert rendered("{{ 1 - w }}", w=w) == (1000 - a) / 1000
    assert rendered("{{ w + v }}", w=w, v=v) == (a + b) / 1000
    assert rendered("{{ (w * v) | round(6) }}", w=w, v=v) == a * b / 10**6
    assert rendered("{{ a // b * b + a % b }}", a=a, b=b) == a


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{{ w }}", 0.3),
        ("{{ n }}", 4),
        ("{{ n / 2 }}", 2.0),
        ("{{ n ** 2 - 1 }}", 15),
        ("{{ -w }}", -0.3),
        ("{{ w < 0.5 and n == 4 }}", True),
        ("{{ w == 0.1 + 0.2 }}", True),
        ("{{ 'slerp' if n > 3 else 'linear' }}", "slerp"),
        ("{{ pair.first }}/x{{ pair['second'] }}", "acc/x7"),
        ("{{ pair.first ~ w }}", "acc0.3"),
        ("{{ path | replace('/', '-') | upper }}", "A-B"),
        ("{{ (w * 10) | int }}", 3),
        ("{{ curve }}", [0, 0.5, 1]),
        ("{{ 1 - curve }}", [1, 0.5, 0.0]),
        ("{{ -curve * w }}", [0.0, -0.15, -0.3]),
        ("{{ curve + [1, 2, 0.1] }}", [1, 2.5, 1.1]),
        ("{{ (curve / 3) | round(2) }}", [0.0, 0.17, 0.33]),
        ("{{ [w, 1 - w] }}", [0.3, 0.7]),
        ("{{ curve[1] }}", 0.5),
        ("{{ n in [1, 4] }}", True),
        ("{{ w in (0.1, 0.2) }}", False),
        ("{{ w not in [0.1, 0.3] }}", False),
        ("{{ 0.5 in curve and 'a' in path }}", True),
        ("{{ pair.first in ['acc', 'len'] }}", True),
        ("{{ flag }}", False),
        ("w{{ w }}\n", "w0.3\n"),
    ],
)
def test_expressions(text: str, wanted: Any) -> None:
    pair = {"first": "acc", "second": 7}
    found = rendered(text, w=0.3, n=4, pair=pair, path="a/b", curve=[0, 0.5, 1], flag=False)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ range(10) }}", "call"),
        ("{{ w.__class__ }}", "no part"),
        ("{{ {'a': 1} }}", "dict"),
        ("{{ [w, none] }}", "an entry of a list"),
        ("{{ [[w]] }}", "an entry of a list"),
        ("{{ curve + [1, 2] }}", "lists of 3 and 2 entries"),
        ("{{ curve + path }}", "is not a number"),
        ("{{ 1 / curve }}", "zero"),
        ("{{ w in 5 }}", "'in' looks for"),
        ("{{ w in path }}", "'in' looks for"),
        ("{{ curve * 2 ** 62 * 4 }}", "too large"),
        ("{% for i in w %}{{ i }}{% endfor %}", "only expressions"),
        ("{{ 9 ** 9 ** 9 }}", "too large"),
        ("{{ 9 ** (9 ** 9) }}", "no value"),
        ("{{ 10 ** 30 }}", "too large"),
        ("{{ 'x' * 1000000000 }}", "is not a number"),
        ("{{ '%1000000000d' % 1 }}", "is not a number"),
        ("{{ w | center(1000000000) }}", "filter"),
        ("{{ path | replace('', 'xxxx') }}", "filter"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ w", "cannot be read"),
        ("{{ " + "(" * 2000 + "w" + ")" * 2000 + " }}", "deep"),
        ("{{ " + "1 + " * 1200 + "w }}", ""),
        ("{{ w }}" + "x" * 5000, "characters"),
        ("{{ w }}" * 65, "at most 64"),
        ("{{ " + " ~ ".join(["path"] * 400) + " }}", "characters"),
        ("{{ none }}x", "cannot become text"),
        ("{{ w < path }}", "compared"),
        ("{{ (-8) ** 0.5 }}", "no value"),
    ],
)
def test_expressions_are_bounded(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        rendered(text, w=0.3, path="a/b" * 10, curve=[0, 0.5, 1])
    assert_one_line(str(error.value), complaint)


def test_grids_unions_and_what_varies_together(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        sweep:
          - {method: linear, w: [0.25, 0.75], pair: [{a: x, b: y}, {a: x, b: z}]}
          - {method: slerp, w: 0.5, pair: {from: 1, to: 2, step: 1}}
        merge_method: "{{ method }}"
        models:
          - {model: "{{ pair.a }}", parameters: {weight: "{{ w }}"}}
          - {model: "{{ pair.b }}"}
        """
    )
    with pytest.raises(RecipeError, match="this value has no part 'a'"):
        load_points(file)
    text = file.read_text().replace("{from: 1, to: 2, step: 1}", "[{a: y, b: z}]")
    file.write_text(text.replace("weight", "t"))
    points = load_points(file)
    assert [point.name for point in points] == [
        "method-linear_w0.25_pair-x-y",
        "method-linear_w0.25_pair-x-z",
        "method-linear_w0.75_pair-x-y",
        "method-linear_w0.75_pair-x-z",
        "method-slerp_w0.5_pair-y-z",
    ]
    assert points[-1].values == {"method": "slerp", "w": 0.5, "pair.a": "y", "pair.b": "z"}
    assert [m.model.text for m in points[1].recipe.recipe.models or []] == ["x", "z"]
    assert [p.name for p in select(points, ["pair.b=y", "w=.750"])] == [points[2].name]
    assert [p.name for p in select(points, [f"name={points[4].name}"])] == [points[4].name]


@pytest.mark.parametrize(
    ("only", "complaint"),
    [
        (["w"], "write values like w=0.7,0.9"),
        (["v=1"], "no 'v'; it has name, w"),
        (["w=0.8"], "there are 0.1, 0.2"),
        (["w=0.1", "name=w0.2"], "no point has all"),
    ],
)
def test_conditions_that_choose_nothing(only: list[str], complaint: str) -> None:
    with pytest.raises(RecipeError) as error:
        select(load_points(sweep({"w": [0.1, 0.2]})), only)
    assert_one_line(str(error.value), complaint)


def test_short_names_of_tables_name_points(tmp_path: Path) -> None:
    """Those of all points, those that fewer points have, and those that are cut."""
    file = tmp_path / "sweep.yml"
    name = "merge_accfmt_MRL4096_ROLLOUT4_LR2e-6_w{{ w }}_{{ merge_method }}_seed1"
    data = sweep({"w": [0.1, 0.2], "merge_method": ["linear", "slerp"]}) | {"name": name}
    file.write_text(
        yaml.safe_dump(
            data | {"merge_method": "{{ merge_method }}", "base_model": "x"}, sort_keys=False
        )
    )
    points = load_points(file)
    names = [point.name for point in points]
    for chosen in (names, names[:2], names[::2], names[:1]):
        for longest in (12, 28, 40):
            for full, short in zip(chosen, shorten(chosen, longest), strict=True):
                assert full in matching(names, short)
    short_names = ["w0.1_linear", "w0.1_slerp", "w0.2_linear", "w0.2_slerp"]
    assert shorten(names, 40) == short_names
    for point, short in zip(points, short_names, strict=True):
        found = find_point(f"{file}#{short}")
        assert found is not None
        assert found.name == point.name
        assert select(points, [short]) == select(points, [f"name={short}"]) == [point]
    assert matching(names, "merge…w0.1_sl…seed1") == names[1:2]
    assert matching(names, "w0.1") == names[:2]
    assert matching(names, "0.1") == matching(names, "") == []
    for only in ("w0.1", "name=w0.1"):
        with pytest.raises(RecipeError, match=r"w0\.1: matches several points: merge_"):
            select(points, [only])
    with pytest.raises(RecipeError, match="matches several points: merge_"):
        find_point(f"{file}#w0.1")
    assert select(points, ["name=w0.1_linear,w0.2_slerp"]) == [points[0], points[3]]


def test_a_point_that_is_named_in_vain_is_told_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yml"
    file.write_text(yaml.safe_dump(sweep({"w": [0.1, 0.2]})))
    for fragment, complaint in (
        ("w=0.1&name=w0.2", "no point has all"),
        ("w=0.3", "no point has w = 0.3"),
        ("v=1", "the sweep has no 'v'"),
    ):
        with pytest.raises(RecipeError) as error:
            find_point(f"{file}#{fragment}")
        assert_one_line(str(error.value), f"{file}#{fragment.partition('&')[0]}", complaint)
        assert "--only" not in str(error.value)


def test_a_choice_without_else_leaves_the_key_out() -> None:
    points = load_points(sweep({"w": [0.2, 0.8]}, dtype="{{ 'float32' if w > 0.5 }}"))
    assert ["dtype" in point.recipe.data for point in points] == [False, True]
    assert points[1].recipe.data["dtype"] == "float32"


TRIO = """
sweep: {w: [0.25, 0.5], third: [none, c]}
merge_method: linear
models:
  - {model: a, parameters: {weight: "{{ w }}"}}
  - {model: "{{ third if third != 'none' }}", parameters: {weight: 0.25}}
  - model: b
    parameters:
      weight:
        - {filter: mlp, value: "{{ w if w > 0.3 }}"}
        - {filter: attn, value: ["{{ w }}", "{{ 0.9 if third == 'c' }}", 0.1]}
        - value: 1
"""


def test_an_entry_of_a_list_that_an_expression_leaves_out(recipe_file: RecipeFile) -> None:
    points = {point.name: point for point in load_points(recipe_file(TRIO))}
    listed = {n: [m["model"] for m in p.recipe.data["models"]] for n, p in points.items()}
    two, three = ["a", "b"], ["a", "c", "b"]
    assert list(listed.values()) == [two, three, two, three]
    first, last = (
        p.recipe.data["models"][-1]["parameters"]["weight"] for p in [*points.values()][::3]
    )
    assert first == [{"filter": "attn", "value": [0.25, 0.1]}, {"value": 1}]
    assert last[0] == {"filter": "mlp", "value": 0.5}
    assert last[1]["value"] == [0.5, 0.9, 0.1]


def test_the_lines_after_an_entry_that_is_left_out(recipe_file: RecipeFile) -> None:
    file = recipe_file(TRIO.replace("filter: attn", "fliter: attn"))
    with pytest.raises(RecipeError) as error:
        load_points(file)
    assert_one_line(str(error.value), f"{file}:8: ", "models[1].parameters.weight", "'fliter'")
    file = recipe_file(TRIO.replace("    parameters:\n", "    paramters:\n"))
    with pytest.raises(RecipeError) as error:
        load_points(file)
    assert_one_line(str(error.value), f"{file}:7: ", "models[1].paramters", "'parameters'")


def test_templates_of_chats_and_other_texts_stay_as_they_are() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    [point] = load_points(sweep({"w": 0.5}, chat_template=template))
    assert point.recipe.recipe.chat_template == template


@pytest.mark.parametrize(
    ("old", "new", "line", "complaint"),
    [
        ("{w: {from", "{v: {from", 1, "name: the sweep has no 'w'; it has v"),
        ("step: 0.2", "step: -0.2", 2, "sweep.w: the step has the wrong sign"),
        ("step: 0.2", "step: 0.00001", 2, "sweep.w: more than 1000"),
        (", step: 0.2", "", 2, "sweep.w: give a list of values, or a range"),
        ("{from: 0.1, to: 0.9, step: 0.2}", "[]", 2, "sweep.w: there are no values"),
        ("{from: 0.1, to: 0.9, step: 0.2}", "[0.1, .nan]", 2, "sweep.w[1]: a value is a number"),
        ("{w: {from: 0.1, to: 0.9, step: 0.2}}", "{}", 2, "sweep: give keys"),
        ("{w: {from: 0.1, to: 0.9, step: 0.2}}", "0.1", 2, "sweep: give keys"),
        ("{w: {from", "{or: [1], w: {from", 2, "sweep.or: 'or' cannot be a name"),
        ("{w: {from", "{v: [1, 2], w: {from", 2, "sweep.v: nothing in the recipe depends on it"),
        ("w{{ w }}_", "x_", 1, "the points w=0.1 and w=0.3 are both called 'merge_x_linear'"),
        ("w{{ w }}_", "w{{ w }}/", 1, "point w=0.1: name:"),
        (
            '"{{ w }}"',
            '"{{ 1 / (w - 0.3) }}"',
            6,
            "point w=0.3: models[1].parameters.weight: a div",
        ),
        (
            "bfloat16",
            "\"{{ 'bfloat16' if w < 0.6 else 'b' }}\"",
            8,
            "point merge_w0.7_linear: dtype",
        ),
        ('"{{ w }}"', "{{ w }}", 6, 'a key must be plain text; expressions need quotes: "{{ w }}"'),
        ("parameters: {normalize", "paramters: {normalize", 7, "did you mean 'parameters'"),
    ],
)
def test_what_is_wrong_has_an_address(
    recipe_file: RecipeFile, old: str, new: str, line: int, complaint: str
) -> None:
    assert old in STUDY
    file = recipe_file(STUDY.replace(old, new, 1))
    with pytest.raises(RecipeError) as error:
        load_points(file)
    assert_one_line(str(error.value), f"{file}:{line}: ", complaint)


def test_a_sweep_is_no_single_merge(recipe_file: RecipeFile) -> None:
    file = recipe_file(STUDY)
    with pytest.raises(RecipeError, match=r"sweep: this file is a sweep, many merges"):
        merganser.plan(file)
    with pytest.raises(RecipeError, match="no sweep: block"):
        load_points(recipe_file("merge_method: linear\nmodels: [{model: a}]\n"))
    with pytest.raises(RecipeError, match="must be alone in its file"):
        load_points(recipe_file(STUDY + "---\nmerge_method: linear\n"))


# -- every expansion is the hand-written recipe ---------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [
        str(make_model(root / name, layers=2, hidden=8, seed=i)) for i, name in enumerate("abc")
    ]


@settings(max_examples=6)
@given(data=st.data())
def test_every_expansion_is_the_recipe_written_by_hand(models: list[str], data: Any) -> None:
    thousandths = data.draw(st.lists(st.integers(1, 999), min_size=1, max_size=3, unique=True))
    methods = data.draw(st.lists(st.sampled_from(["linear", "slerp"]), min_size=1, unique=True))
    pairs = data.draw(
        st.lists(st.permutations(models).map(lambda m: m[:2]), min_size=1, max_size=2)
    )
    dtypes = data.draw(st.lists(st.sampled_from(["bfloat16", "float32"]), min_size=1, unique=True))
    swept = {
        "name": "{{ n.i }}-{{ w }}-{{ method }}-{{ dtype }}",
        "sweep": {
            "n": [{"i": i, "first": a, "second": b} for i, (a, b) in enumerate(pairs)],
            "w": [thousandth / 1000 for thousandth in thousandths],
            "method": methods,
            "dtype": dtypes,
        },
        "merge_method": "{{ method }}",
        "base_model": "{{ n.first }}",
        "models": [
            {"model": "{{ n.first }}", "parameters": {"weight": "{{ 1 - w }}"}},
            {"model": "{{ n.second }}", "parameters": {"weight": "{{ w }}"}},
        ],
        "parameters": {"t": [{"filter": "mlp", "value": "{{ w }}"}, {"value": ["{{ 1 - w }}", 1]}]},
        "dtype": "{{ dtype }}",
    }
    points = load_points(swept, "lenient")
    for point, (i, thousandth, method, dtype) in zip(
        points,
        itertools.product(range(len(pairs)), thousandths, methods, dtypes),
        strict=True,
    ):
        first, second = pairs[i]
        w, rest = thousandth / 1000, (1000 - thousandth) / 1000
        by_hand = {
            "merge_method": method,
            "base_model": first,
            "models": [
                {"model": first, "parameters": {"weight": rest}},
                {"model": second, "parameters": {"weight": w}},
            ],
            "parameters": {"t": [{"filter": "mlp", "value": w}, {"value": [rest, 1]}]},
            "dtype": dtype,
        }
        plans = [merganser.plan(r, strictness="lenient") for r in (point.recipe, by_hand)]
        assert plans[0].digest == plans[1].digest
        assert point.recipe.data == {"name": point.name} | by_hand
        if point is points[-1]:
            digests = [
                [t.digest for t in outcome.tensors]
                for outcome in merganser.run(plans, [DigestSink(), DigestSink()])
            ]
            assert digests[0] == digests[1]


@pytest.mark.parametrize(("block", "other"), [("sweep", "search"), ("search", "sweep")])
def test_the_other_kind_of_study_is_told_with_its_command(block: str, other: str) -> None:
    with pytest.raises(RecipeError, match=f"no {block}: block .* `merganser {other}` is for"):
        read_pattern({other: {}, "merge_method": "linear"}, block)
    with pytest.raises(RecipeError, match=f"no {block}: block .* `merganser merge` merges"):
        read_pattern({"merge_method": "linear"}, block)


def test_a_repeated_key_is_an_error_unless_it_means_nothing(recipe_file: RecipeFile) -> None:
    points = load_points(recipe_file("tag: &A 0.5\ntag: &B 0.5\n" + STUDY))
    for point in points:
        assert_one_line(point.recipe.warnings[0], ":2: ", "'tag'", "lines 1, 2")
    for text in (STUDY + "dtype: float32\n", STUDY.replace("{w: {", "{w: 1, w: {")):
        with pytest.raises(RecipeError, match="is given twice"):
            load_points(recipe_file(text))
