"""Every warning, when it must be there and when it must not.

Those of numbers and their ranges are in ``test_numbers``, of keys in ``test_recipe``, of chains in
``test_chain``, of effective weights in ``test_engine``, of values that are infinite in
``test_integrity``, and of training runs in ``test_fsdp``, ``test_dcp`` and ``test_deepspeed``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import TOKENIZER, TOKENIZER_CONFIG, change_config, make_model, write_json
from merganser import methods, planning
from merganser.release import fact_sheet
from messages import assert_one_line

ONES = torch.ones(16, dtype=torch.bfloat16)
BIAS = "model.layers.0.self_attn.o_proj.bias"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``a``, ``b`` and ``base``, and ``c`` with a bias that they lack."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "base")):
        make_model(folder / name, seed=seed)
    make_model(folder / "c", extra={BIAS: ONES})
    return folder


def recipe(method: str, *listed: Path | tuple[Path, dict[str, Any]], **keys: Any) -> dict[str, Any]:
    entries = [each if isinstance(each, tuple) else (each, {}) for each in listed]
    named = [{"model": str(model), "parameters": given} for model, given in entries]
    return {"merge_method": method, "models": named, **keys}


def warnings(data: Any, **options: Any) -> tuple[str, ...]:
    return planning.plan(data, **options).warnings


def assert_warned(data: Any, *parts: str, **options: Any) -> None:
    [warning] = warnings(data, **options)
    assert_one_line(warning, *parts)


@pytest.mark.parametrize("method", methods.names())
def test_a_plain_recipe_has_none(models: Path, method: str, tmp_path: Path) -> None:
    found = methods.get(method)
    assert found is not None
    count = min(2, found.models[1] or 2)
    listed = [(models / name, {}) for name in "ab"[:count]]
    given = {p.name: 0.5 for p in found.parameters if p.required}
    keys = {"base_model": str(models / "base")} if found.base != "none" else {}
    data = recipe(method, *listed, parameters=given, **keys)
    assert warnings(data, strictness="strict") == ()
    for source in ("union", "base"):
        assert warnings(data | {"tokenizer_source": source}, strictness="strict") == ()


# -- settings without effect -----------------------------------------------------------------------


def test_parameters_that_mergekit_accepts_without_effect(models: Path) -> None:
    base = {"base_model": str(models / "base"), "parameters": {"weight": 1, "density": 0.5}}
    data = recipe("task_arithmetic", models / "a", **base)
    assert_warned(data, "parameters.density", "no effect in task_arithmetic")
    assert warnings(data | {"merge_method": "ties"}) == ()


def test_parameters_that_a_method_does_not_know(models: Path) -> None:
    data = recipe("linear", models / "a", parameters={"weight": 1, "epsilon": 0.1})
    assert_warned(data, "parameters.epsilon", "the method linear has no key")
    data = recipe("della", models / "a", parameters={"weight": 1, "epsilon": 0.1, "density": 0.5})
    assert warnings(data | {"base_model": str(models / "base")}) == ()


def test_a_number_for_all_models_under_one(models: Path) -> None:
    one = {"weight": 1, "normalize": True}
    assert_warned(recipe("linear", (models / "a", one)), "models[0]", "one number for all models")
    assert warnings(recipe("linear", (models / "a", {"weight": 1}))) == ()


@pytest.mark.parametrize("method", ["ties", "linear", "nuslerp"])
def test_parameters_of_a_base_among_the_models(models: Path, method: str) -> None:
    """Linear has no base, so that it is a model like the others there."""
    one = {"weight": 1}
    listed = [(models / name, one) for name in ("a", "b", "base")]
    data = recipe(method, *listed, base_model=str(models / "base"))
    if method == "linear":
        assert warnings(data) == ()
    else:
        assert_warned(data, "models[2].parameters.weight", "no effect", f"the base of {method}")
    data["models"][2]["parameters"] = {}
    assert method == "linear" or warnings(data) == ()


def test_a_base_that_a_slice_lists_twice_is_a_model_too(models: Path) -> None:
    base = str(models / "base")
    sources = [
        {"model": base, "layer_range": [0, 1]},
        {"model": base, "layer_range": [1, 2], "parameters": {"weight": 0.5}},
    ]
    data = {"merge_method": "task_arithmetic", "slices": [{"sources": sources}], "base_model": base}
    assert warnings(data) == ()
    sources[0]["model"] = str(models / "a")
    sources[0]["parameters"] = {"weight": 1}
    assert_warned(data, "slices[0].sources[1].parameters.weight", "no effect")


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        ([("mlp", 0.5), (None, 1)], None),
        ([("mlp", 0.5), ("mlp.up_proj", 1), (None, 1)], ["'mlp.up_proj'", "never used"]),
        ([(None, 1), ("mlp", 0.5)], ["'mlp'", "never used"]),
        ([("*", 1), ("mlp", 0.5)], ["'mlp'", "never used"]),
        ([("up_proj", 0.5), ("mlp", 1), (None, 1)], None),
        ([("up_proj", 0.5), ("gate", 1), ("down", 1), ("mlp", 1), (None, 1)], ["'mlp'", "never used"]),
        ([("mpl", 0.5), (None, 1)], ["'mpl'", "matches no tensor"]),
    ],
)  # fmt: skip
def test_rules_that_no_tensor_takes(models: Path, rules: Any, parts: list[str] | None) -> None:
    setting = [{"filter": f, "value": v} if f else {"value": v} for f, v in rules]
    data = recipe("linear", (models / "a", {"weight": setting}))
    if parts is None:
        assert warnings(data) == ()
    else:
        assert_warned(data, "models[0].parameters.weight", *parts)


def test_a_filter_is_for_the_tensors_of_its_own_model(models: Path) -> None:
    rules = {"weight": [{"filter": "o_proj.bias", "value": 1}, {"value": 0.5}]}
    for own, other in ("ac", "ca"):
        data = recipe("linear", (models / own, rules), (models / other, {"weight": 1}))
        found = [w for w in warnings(data) if "matches no tensor" in w]
        assert len(found) == (own == "a")


def test_a_gradient_over_files_without_layers(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(4)}, file)
    for gradient, flat in (([0.2, 0.8], False), ([0.5, 0.5], True), ([0.5], True)):
        data = recipe("linear", (file, {"weight": gradient}))
        if flat:
            assert warnings(data) == ()
        else:
            assert_warned(data, "models[0].parameters.weight", "its first value")


def test_residual_weight(models: Path) -> None:
    source = {"model": str(models / "a"), "layer_range": [0, 2]}
    piece: dict[str, Any] = {"sources": [source]}
    data = {"merge_method": "passthrough", "slices": [piece]}
    assert warnings(data) == ()
    piece["residual_weight"] = 0.5
    assert_warned(data, "slices[0].residual_weight has no effect")


# -- tensors that some models lack -----------------------------------------------------------------


def test_a_tensor_that_is_merged_from_some_models_or_taken_from_one(models: Path) -> None:
    a, b, c = (models / name for name in "abc")
    half = {"parameters": {"weight": 0.5}}
    assert_warned(recipe("linear", a, c, **half), f"{a} lacks the tensor {BIAS}: merged from")
    assert warnings(recipe("linear", a, b, **half)) == ()
    slerp = recipe("slerp", a, base_model=str(c), parameters={"t": 0.5})
    assert_warned(slerp, f"{a} lacks the tensor {BIAS}: copied unchanged from {c}")
    job = next(job for job in planning.plan(slerp).jobs if job.name == BIAS)
    assert (job.method, len(job.reads)) == ("copy", 1)


def test_a_config_that_may_not_know_a_tensor(models: Path) -> None:
    a, c = models / "a", models / "c"
    half = {"parameters": {"weight": 0.5}}
    for order in ((a, c), (c, a)):
        [warning] = warnings(recipe("linear", *order, **half))
        assert ("may not know" in warning) == (order[0] == a)


def test_tensors_that_are_not_in_every_model(models: Path) -> None:
    half = {"parameters": {"weight": 0.5}}
    data = recipe("linear", models / "a", models / "c", **half)
    assert_warned(data, BIAS, "not in every model", "left out", tensor_names="intersection")
    data = recipe("linear", models / "a", models / "b", **half)
    assert warnings(data, tensor_names="intersection") == ()


# -- tokenizers ------------------------------------------------------------------------------------


def tokenizer(folder: Path, *more: str, **flags: Any) -> Path:
    """Give a model's tokenizer more added tokens."""
    added = [{"id": 19 + i, "content": t, "special": True, **flags} for i, t in enumerate(more)]
    write_json(folder / "tokenizer.json", TOKENIZER | {"added_tokens": added})
    return folder


def test_a_model_without_a_tokenizer_takes_another_one(tmp_path: Path) -> None:
    a, b = make_model(tmp_path / "a", seed=1), make_model(tmp_path / "b", seed=2)
    half = {"parameters": {"weight": 0.5}, "tokenizer_source": "union"}
    assert warnings(recipe("linear", a, b, **half)) == ()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (b / name).unlink()
    assert_warned(recipe("linear", a, b, **half), f"{b} has no tokenizer; that of {a} is assumed")


def test_tokens_without_a_row_and_tokens_that_differ(tmp_path: Path) -> None:
    a, b = make_model(tmp_path / "a", seed=1), make_model(tmp_path / "b", seed=2)
    half: dict[str, Any] = {"parameters": {"weight": 0.5}, "tokenizer_source": "union"}
    tokenizer(a, "<x>")
    tokenizer(b, "<x>")
    assert warnings(recipe("linear", a, b, **half)) == ()
    tokenizer(b, "<x>", lstrip=True)
    assert_warned(recipe("linear", a, b, **half), "token '<x>'", "set differently")
    tokenizer(b)
    tokenizer(a, *(f"<{i}>" for i in range(16)))  # 35 tokens for 32 rows
    assert_warned(
        recipe("linear", a, b, **half),
        f"and 2 more of {a} have no row in its embedding",
        "left out",
    )


def test_an_id_whose_token_is_gone_is_told_once(tmp_path: Path) -> None:
    """config.json and generation_config.json name the same token."""
    a, b = make_model(tmp_path / "a", seed=1), make_model(tmp_path / "b", seed=2)
    words = {w: i for w, i in TOKENIZER["model"]["vocab"].items() if w != "</s>"}  # type: ignore[index]
    own = {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"}
    write_json(b / "tokenizer.json", TOKENIZER | {"model": own})
    write_json(b / "tokenizer_config.json", TOKENIZER_CONFIG | {"eos_token": "<|im_end|>"})
    write_json(a / "generation_config.json", {"eos_token_id": 2})
    data = recipe("linear", a, b, base_model=str(a), parameters={"weight": 0.5})
    assert warnings(data | {"tokenizer_source": "base"}) == ()
    assert_warned(
        data | {"tokenizer_source": str(b)},
        "eos_token_id was '</s>', which the tokenizer lacks; it is '<|im_end|>' now",
    )


def test_a_vocabulary_of_which_no_model_has_rows(tmp_path: Path) -> None:
    """There is no embedding in which rows could be zero."""
    for name in "ab":
        folder = make_model(tmp_path / name)
        save_file({"layer.weight": torch.ones(4, 4)}, folder / "model.safetensors")
        change_config(folder, vocab_size=None)
    data = recipe("linear", tmp_path / "a", tmp_path / "b", parameters={"weight": 0.5})
    assert warnings(data | {"tokenizer_source": "union"}) == ()


@pytest.mark.parametrize("embedding", [True, False])
def test_a_model_without_a_tokenizer_has_a_vocabulary(tmp_path: Path, embedding: bool) -> None:
    """A vision model has no tokens, so that nothing is missing."""
    a = make_model(tmp_path / "a")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (a / name).unlink()
    if not embedding:
        save_file({"layers.0.weight": torch.ones(4, 4)}, a / "model.safetensors")
        change_config(a, vocab_size=None, num_hidden_layers=1)
    assert ("tokenizer" in fact_sheet.inspect(str(a))["missing"]) == embedding
    result = merganser.merge(recipe("linear", (a, {"weight": 1})), tmp_path / "out")
    wanted = (f"{a} has no tokenizer, so the output has none",) if embedding else ()
    assert result.warnings == wanted


# -- how models are read ---------------------------------------------------------------------------


def test_shards_with_their_weights_under_a_name_are_told_once(tmp_path: Path) -> None:
    def saved(wrap: Callable[[Any], Any]) -> Path:
        a = make_model(tmp_path / "a")
        tensors = list(load_file(a / "model.safetensors").items())
        (a / "model.safetensors").unlink()
        weight_map = {}
        for i in range(2):
            file = f"pytorch_model-0000{i + 1}-of-00002.bin"
            torch.save(wrap(dict(tensors[i::2])), a / file)
            weight_map |= {name: file for name, _ in tensors[i::2]}
        index = {"metadata": {}, "weight_map": weight_map}
        (a / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return a

    assert warnings(recipe("linear", (saved(lambda part: part), {"weight": 1}))) == ()
    wrapped = saved(lambda part: {"state_dict": part})
    assert_warned(recipe("linear", (wrapped, {"weight": 1})), "those under 'state_dict'")
