"""The plan: every decision of a merge, taken from the recipe and from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import merganser
from checkpoints_on_disk import make_model, save_weights, shapes
from merganser import planning
from merganser.checkpoints.stored import StoredCheckpoint
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.planning import Plan, TensorJob
from merganser.tensors import parse_size
from messages import assert_one_line
from recipe_files import RecipeFile

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
MLP = "model.layers.{}.mlp.up_proj.weight"
QUERY = "model.layers.{}.self_attn.q_proj.weight"


def jobs(plan: Plan) -> dict[str, TensorJob]:
    return {job.name: job for job in plan.jobs}


def weights(plan: Plan, name: str) -> Any:
    return jobs(plan)[name].numbers["weight"]


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Models ``a``, ``b`` and ``base`` with four layers each."""
    for seed, name in enumerate(("a", "b", "base")):
        make_model(tmp_path / name, layers=4, seed=seed)
    return tmp_path


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "piece", "top", "expected"),
    [
        (0.1, 0.2, 0.3, 0.1),
        (None, 0.2, 0.3, 0.2),
        (None, None, 0.3, 0.3),
        ([{"filter": "mlp", "value": 0.1}], 0.2, 0.3, 0.2),
        ([{"filter": "q_proj", "value": 0.1}], 0.2, 0.3, 0.1),
        ([], [{"filter": "mlp", "value": 0.2}], 0.3, 0.3),
    ],
)
def test_the_nearest_setting_wins(
    four: Path, source: object, piece: object, top: object, expected: float
) -> None:
    def block(value: object) -> dict[str, Any]:
        return {} if value is None else {"parameters": {"weight": value}}

    plan = planning.plan(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": str(four / "a"), "layer_range": [0, 4]} | block(source),
                        {"model": str(four / "b"), "layer_range": [0, 4]}
                        | block(9 if source else None),
                    ]
                }
                | block(piece)
            ],
        }
        | block(top)
    )
    assert weights(plan, QUERY.format(2))[0] == expected


@pytest.mark.parametrize(
    ("method", "parameter", "default"),
    [("linear", "normalize", True), ("task_arithmetic", "lambda_", 1.0)],
)
def test_a_default_is_the_last_resort(
    four: Path, method: str, parameter: str, default: object
) -> None:
    data = {
        "merge_method": method,
        "models": [{"model": str(four / "a"), "parameters": {"weight": 1}}],
        "base_model": str(four / "base") if method != "linear" else None,
    }
    assert jobs(planning.plan(data))[EMBEDDING].numbers[parameter] == default


def test_gradients_follow_the_layers_and_filters_the_names(
    four: Path, recipe_file: RecipeFile
) -> None:
    plan = planning.plan(
        recipe_file(
            """
            merge_method: slerp
            base_model: ./a
            models: [{model: ./a}, {model: ./b}]
            parameters:
              t:
                - {filter: self_attn, value: [0, 0.25, 1]}
                - {filter: mlp, value: [1, 0]}
                - value: [0.25, 1]
            """
        )
    )
    t = {name: job.numbers["t"] for name, job in jobs(plan).items()}
    assert [t[QUERY.format(i)] for i in range(4)] == pytest.approx([0, 1 / 6, 0.5, 1])
    assert [t[MLP.format(i)] for i in range(4)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert t["model.layers.3.input_layernorm.weight"] == 1
    assert (
        t[EMBEDDING] == t[NORM] == t[HEAD] == 0.25
    )  # outside the layers, the gradient's beginning


def test_a_single_layer_is_the_end_of_a_gradient(tmp_path: Path) -> None:
    data = {
        "merge_method": "linear",
        "models": [
            {"model": str(make_model(tmp_path / "a", layers=1)), "parameters": {"weight": [2, 5]}}
        ],
    }
    plan = planning.plan(data)
    assert (weights(plan, MLP.format(0)), weights(plan, EMBEDDING)) == ((5,), (2,))


def test_gradients_begin_anew_in_every_slice(four: Path, recipe_file: RecipeFile) -> None:
    plan = planning.plan(
        recipe_file(
            """
            merge_method: linear
            slices:
            - sources: [{model: ./a, layer_range: [0, 3]}]
            - sources: [{model: ./b, layer_range: [3, 4]}]
            - sources: [{model: ./b, layer_range: [0, 2]}]
            parameters: {weight: [1, 3]}
            """
        )
    )
    assert [weights(plan, MLP.format(i)) for i in range(6)] == [(1,), (2,), (3,), (3,), (1,), (3,)]


def test_a_gradient_over_settings_of_several_models(four: Path, recipe_file: RecipeFile) -> None:
    plan = planning.plan(
        recipe_file(
            """
            merge_method: linear
            models:
              - model: ./a
                parameters: {weight: [0, 3]}
              - model: ./b
            parameters: {weight: 1e-1, normalize: "false"}
            """
        )
    )
    assert weights(plan, MLP.format(1)) == pytest.approx((1, 0.1))
    assert jobs(plan)[EMBEDDING].numbers["normalize"] is False


@pytest.mark.parametrize(
    ("recipe", "line", "parts"),
    [
        ("models: [{model: ./a}]", None, ["linear", "'weight'", "./a"]),
        (
            "models:\n- model: ./a\n  parameters: {weight: 1}\n- model: ./b",
            5, ["'weight'", "./b", "tensor"],
        ),
        ("models: [{model: ./a, parameters: {weight: [{filter: mlp, value: 1}]}}]", 2, ["'weight'"]),
        ("models: [{model: ./a, parameters: {weight: much}}]", 2, ["weight", "much"]),
        ("models: [{model: ./a}]\nparameters:\n  weight: [1, x]", 4, ["weight"]),
        ("models: [{model: ./a}]\nparameters:\n  weight: " + "9" * 400, 4, ["weight"]),
        ("models: [{model: ./a}]\nparameters:\n  weight: [1, " + "9" * 400 + "]", 4, ["weight"]),
        ("models: [{model: ./a}]\nparameters:\n  weight: 1\n  normalize: 7", 5, ["normalize", "7"]),
        ("models: [{model: ./a}]\nparameters:\n  weight: 0", 3, ["add up to 0", "normalize"]),
        ("models: [{model: ./a}, {model: ./a}]\nparameters: {weight: 1}", 2, ["./a", "twice"]),
        ("base_model: ./base\nmodels: [{model: ./a, parameters: {weight: 1}}]", 2, ["'weight'", "./base"]),
    ],
)  # fmt: skip
def test_wrong_and_missing_weights(
    four: Path, recipe_file: RecipeFile, recipe: str, line: int | None, parts: list[str]
) -> None:
    file = recipe_file(f"merge_method: linear\n{recipe}\n")
    with pytest.raises(RecipeError) as error:
        planning.plan(file)
    assert_one_line(str(error.value), *parts)
    assert str(error.value).startswith(f"{file}:{line}: " if line else f"{file}:")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("linaer", "did you mean 'linear'"), ("task-arithmetic", "task_arithmetic"), ("xyz", "slerp")],
)
def test_an_unknown_method_is_met_with_a_suggestion(
    four: Path, recipe_file: RecipeFile, name: str, hint: str
) -> None:
    file = recipe_file(f"models: [{{model: ./a}}]\nmerge_method: {name}\n")
    with pytest.raises(RecipeError) as error:
        planning.plan(file)
    assert_one_line(str(error.value), f"{file}:2: ", name, hint)


@pytest.mark.parametrize(
    ("block", "line", "parts"),
    [
        ("{wieght: 1}", 5, ["wieght", "'weight'"]),
        ("{weight: 1, normalise: true}", 5, ["normalise", "'normalize'"]),
    ],
)
def test_a_slip_in_a_parameter_is_an_error(
    four: Path, recipe_file: RecipeFile, block: str, line: int, parts: list[str]
) -> None:
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n- model: ./a\n  parameters: {block}\n"
    file = recipe_file(text)
    with pytest.raises(RecipeError) as error:
        planning.plan(file)
    assert_one_line(str(error.value), f"{file}:{line}: ", *parts)
    [warning] = planning.plan(file, strictness="lenient").warnings
    assert_one_line(warning, f"{file}:{line}: ", "ignored")


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("parameters: {weight: 1, epsilon: 2}", 3, ["parameters.epsilon", "ignored"]),
        (
            "parameters:\n  weight:\n  - {filter: mpl, value: 2}\n  - value: 1",
            4, ["parameters.weight", "'mpl'", "no tensor"],
        ),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_warned_of_and_refused_if_strict(
    four: Path, recipe_file: RecipeFile, text: str, line: int, parts: list[str]
) -> None:
    file = recipe_file(f"merge_method: linear\nmodels: [{{model: ./a}}]\n{text}\n")
    [warning] = planning.plan(file).warnings
    assert_one_line(warning, f"{file}:{line}: ", *parts)
    with pytest.raises(RecipeError) as error:
        planning.plan(file, strictness="strict")
    assert_one_line(str(error.value), f"{file}:{line}: ")


def test_a_shared_parameter_under_a_model_is_warned_of(four: Path, recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        merge_method: linear
        models:
        - model: ./a
          parameters:
            weight: 1
            normalize: false
        """
    )
    plan = planning.plan(file)
    assert jobs(plan)[EMBEDDING].numbers["normalize"] is True
    [warning] = plan.warnings
    assert_one_line(warning, f"{file}:6: ", "models[0].parameters.normalize", "ignored")


def test_a_filter_that_another_setting_hides_does_match_tensors(
    four: Path, recipe_file: RecipeFile
) -> None:
    file = recipe_file(
        """
        merge_method: linear
        models: [{model: ./a, parameters: {weight: 1}}]
        parameters:
          weight: [{filter: mlp, value: 2}, {filter: nowhere, value: 3}]
        """
    )
    [warning] = planning.plan(file).warnings
    assert_one_line(warning, "'nowhere'")


# -- models, bases and slices ----------------------------------------------------------------------


def test_models_keep_the_recipes_order_and_an_unlisted_base_comes_last(four: Path) -> None:
    models = [{"model": str(four / name), "parameters": {"weight": 1}} for name in ("b", "a")]
    data: dict[str, Any] = {"merge_method": "linear", "models": models}
    data |= {"base_model": str(four / "base"), "parameters": {"weight": 2}}
    plan = planning.plan(data)
    assert [source.reference.name for source in plan.sources] == ["b", "a", "base"]
    assert [read.source for read in plan.jobs[0].reads] == [0, 1, 2]
    assert weights(plan, EMBEDDING) == (1, 1, 2)
    assert (plan.base, plan.donor) == (2, 2)


def test_a_method_of_differences_reads_its_base_first(four: Path) -> None:
    models = [{"model": str(four / name), "parameters": {"weight": 1}} for name in ("a", "base")]
    data = {"merge_method": "task_arithmetic", "models": models, "base_model": str(four / "base")}
    plan = planning.plan(data)
    assert [read.source for read in plan.jobs[0].reads] == [1, 0]
    assert weights(plan, EMBEDDING) == (1,)
    assert plan.donor == 1


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("merge_method: slerp\nmodels: [{model: ./a}, {model: ./b}]\nparameters: {t: 1}", ["base_model"]),
        ("merge_method: slerp\nbase_model: ./a\nmodels: [{model: ./a}]\nparameters: {t: 1}", ["1 model"]),
        ("merge_method: passthrough\nmodels: [{model: ./a}, {model: ./b}]", ["takes 1 model", "2"]),
        (
            "merge_method: task_arithmetic\nbase_model: ./base\nparameters: {weight: 1}\n"
            "slices: [{sources: [{model: ./a, layer_range: [0, 4]}]}]",
            ["base_model", "sources"],
        ),
    ],
)  # fmt: skip
def test_too_few_and_too_many_models(
    four: Path, recipe_file: RecipeFile, recipe: str, parts: list[str]
) -> None:
    file = recipe_file(f"{recipe}\n")
    with pytest.raises(RecipeError) as error:
        planning.plan(file)
    assert_one_line(str(error.value), f"{file}:", *parts)


def test_layers_are_stacked(four: Path, recipe_file: RecipeFile) -> None:
    make_model(four / "deep", layers=4)
    plan = planning.plan(
        recipe_file(
            """
            merge_method: passthrough
            slices:
            - sources: [{model: ./a, layer_range: [0, 3]}]
            - sources: [{model: ./b, layer_range: [1, 4]}]
            - sources: [{model: ./deep, layer_range: [4, 4]}]
            """
        )
    )
    a, b, deep = range(3)
    found = [((r.source, r.name),) for job in plan.jobs for r in job.reads if "up_proj" in r.name]
    origins = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]
    assert found == [((source, MLP.format(layer)),) for source, layer in origins]
    assert plan.layers == {"default": tuple(((source, layer),) for source, layer in origins)}
    assert set(jobs(plan)) == set(shapes(layers=6))
    donors = {name: jobs(plan)[name].reads[0].source for name in (EMBEDDING, NORM, HEAD)}
    assert donors == {EMBEDDING: a, NORM: deep, HEAD: deep}
    assert [job.layer for job in plan.jobs if "up_proj" in job.name] == list(range(6))


def test_slices_average_layers_of_different_numbers(four: Path, recipe_file: RecipeFile) -> None:
    plan = planning.plan(
        recipe_file(
            """
            merge_method: linear
            slices:
            - sources:
              - {model: ./a, layer_range: [0, 2], parameters: {weight: 1}}
              - model: ./b
                layer_range: [2, 4]
                parameters: {weight: [{filter: layers.3, value: 5}, {value: 1}]}
            """
        )
    )
    job = jobs(plan)[MLP.format(1)]
    assert [read.name for read in job.reads] == [MLP.format(1), MLP.format(3)]
    assert job.numbers["weight"] == (1, 5)  # a model's filters see that model's names
    assert weights(plan, MLP.format(0)) == (1, 1)


@pytest.mark.parametrize("layers", ["[0, 5]", "[4, 5]", "[7, 9]"])
def test_layers_beyond_the_model_are_told_with_its_real_depth(
    four: Path, recipe_file: RecipeFile, layers: str
) -> None:
    file = recipe_file(
        f"merge_method: passthrough\nslices:\n- sources:\n  - model: ./a\n    layer_range: {layers}\n"
    )
    with pytest.raises(RecipeError) as error:
        planning.plan(file)
    assert_one_line(str(error.value), f"{file}:5: ", "slices[0].sources[0].layer_range", "4 layers")


# -- tensors that do not fit -----------------------------------------------------------------------


def averaged(*folders: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(folder), "parameters": {"weight": 1}} for folder in folders]
    return {"merge_method": "linear", "models": models, **more}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vocab": 48}, ["b", "[48, 16]", "[32, 16]", "vocabularies differ"]),
        ({"layers": 3}, ["model.layers.2.", "no tensor"]),
        ({"layers": 1}, ["model.layers.1.", "no tensor"]),
        ({"extra": {NORM: torch.zeros(8)}}, ["b", NORM, "[8]", "[16]"]),
        ({"extra": {NORM: torch.ones(16).to(torch.float8_e8m0fnu)}}, [NORM, "float8", "not supported"]),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", **changes)
    with pytest.raises(InputError) as error:
        planning.plan(averaged(a, b))
    assert_one_line(str(error.value), *parts)
    assert error.value.exit_code == 3


def test_integers_are_copied(tmp_path: Path) -> None:
    extra = {"counter": torch.arange(5)}
    a, b = (make_model(tmp_path / name, extra=extra) for name in ("a", "b"))
    job = jobs(planning.plan(averaged(a, b, dtype="bfloat16")))["counter"]
    assert (job.method, job.spec.dtype.name, len(job.reads)) == ("copy", "int64", 2)


@pytest.mark.parametrize(
    ("a", "b", "head", "tied"),
    [
        ({"tied": True}, {"tied": True}, None, True),
        ({"tied": True, "head": True}, {"tied": True, "head": True}, None, True),
        ({"tied": True}, {"tied": True, "head": True}, None, True),
        ({"tied": False}, {"tied": False}, [HEAD, HEAD], False),
        ({"tied": True}, {"tied": False}, [EMBEDDING, HEAD], False),
        ({"tied": True, "head": True}, {"tied": False}, [HEAD, HEAD], False),
    ],
)
def test_tied_heads(
    tmp_path: Path, a: Mapping[str, Any], b: Mapping[str, Any], head: list[str] | None, tied: bool
) -> None:
    folders = make_model(tmp_path / "a", **a), make_model(tmp_path / "b", **b)
    plan = planning.plan(averaged(*folders))
    found = jobs(plan).get(HEAD)
    assert (found and [read.name for read in found.reads]) == head
    assert plan.tied is tied
    redundant = tied and (a.get("head") or b.get("head"))
    assert [HEAD in warning for warning in plan.warnings] == ([True] if redundant else [])


@pytest.mark.parametrize("name", ["score.weight", "lm_head.bias", "v_head.weight"])
def test_a_head_that_is_no_embedding_is_kept_beside_tied_ones(tmp_path: Path, name: str) -> None:
    extra = {name: torch.ones(2, 16, dtype=torch.bfloat16)}
    a, b = (make_model(tmp_path / model, tied=True, extra=extra) for model in ("a", "b"))
    plan = planning.plan(averaged(a, b))
    assert [read.name for read in jobs(plan)[name].reads] == [name, name]
    assert plan.tied


# -- dtypes ----------------------------------------------------------------------------------------

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("a", "b", "keys", "expected"),
    [
        (BF16, BF16, {}, "bfloat16"),
        (F16, F16, {}, "float16"),
        (BF16, F16, {}, "float32"),
        (BF16, F32, {}, "float32"),
        (F32, F64, {}, "float64"),
        (F32, F32, {"dtype": "bfloat16"}, "bfloat16"),
        (BF16, BF16, {"dtype": "float32"}, "float32"),
        (BF16, BF16, {"out_dtype": "float32"}, "float32"),
        (BF16, BF16, {"dtype": "float32", "out_dtype": "float16"}, "float16"),
    ],
)
def test_the_dtype_of_the_output(
    tmp_path: Path, a: torch.dtype, b: torch.dtype, keys: dict[str, Any], expected: str
) -> None:
    folders = make_model(tmp_path / "a", dtype=a), make_model(tmp_path / "b", dtype=b)
    plan = planning.plan(averaged(*folders, **keys))
    assert plan.dtype.name == expected
    assert {job.spec.dtype.name for job in plan.jobs} == {expected}
    assert plan.output_bytes - len(plan.shards[0].header) == plan.parameters * plan.dtype.itemsize


def test_the_same_dtype_is_copied_bit_for_bit(tmp_path: Path) -> None:
    data = {"merge_method": "passthrough", "models": [{"model": str(make_model(tmp_path / "a"))}]}
    assert {job.method for job in planning.plan(data).jobs} == {"copy"}
    wide = planning.plan(data | {"dtype": "float32"})
    scaled = planning.plan(data | {"parameters": {"scale": 2}})
    assert {job.method for job in (*wide.jobs, *scaled.jobs)} == {"passthrough"}


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["5GB", "8kB", "2KiB", "1", 3000])
def test_shards_are_files_that_safetensors_reads(
    tmp_path: Path, pair: tuple[Path, Path], size: int | str
) -> None:
    plan = planning.plan(averaged(*pair), shard_size=size)
    limit, names = parse_size(size), []
    for shard in plan.shards:
        assert len(shard.header) % 4096 == 0
        file = tmp_path / shard.file
        file.write_bytes(shard.header + bytes(shard.size - len(shard.header)))
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == set(shard.offsets)
        assert shard.size - len(shard.header) <= limit or len(shard.offsets) == 1
        names += list(shard.offsets)
    assert names == [job.name for job in plan.jobs]
    specs = {job.name: (str(job.spec.dtype), job.spec.shape) for job in plan.jobs}
    read = {k: v for shard in plan.shards for k, v in load_file(tmp_path / shard.file).items()}
    assert {k: (str(v.dtype)[6:], tuple(v.shape)) for k, v in read.items()} == specs
    count = len(plan.shards)
    expected = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [s.file for s in plan.shards] == (expected if count > 1 else ["model.safetensors"])


def test_every_offset_points_to_its_tensor(tmp_path: Path) -> None:
    folder = make_model(
        tmp_path / "a", extra={"empty": torch.zeros(0, 3), "one": torch.tensor(7.0)}
    )
    plan = planning.plan(averaged(folder), shard_size=3000)
    stored = load_file(folder / "model.safetensors")
    for shard in plan.shards:
        content = bytearray(shard.header.ljust(shard.size, b"\0"))
        for name, offset in shard.offsets.items():
            data = stored[name].reshape(-1).view(torch.uint8).numpy().tobytes()
            content[offset : offset + len(data)] = data
        (tmp_path / shard.file).write_bytes(content)
        for name, tensor in load_file(tmp_path / shard.file).items():
            assert torch.equal(tensor, stored[name])


@pytest.mark.parametrize("size", ["5XB", "", "many", "nan", "inf", "5 GB GB", "GB"])
def test_what_is_no_shard_size(pair: tuple[Path, Path], size: str) -> None:
    with pytest.raises(RecipeError) as error:
        planning.plan(averaged(*pair), shard_size=size)
    assert_one_line(str(error.value), "shard size", size)


@pytest.mark.parametrize("size", ["0", 0, "-1"])
def test_no_shard_size_is_one_file(pair: tuple[Path, Path], size: str | int) -> None:
    assert len(planning.plan(averaged(*pair), shard_size=size).shards) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5B", 5 * 10**9),
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("1.5G", 15 * 10**8),
        ("5GiB", 5 * 2**30),
        ("2 MiB", 2 * 2**20),
        ("10kB", 10**4),
        ("1T", 10**12),
        ("123", 123),
        (123, 123),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


# -- the whole plan --------------------------------------------------------------------------------


def test_planning_reads_no_weights(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(StoredCheckpoint, "read", refuse)
    plan = merganser.plan(linear)
    described = json.loads(json.dumps(planning.describe(plan)))
    assert described["digest"] == plan.digest
    assert [tensor["name"] for tensor in described["tensors"]] == [job.name for job in plan.jobs]
    assert described["tensors"][0]["numbers"] == {"weight": [0.25, 0.75], "normalize": True}
    assert described["input_bytes"] == 2 * described["parameters"] * 2


def test_the_digest_is_the_same_in_every_process(linear: Path) -> None:
    code = "import sys, merganser; print(merganser.plan(sys.argv[1]).digest)"
    found = {merganser.plan(linear).digest}
    for seed in ("0", "1"):
        command = [sys.executable, "-c", code, str(linear)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_the_digest_tells_what_decides_the_bytes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    a, b = pair
    c = make_model(tmp_path / "c", layers=3, seed=3)
    weighted = averaged(a, b) | {"parameters": {"normalize": False}}
    plans = [
        planning.plan(averaged(a, b)),
        planning.plan(averaged(b, a)),
        planning.plan(weighted),
        planning.plan(averaged(a)),
        planning.plan(averaged(c)),
        planning.plan(averaged(a, b, dtype="float32")),
        planning.plan(averaged(a, b), arithmetic="mergekit"),
        planning.plan(averaged(a, b), rounding="stochastic"),
        planning.plan(averaged(a, b), rounding="stochastic", seed=1),
        planning.plan(averaged(a, b), shard_size=3000),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert planning.plan(averaged(a, b), seed=1).digest == plans[0].digest  # nothing is drawn


def test_arguments_go_before_the_recipe(pair: tuple[Path, Path]) -> None:
    data = averaged(*pair, rounding="stochastic", seed=5, arithmetic="mergekit")
    plan = planning.plan(data)
    assert (plan.rounding, plan.seed, plan.arithmetic) == ("stochastic", 5, "mergekit")
    plan = planning.plan(data, rounding="nearest", seed=0, arithmetic="exact")
    assert (plan.rounding, plan.seed, plan.arithmetic) == ("nearest", 0, "exact")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("./nowhere", "no such folder"),
        ("s3://bucket/model", "s3://bucket/model: object stores are not read; mount the bucket"),
        ("../nowhere/at/all", "no such folder"),
        ("/nowhere", "no such folder"),
        ("~nobody-of-that-name/model", "no such folder"),
        ("x" * 300, "x" * 300),
        ("./" + "y" * 300, "y" * 300),
        ("./empty", "holds no model"),
        ("./weightless", "no weights"),
        ("./pickles", "name that file"),
    ],
)
def test_a_model_that_is_not_there(
    tmp_path: Path,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    part: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, file in (("empty", None), ("weightless", "config.json"), ("pickles", "model.bin")):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("{}")
    recipe = recipe_file(f"merge_method: passthrough\nmodels: [{{model: {path}}}]\n")
    with pytest.raises(InputError) as error:
        planning.plan(recipe)
    assert_one_line(str(error.value), path, part)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("runs/acc/global_step_31/actor", "runs/acc/global_step_30/actor"),
        ("runs/acd/global_step_30/actor", "runs/acc/global_step_30/actor"),
        ("./rnus/acc/global_step_30/actor", "runs/acc/global_step_30/actor"),
        ("rums", "runs"),
        ("runs/elsewhere/actor", None),
    ],
)
def test_a_model_that_is_nearly_there(
    tmp_path: Path,
    recipe_file: RecipeFile,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    meant: str | None,
) -> None:
    """The line that names it, and the folder that was meant, beside the recipe or here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "runs" / "acc" / "global_step_30" / "actor").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    recipe = recipe_file(f"merge_method: passthrough\nmodels:\n- model: {path}\n")
    for place in (tmp_path, tmp_path / "away"):
        monkeypatch.chdir(place)
        with pytest.raises(InputError) as error:
            planning.plan(recipe)
        assert str(error.value).startswith(f"{recipe}:3: {path}: no such folder")
        if meant is None:
            assert "did you mean" not in str(error.value)
        else:
            assert_one_line(str(error.value), f"did you mean {meant}?")


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer_source: ./c",
        "tokenizer:\n  source: ./c",
        "tokenizer:\n  source: union\n  tokens: {a: {source: ./c}}",
        "tokenizer: {tokens: {a: {source: {kind: model_token, model: ./c, token: a}}}}",
    ],
)
def test_a_tokenizer_that_is_missing_is_told_with_its_line(linear: Path, text: str) -> None:
    linear.write_text(f"{linear.read_text()}{text}\n")
    line = next(n for n, each in enumerate(linear.read_text().splitlines(), 1) if "./c" in each)
    with pytest.raises(InputError) as error:
        planning.plan(linear)
    assert_one_line(str(error.value), f"{linear}:{line}: ./c: no such folder")


def test_a_filter_that_is_nearly_a_part_of_names(linear: Path) -> None:
    text = linear.read_text()
    linear.write_text(text + "parameters: {weight: [{filter: mlpp, value: 1}, {value: 1}]}\n")
    assert any(
        "the filter 'mlpp' matches no tensor; did you mean 'mlp'?" in warning
        for warning in planning.plan(linear).warnings
    )


def test_relative_paths_are_found_from_here_and_from_the_recipe(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    beside = planning.plan(linear)
    assert [s.checkpoint.path for s in beside.sources] == [tmp_path / "a", tmp_path / "b"]
    make_model(elsewhere / "a", seed=7)
    assert planning.plan(linear).sources[0].checkpoint.path == Path("a")


def test_planning_leaves_no_file_open_and_changes_nothing(linear: Path) -> None:
    before = sorted(p.stat().st_mtime_ns for p in linear.parent.rglob("*"))
    plan = planning.plan(linear)
    assert isinstance(plan, Plan)
    assert sorted(p.stat().st_mtime_ns for p in linear.parent.rglob("*")) == before
    assert not any(
        str(linear.parent) in str(link.resolve()) for link in Path("/proc/self/fd").iterdir()
    )


def test_plans_cannot_be_changed(linear: Path) -> None:
    plan = planning.plan(linear)
    with pytest.raises(AttributeError):
        plan.seed = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        plan.jobs[0].name = "x"  # type: ignore[misc]


def test_all_tensors_of_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    save_weights(folder, {})
    with pytest.raises(MerganserError) as error:
        planning.plan(averaged(folder))
    assert_one_line(str(error.value), "no tensors")
