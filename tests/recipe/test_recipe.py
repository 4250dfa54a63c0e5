"""The recipe language: what it reads, what it refuses, and the address of every mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from merganser import recipe
from merganser.errors import RecipeError
from merganser.recipe import Setting, parse_reference, parse_setting
from merganser.recipe.document import MAX_BYTES, parse_document
from messages import assert_one_line
from recipe_files import RecipeFile

NAME = "model.layers.3.mlp.up_proj.weight"

# -- references ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "revision", "adapter", "adapter_revision"),
    [
        ("org/name", "org/name", None, None, None),
        ("org/name@v1.0", "org/name", "v1.0", None, None),
        ("org/name+lo/ra", "org/name", None, "lo/ra", None),
        ("org/name@v1+lo/ra@v2", "org/name", "v1", "lo/ra", "v2"),
        ("org/name+lo/ra@v2", "org/name", None, "lo/ra", "v2"),
        ("./a b", "./a b", None, None, None),
    ],
)
def test_a_reference_is_path_revision_adapter(
    text: str, path: str, revision: str | None, adapter: str | None, adapter_revision: str | None
) -> None:
    found = parse_reference(text)
    assert (found.path, found.revision) == (path, revision)
    assert (found.adapter, found.adapter_revision) == (adapter, adapter_revision)
    assert str(found) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"model": "m"}, "m"),
        ({"model": "m@r", "lora": None}, "m@r"),
        ({"model": {"path": "m", "revision": "r"}, "lora": "l"}, "m@r+l"),
        ({"model": {"path": "m"}, "lora": {"path": "l", "revision": "s"}}, "m+l@s"),
    ],
)
def test_the_mapping_form_says_the_same(value: dict[str, Any], text: str) -> None:
    found, written = parse_reference(value), parse_reference(text)
    assert found == written


def test_the_mapping_form_can_replace_the_architecture() -> None:
    found = parse_reference({"model": "m", "override_architecture": "LlamaForCausalLM"})
    assert found.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        "a+b+c",
        "a@b@c",
        "a+b@c@d",
        "@v1",
        "a@",
        "a+",
        "+a",
        "a\nb",
        "a\0b",
        None,
        7,
        ["a"],
        {},
        {"lora": "a"},
        {"model": "a", "adapter": "b"},
        {"model": 7},
        {"model": ""},
        {"model": {"path": ""}},
        {"model": {"path": "a\nb"}},
        {"model": {"path": "a", "revision": 7}},
        {"model": "a", "override_architecture": 7},
    ],
)
def test_what_is_no_reference_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse_reference(value)
    assert_one_line(str(error.value))


@pytest.mark.parametrize("text", ["~nobody-of-that-name@v1", "a" * 5000 + "@v1", "a+" + "b" * 5000])
def test_a_reference_that_no_file_system_takes_is_still_a_reference(text: str) -> None:
    assert parse_reference(text).text == text


@pytest.mark.parametrize("name", ["run@step+30", "a@b@c", "a+b+c"])
def test_an_existing_path_is_that_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_reference(name).path == name
    file = tmp_path / f"{name}.safetensors"
    file.touch()
    assert parse_reference(str(file)).path == str(file)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/acc/global_step_54/actor/huggingface", "acc"),
        ("runs/acc/checkpoint-500", "acc"),
        ("../../models/base/", "base"),
        ("org/name", "name"),
        ("huggingface", "huggingface"),
        ("m+some/adapter", "m+adapter"),
    ],
)
def test_short_names(path: str, name: str) -> None:
    assert parse_reference(path).name == name


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "position", "expected"),
    [
        (0.5, 0.3, 0.5),
        (1, 0.3, 1),
        (True, 0.3, True),
        ("1e-5", 0.3, 1e-5),
        ("text", 0.3, "text"),
        ([0.25], 0.7, 0.25),
        ([], 0.5, None),
        ([0, 1], 0.0, 0),
        ([0, 1], 0.25, 0.25),
        ([0, 1], 1.0, 1),
        ([0, 0.5, 0], 0.25, 0.25),
        ([0, 0.5, 0], 0.5, 0.5),
        ([0, 0.5, 0], 0.75, 0.25),
        (["1e-1", "2e-1"], 0.5, 0.15),
        ([True, False], 0.0, True),
        ([True, False], 0.99, True),
        ([True, False], 1.0, False),
        (["a", "b", "c"], 0.5, "b"),
        (["a", "b", "c"], 0.49, "a"),
    ],
)
def test_a_setting_at_a_place_of_the_model(value: object, position: float, expected: Any) -> None:
    found = parse_setting(value).at(NAME, position)
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"value": 1}, 1),
        ({"filter": None, "value": 1}, 1),
        ({"filter": "*", "value": 1}, 1),
        ({"filter": "", "value": 1}, 1),
        ({"filter": "mlp", "value": 1}, 1),
        ({"filter": "attn", "value": 1}, None),
        ({"filter": "m.p", "value": 1}, None),  # text, no pattern
        ([{"filter": "attn", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}], 2),
        ([{"value": 3}, {"filter": "mlp", "value": 2}], 3),
        ([{"filter": "up_proj", "value": 1}, {"filter": "mlp", "value": 2}], 1),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 9}], 2),
        ([{"filter": "mlp", "value": []}, {"value": 9}], None),
    ],
)
def test_the_first_filter_that_matches_wins(value: object, expected: object) -> None:
    assert parse_setting(value).at(NAME, 0.5) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        float("nan"),
        float("inf"),
        "nan",
        "-inf",
        "1e999",
        [1, None],
        [1, [2]],
        [1, {"value": 2}],
        {},
        {"filter": "a"},
        {"filter": 7, "value": 1},
        {"filter": "a", "value": {}},
        {"filter": "a", "value": 1, "vaule": 2},
        [{"filter": "a", "value": 1}, 2],
    ],
)
def test_what_is_no_setting_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        parse_setting(value)
    assert_one_line(str(error.value))


numbers = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
anchors = st.lists(numbers, min_size=1, max_size=80)


@given(anchors, st.floats(0, 1))
def test_a_gradient_stays_between_its_anchors(values: list[float], position: float) -> None:
    found = parse_setting(values).at(NAME, position)
    slack = 1e-9 * max(map(abs, values))
    assert isinstance(found, int | float)
    assert min(values) - slack <= found <= max(values) + slack


@given(anchors)
def test_a_gradient_meets_its_anchors(values: list[float]) -> None:
    setting, last = parse_setting(values), max(1, len(values) - 1)
    found = [setting.at(NAME, i / last) for i in range(len(values))]
    assert found == pytest.approx(values)


@given(st.integers(2, 130))
@example(50)  # 1 / 49 * 49 is less than 1
def test_a_gradient_of_steps_as_long_as_the_model_gives_each_layer_its_own(depth: int) -> None:
    setting = parse_setting([f"step {i}" for i in range(depth)])
    found = [setting.at(NAME, i / (depth - 1)) for i in range(depth)]
    assert found == [f"step {i}" for i in range(depth)]


# -- YAML ------------------------------------------------------------------------------------------

BODY = "models: [{model: a, parameters: {weight: 1}}]\n"
LONG = "[" * 5_000


def bomb(levels: int, width: int, inner: str) -> str:
    """Nine lines that stand for billions."""
    lines = [f"a0: &a0 {inner}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\nmerge_method: linear\n" + BODY


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", None, "empty"),
        ("# only a comment\n", None, "empty"),
        ("just text\n", 1, "mapping"),
        ("- a\n- b\n", 1, "mapping"),
        ("42\n", 1, "mapping"),
        ("merge_method: linear\n" + BODY + "merge_method: slerp\n", 3, "merge_method"),
        ("merge_method: linear\nmodels:\n- model: a\n  model: b\n", 4, "model"),
        ("merge_method: linear\n" + BODY + "---\nmerge_method: linear\n", 4, "has 2 recipes"),
        ("merge_method: [linear\n", None, "not valid YAML"),
        ("merge_method: linear\n\tmodels: []\n", 2, "not valid YAML"),
        ("? [a]\n: b\n", 1, "key"),
        ("{a: 1}: b\n", 1, "key"),
        ("merge_method: *nothing\n", 1, "nothing"),
        ("merge_method: linear\n<<: 7\n" + BODY, 2, "<<"),
        ("merge_method: linear\nmodels: &m [*m]\n", 2, "deep"),
        ("merge_method: " + LONG, None, "YAML"),
        ("merge_method: " + "{a: " * 200 + "1" + "}" * 200 + "\n", 1, "deep"),
        ("merge_method: !!python/name:os.system\n", 1, "python/name"),
        ("merge_method: !!python/object/apply:os.system [id]\n", 1, "python/object/apply"),
        ("merge_method: !!python/object:os.thing {a: b}\n", 1, "python/object"),
        ("merge_method: !mine linear\n", 1, "!mine"),
        ("merge_method: !mine [linear]\n", 1, "!mine"),
        ("merge_method: !!int ''\n", 1, "int"),
        ("merge_method: !!bool maybe\n", 1, "bool"),
        ("merge_method: !!timestamp today\n", 1, "timestamp"),
        ("merge_method: !!float x\n", 1, "float"),
        ("name: 2024-13-45\n", 1, "month"),
        ("merge_method: linear\x07\n", None, "not valid YAML"),
        ("merge_method: \ud800\n", None, "not valid YAML"),
        ("merge_method: linear\n" + "#" * (5 * 2**20), None, "larger"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_is_no_recipe_in_yaml(text: str, line: int | None, part: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.load(parse_and_hold(text))
    assert_one_line(str(error.value), "recipe.yml", part)
    if line is not None:
        assert str(error.value).startswith(f"recipe.yml:{line}: ")


def parse_and_hold(text: str) -> Any:
    """What ``load`` makes of a file of that text, without a file (which can hold no surrogates)."""
    return recipe.validate(parse_document(text, "recipe.yml"), None, "normal")


MERGES = "\n".join(
    [f"m0: &m0 {{{', '.join(f'k{i}: 1' for i in range(100))}}}"]
    + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 9)]
)
BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (15, 15))
from merganser.errors import RecipeError
from merganser.recipe.document import parse_document
for text in sys.stdin.read().split("=====\\n"):
    try:
        print("read", len(str(parse_document(text).data)))
    except RecipeError as error:
        print(error)
"""


def bounded(*texts: str) -> list[str]:
    """What reading texts in a gigabyte and 15 seconds ends with, a line each."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED],
        input="=====\n".join(f"{text}\n" for text in texts),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_bombs_cost_neither_time_nor_memory() -> None:
    bombs = [bomb(9, 9, "[x, x, x, x]"), bomb(60, 2, "x" * 100_000), bomb(40, 2, "{x: 1}"), MERGES]
    found = bounded(*bombs)
    assert len(found) == len(bombs)
    for line in found:
        assert re.fullmatch(r"\d+: the recipe is too large or too deep", line)


def test_the_largest_of_files_is_read_or_refused_in_time() -> None:
    assert len(bounded("a: [" + "1," * (MAX_BYTES // 2 - 4) + "]")) == 1


def test_python_tags_run_nothing(tmp_path: Path, recipe_file: RecipeFile) -> None:
    trace = tmp_path / "trace"
    file = recipe_file(f"merge_method: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(RecipeError):
        recipe.load(file)
    assert not trace.exists()


def test_merge_keys_are_inherited_and_overridden() -> None:
    document = parse_document(
        "one: &one {a: 1, b: 1}\n"
        "two: &two {b: 2, c: 2}\n"
        "own_first:\n  a: 9\n  <<: *one\n"
        "own_last: {<<: *one, a: 9}\n"
        "both: {<<: [*one, *two], d: 4}\n"
    )
    assert isinstance(document.data, dict)
    assert document.data["own_first"] == document.data["own_last"] == {"a": 9, "b": 1}
    assert document.data["both"] == {"a": 1, "b": 1, "c": 2, "d": 4}


def test_lines_are_those_of_the_keys() -> None:
    document = parse_document(
        "base: &base\n  weight: 1\nmodels:\n- model: a\n  parameters:\n    weight: 2\n    <<: *base\n"
    )
    assert document.lines["models",] == 3
    assert document.lines["models", 0, "model"] == 4
    assert document.lines["models", 0, "parameters", "weight"] == 6


def test_text_that_looks_like_something_else_stays_a_key() -> None:
    document = parse_document("yes: 1\n1: 2\n~: 3\n'<<': 4\n")
    assert document.data == {"yes": 1, "1": 2, "~": 3, "<<": 4}


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"merge_method: \xff\xfe\n", "utf-8"), (b"\x00" * 10, "not valid YAML"), (None, "no such")],
)
def test_a_file_that_holds_no_text(tmp_path: Path, content: bytes | None, part: str) -> None:
    file = tmp_path / "recipe.yml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        recipe.load(file)
    assert_one_line(str(error.value), str(file), part)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.load(tmp_path)
    assert_one_line(str(error.value), str(tmp_path))


WORDS = [
    *("merge_method", "models", "model", "parameters", "weight", "slices", "sources"),
    *(
        "layer_range",
        "dtype",
        "tokenizer",
        "tokens",
        "source",
        "kind",
        "filter",
        "value",
        "base_model",
    ),
    *("linear", "bfloat16", "union", "zero", "model_token", "a", "a@b+c", "1", "0.5", "-3", "1e-5"),
    *(
        "true",
        "null",
        "~",
        ".inf",
        ".nan",
        "2024-02-30",
        "0x",
        "1:30",
        "!!int ''",
        "!!set",
        "!!bool x",
    ),
    *(
        "&x",
        "*x",
        "<<",
        "!!str",
        "=",
        "---",
        "...",
        "%YAML 9.9",
        "'",
        '"',
        "\\n",
        "|",
        ">",
        "@",
        "`",
    ),
    *(
        ": ",
        ":\n  ",
        ":\n- ",
        "\n",
        "\n  ",
        "\n- ",
        "- ",
        ", ",
        "[",
        "]",
        "{",
        "}",
        "? ",
        "#",
        "\t",
    ),
]
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(WORDS) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.lists(st.sampled_from(WORDS), max_size=30).map("".join) | st.text())
def test_random_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    try:
        parse_and_hold(text)
    except RecipeError as error:
        assert_one_line(str(error), "recipe.yml")


@given(st.dictionaries(st.sampled_from(WORDS), values, max_size=6), st.booleans())
def test_random_data_is_a_recipe_or_a_recipe_error(data: dict[str, Any], lenient: bool) -> None:
    data = {"merge_method": "linear", "models": [{"model": "a"}]} | data
    try:
        recipe.load(data, "lenient" if lenient else "normal")
    except RecipeError as error:
        assert_one_line(str(error))


# -- the schema ------------------------------------------------------------------------------------

FULL = """\
merge_method: linear
slices:
- sources:
  - model: org/a@main
    layer_range: [0, 2.0]
    parameters:
      weight: [0.1, 0.9]
  - model: {model: b, lora: c}
    layer_range: [1, "3"]
    parameters:
      weight:
      - {filter: mlp, value: 0.5}
      - value: 1e-5
  base_model: base
  parameters: {normalize: true}
base_model: base
parameters: {int8_mask: true}
dtype: torch.bfloat16
out_dtype: float32
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    <x>: {source: {kind: model_token, model: b, token: y}, force: true}
    <y>: {source: {kind: zero}}
    <z>: {source: base}
chat_template: auto
name: mine
rounding: stochastic
seed: 7
arithmetic: mergekit
"""


def test_all_of_the_language(recipe_file: RecipeFile) -> None:
    found = recipe.load(recipe_file(FULL)).recipe
    assert found.slices is not None
    first, second = found.slices[0].sources
    assert (first.model.path, first.model.revision) == ("org/a", "main")
    assert (first.layer_range, second.layer_range) == ((0, 2), (1, 3))
    assert second.parameters["weight"].at(NAME, 0) == 0.5
    assert second.parameters["weight"].at("lm_head.weight", 0) == 1e-5
    assert isinstance(found.parameters["int8_mask"], Setting)
    assert (found.dtype, found.out_dtype) == ("bfloat16", "float32")
    assert found.tokenizer is not None
    assert found.tokenizer.tokens is not None
    assert set(found.tokenizer.tokens) == {"<x>", "<y>", "<z>"}
    assert (found.rounding, found.seed, found.arithmetic) == ("stochastic", 7, "mergekit")


def test_a_mapping_says_what_a_file_says(recipe_file: RecipeFile) -> None:
    data = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    file = recipe_file("merge_method: linear\n" + BODY)
    assert recipe.load(data).recipe == recipe.load(file).recipe
    assert recipe.load(file).folder == file.parent
    assert recipe.load(data).folder is None


def test_an_empty_dtype_is_none(recipe_file: RecipeFile) -> None:
    text = f"merge_method: linear\n{BODY}dtype: ''\nout_dtype: null\n"
    found = recipe.load(recipe_file(text)).recipe
    assert (found.dtype, found.out_dtype) == (None, None)


HEAD = "merge_method: linear\n"


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        (BODY, None, ["merge_method", "missing"]),
        ("merge_method: linear\n", None, ["models", "slices"]),
        ("merge_method: [a]\n" + BODY, 1, ["merge_method"]),
        ("merge_method: 7\n" + BODY, 1, ["merge_method", "7"]),
        (HEAD + "models: []\n", 2, ["models"]),
        (HEAD + "models: a\n", 2, ["models"]),
        (HEAD + "models:\n- a\n", 3, ["models[0]"]),
        (HEAD + "models:\n- {}\n", 3, ["models[0]", "model", "missing"]),
        (HEAD + "models:\n- model: a\n- model: a+b+c\n", 4, ["models[1].model", "+"]),
        (HEAD + "models:\n- model: ~nobody-of-that-name@x\n  parameters: 7\n", 4, ["parameters"]),
        (HEAD + BODY + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n", None, ["both"]),
        (HEAD + BODY + "dtype: fp16\n", 3, ["dtype", "fp16", "bfloat16"]),
        (HEAD + BODY + "dtype: int64\n", 3, ["dtype", "int64"]),
        (HEAD + BODY + "out_dtype: float8_e4m3fn\n", 3, ["out_dtype", "float8_e4m3fn"]),
        (HEAD + BODY + "rounding: up\n", 3, ["rounding", "up"]),
        (HEAD + BODY + "seed: -1\n", 3, ["seed", "-1"]),
        (HEAD + BODY + "seed: 1.5\n", 3, ["seed", "1.5"]),
        (HEAD + BODY + "arithmetic: torch\n", 3, ["arithmetic", "torch"]),
        (HEAD + BODY + "parameters: [1]\n", 3, ["parameters"]),
        (HEAD + BODY + "parameters:\n  weight: .inf\n", 4, ["parameters.weight", "finite"]),
        (HEAD + BODY + "parameters:\n  weight: .nan\n", 4, ["parameters.weight", "finite"]),
        (HEAD + BODY + "parameters:\n  weight: null\n", 4, ["parameters.weight"]),
        (HEAD + BODY + "parameters:\n  weight: {filter: a}\n", 4, ["parameters.weight", "value"]),
        (HEAD + BODY + "tokenizer: {}\ntokenizer_source: union\n", None, ["tokenizer_source"]),
        (HEAD + BODY + "tokenizer:\n  pad_to_multiple_of: 0\n", 4, ["pad_to_multiple_of"]),
    ],
)  # fmt: skip
def test_every_mistake_has_its_file_line_and_key(
    recipe_file: RecipeFile, text: str, line: int | None, parts: list[str]
) -> None:
    file = recipe_file(text)
    with pytest.raises(RecipeError) as error:
        recipe.load(file)
    assert_one_line(str(error.value), *parts)
    assert str(error.value).startswith(f"{file}:{line}: " if line else f"{file}:")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "layers",
    ["[0]", "[0, 1, 2]", "[0, x]", "[0, 1.5]", "[-1, 2]", "[2, 1]", "[0, true]", "[0, .inf]", "7",
     "[0, [1]]", f"[0, '{'9' * 400}']"],
)  # fmt: skip
def test_layer_ranges_are_two_whole_numbers(recipe_file: RecipeFile, layers: str) -> None:
    file = recipe_file(
        f"merge_method: linear\nslices:\n- sources:\n  - model: a\n    layer_range: {layers}\n"
    )
    with pytest.raises(RecipeError) as error:
        recipe.load(file)
    assert_one_line(str(error.value), f"{file}:", "slices[0].sources[0]", "layer")


def test_sources_of_a_slice_are_equally_long(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        merge_method: linear
        slices:
        - sources:
          - {model: a, layer_range: [0, 2]}
          - {model: b, layer_range: [0, 3]}
        """
    )
    with pytest.raises(RecipeError) as error:
        recipe.load(file)
    assert_one_line(str(error.value), f"{file}:3: ", "slices[0]", "same number of layers")


# -- keys that have no meaning ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "slip", "right"),
    [
        (HEAD + BODY + "merge_metod: slerp\n", 3, "merge_metod", "merge_method"),
        (HEAD + BODY + "paramters: {normalize: true}\n", 3, "paramters", "parameters"),
        (HEAD + BODY + "Dtype: float16\n", 3, "Dtype", "dtype"),
        (HEAD + BODY + "out-dtype: float16\n", 3, "out-dtype", "out_dtype"),
        (HEAD + BODY + "basemodel: a\n", 3, "basemodel", "base_model"),
        (HEAD + BODY + "modles: [{model: a}]\n", 3, "modles", "models"),
        (HEAD + "models:\n- model: a\n  paramters: {weight: 1}\n", 4, "paramters", "parameters"),
        (
            HEAD + "slices:\n- sources:\n  - model: a\n    layer_range: [0, 1]\n    layer_rnge: 7\n",
            6, "layer_rnge", "layer_range",
        ),
    ],
)  # fmt: skip
def test_a_slip_is_an_error_with_the_nearest_name(
    recipe_file: RecipeFile, text: str, line: int, slip: str, right: str
) -> None:
    file = recipe_file(text)
    for strictness in ("normal", "strict"):
        with pytest.raises(RecipeError) as error:
            recipe.load(file, strictness)
        assert_one_line(str(error.value), f"{file}:{line}: ", slip, f"{right!r}")
    [warning] = recipe.load(file, "lenient").warnings
    assert_one_line(warning, f"{file}:{line}: ", slip, "ignored")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (HEAD + BODY + "license: mit\n", 3, "license"),
        (HEAD + "models:\n- model: a\n  note: good\n", 4, "note"),
        (HEAD + "slices:\n- sources: [{model: a, layer_range: [0, 1], x: 1}]\n", 3, "x"),
        (HEAD + BODY + "tokenizer:\n  source: base\n  colour: red\n", 5, "colour"),
        (
            HEAD + BODY + "tokenizer:\n  tokens:\n    <t>:\n      source: {kind: zero, extra: 1}\n",
            6, "extra",
        ),
        (HEAD + 'models: [{model: a}]\n"odd\\nkey": 1\n', 3, "odd"),
    ],
)  # fmt: skip
def test_other_keys_are_warned_of_and_refused_if_strict(
    recipe_file: RecipeFile, text: str, line: int, key: str
) -> None:
    file = recipe_file(text)
    for strictness in ("normal", "lenient"):
        [warning] = recipe.load(file, strictness).warnings
        assert_one_line(warning, f"{file}:{line}: ", key, "ignored")
    with pytest.raises(RecipeError) as error:
        recipe.load(file, "strict")
    assert_one_line(str(error.value), f"{file}:{line}: ", key)


def test_all_odd_keys_are_told_in_one_go(recipe_file: RecipeFile) -> None:
    file = recipe_file(HEAD + "models: [{model: a, note: 1}]\nlicense: mit\nauthor: me\n")
    assert len(recipe.load(file).warnings) == 3


ANCHORS = """
const_tag: &FIRST a
const_tag: &SECOND b
const_tag: &QK 0.8
scaled: &scaled
  parameters:
    scale: [{filter: q_proj, value: *QK}, {value: 1.0}]
merge_method: passthrough
slices:
- sources: [{model: *FIRST, layer_range: [0, 2]}]
- sources:
  - model: *SECOND
    layer_range: [2, 4]
    <<: *scaled
"""


def test_anchors_under_one_repeated_key_that_means_nothing(recipe_file: RecipeFile) -> None:
    """The idiom of published recipes; the repeated key is warned of once, with its lines."""
    file = recipe_file(ANCHORS)
    for strictness in ("normal", "lenient"):
        parsed = recipe.load(file, strictness)
        first, second = (piece.sources[0] for piece in parsed.recipe.slices or [])
        assert (first.model.text, second.model.text) == ("a", "b")
        assert second.parameters["scale"].at("q_proj", 0.0) == 0.8
        repeated, once = parsed.warnings
        assert_one_line(repeated, f"{file}:3: ", "'const_tag'", "ignored", "lines 1, 2, 3")
        assert_one_line(once, f"{file}:4: ", "'scaled'", "ignored")
        assert "lines" not in once
    with pytest.raises(RecipeError, match="const_tag"):
        recipe.load(file, "strict")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (HEAD + BODY + BODY, 3, "models"),
        (HEAD + HEAD + BODY, 2, "merge_method"),
        (HEAD + "models:\n- model: a\n  model: b\n", 4, "model"),
        (HEAD + BODY + "parameters:\n  weight: 1\n  normalize: true\n  weight: 2\n", 6, "weight"),
        (HEAD + BODY + "parameters:\n  no_such: 1\n  no_such: 2\n", 5, "no_such"),
        (HEAD + BODY + "x: {a: 1, a: 2}\ndtype: float32\ndtype: float16\n", 5, "dtype"),
        (HEAD + "dtype: float32\ndtype: float16\n", 3, "dtype"),
        (HEAD + BODY + "tokenizer:\n  tokens:\n    <t>: {force: true}\n    <t>: {}\n", 6, "<t>"),
    ],
)
def test_a_repeated_key_that_means_something_is_an_error(
    recipe_file: RecipeFile, text: str, line: int, key: str
) -> None:
    file = recipe_file(text)
    for strictness in ("normal", "lenient", "strict"):
        with pytest.raises(RecipeError) as error:
            recipe.load(file, strictness)
        assert_one_line(str(error.value), f"{file}:{line}: ", repr(key), "twice")


def test_a_repeated_key_inside_one_that_means_nothing(recipe_file: RecipeFile) -> None:
    [warning] = recipe.load(recipe_file(HEAD + BODY + "notes: {a: 1, a: 2}\n")).warnings
    assert_one_line(warning, "'notes'", "ignored")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base_model: a\nexperts: [{source_model: b}]\n", ["experts", "mergekit-moe"]),
        ("genome: {models: [a, b]}\n", ["genome", "mergekit-evolve", "merganser search"]),
        ("layer_slices: [{model: a, start: 0, end: 1}]\n", ["layer_slices", "bakllama"]),
    ],
)
def test_configurations_of_other_programs_are_named(
    recipe_file: RecipeFile, text: str, parts: list[str]
) -> None:
    file = recipe_file(text)
    with pytest.raises(RecipeError) as error:
        recipe.load(file, "lenient")
    assert_one_line(str(error.value), f"{file}:", "not a recipe", *parts)


def test_residual_weight_has_no_effect_and_says_so(recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        merge_method: linear
        slices:
        - sources: [{model: a, layer_range: [0, 1]}]
          residual_weight: 0.5
        """
    )
    [warning] = recipe.load(file).warnings
    assert_one_line(warning, f"{file}:4: ", "residual_weight", "no effect")
    with pytest.raises(RecipeError):
        recipe.load(file, "strict")


def test_the_json_schema_knows_every_key() -> None:
    schema = recipe.json_schema()
    assert set(schema["properties"]) == set(recipe.kinds.names(recipe.Recipe))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["merge_method"]
    assert {"ModelInput", "OutputSlice", "SliceSource", "Tokenizer"} <= set(schema["$defs"])


def fits(value: Any, schema: Any, whole: dict[str, Any]) -> bool:
    """As much of JSON Schema as the recipe's schema uses."""
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "null": type(None),
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }

    def is_a(kind: str) -> bool:
        number = kind in ("integer", "number")
        return isinstance(value, kinds[kind]) and not (number and isinstance(value, bool))

    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not fits(value, whole["$defs"][schema["$ref"].split("/")[-1]], whole):
        return False
    if "anyOf" in schema and not any(fits(value, each, whole) for each in schema["anyOf"]):
        return False
    if "type" in schema and not any(
        map(is_a, [schema["type"]] * isinstance(schema["type"], str) or schema["type"])
    ):
        return False
    if ("enum" in schema and value not in schema["enum"]) or schema.get("const", value) != value:
        return False
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", [])) <= set(value) and all(
            fits(entry, known.get(key, others), whole) for key, entry in value.items()
        )
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = [schema.get("items", True)] * len(value)
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9) and all(
            fits(entry, each, whole) for entry, each in zip(value, [*first, *rest], strict=False)
        )
    return not isinstance(value, int | float) or schema.get("minimum", value) <= value


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (FULL.replace("torch.", "").replace('"3"', "3").replace("2.0", "2"), True),
        (HEAD + BODY, True),
        (HEAD + "models: [{model: a, parameters: {weight: [1, 0.5], x: [{value: 1}]}}]\n", True),
        (BODY, False),
        (HEAD + BODY + "paramters: {}\n", False),
        (HEAD + BODY + "dtype: fp16\n", False),
        (HEAD + "models: []\n", False),
        (HEAD + "models: [{parameters: {weight: 1}}]\n", False),
        (HEAD + "models: [{model: a, parameters: {weight: {filter: x}}}]\n", False),
        (HEAD + "slices: [{sources: [{model: a, layer_range: [1]}]}]\n", False),
    ],
)
def test_the_json_schema_accepts_what_the_recipe_language_does(text: str, good: bool) -> None:
    data, schema = yaml.safe_load(text), recipe.json_schema()
    assert fits(data, schema, schema) is good
    if good:
        assert not recipe.load(data).warnings
