"""Models of every architecture merge, stack, and load again in transformers without a complaint."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merganser
from checkpoints_on_disk import change_config, make_model
from families import FAMILIES, LAYERS, Family
from merganser.architecture import Architecture, infer
from merganser.checkpoints import open_checkpoint
from merganser.cli.plan_table import show_plan
from merganser.errors import InputError, RecipeError
from merganser.planning import describe
from merganser.release.fact_sheet import inspect
from merganser.tensors import BY_NAME, TensorSpec
from messages import assert_one_line
from peers import different_bits, load, mergekit

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models of a family, made once a session: one by transformers, one a little away from it."""
    root = tmp_path_factory.mktemp("architectures")

    @functools.cache
    def pair(name: str) -> tuple[Path, Path]:
        a, b = root / name / "a", root / name / "b"
        with quiet():
            FAMILIES[name].make(a)
        shutil.copytree(a, b)
        tensors = load_file(a / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for tensor in tensors.values():
            if tensor.dtype.is_floating_point:
                noise = 0.01 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(tensor + noise.to(tensor.dtype))
        save_file(tensors, b / "model.safetensors", {"format": "pt"})
        return a, b

    return pair


class quiet(warnings.catch_warnings):
    """Other people's warnings are not what is tested."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        return found


def shape_of(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(folder)
    return infer(checkpoint.specs, checkpoint.config)


def config_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return data


def average(*models: Path, **keys: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": listed, **keys}


def slices(*cuts: tuple[Path, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(m), "layer_range": [i, j]}]} for m, i, j in cuts]


def stack(*cuts: tuple[Path, int, int], module: str | None = None, **keys: Any) -> dict[str, Any]:
    listed = {"slices": slices(*cuts)}
    form = listed if module is None else {"modules": {module: listed}}
    return {"merge_method": "passthrough", **form, **keys}


def check_loads(family: Family, folder: Path) -> Any:
    """Nothing is missing or unexpected, and a forward pass gives finite numbers."""
    with quiet(), torch.no_grad():
        model, info = family.model_class.from_pretrained(folder, output_loading_info=True)
        assert {kind: keys for kind, keys in info.items() if keys} == {}
        ids = torch.tensor([[10, 11, 12, 13]])
        inputs = {
            "input_ids": ids,
            "decoder_input_ids": ids,
            "input_features": torch.ones(1, 8, 32, dtype=model.dtype),
            "pixel_values": torch.ones(1, 3, 8, 8, dtype=model.dtype),
        }
        output = model.eval()(**{name: inputs[name] for name in family.inputs})
    assert torch.isfinite(output[0]).all()
    return model


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_merges_stacks_and_loads(zoo: Any, tmp_path: Path, name: str) -> None:
    family, (a, b) = FAMILIES[name], zoo(name)
    x, y = load(a), load(b)
    merged = merganser.merge(average(a, b), tmp_path / "merged")
    lacking = (f"{a} has no tokenizer, so the output has none",)
    assert merged.warnings == (lacking if name != "vit" else ())  # which knows no words
    wanted = {
        n: ((x[n].double() + y[n].double()) / 2).to(x[n].dtype)
        if x[n].dtype.is_floating_point
        else x[n]
        for n in x
    }
    assert different_bits(load(tmp_path / "merged"), wanted) == {}
    check_loads(family, tmp_path / "merged")
    assert config_of(tmp_path / "merged") == config_of(a)

    shape = shape_of(a)
    module = shape.main
    assert module.depth == LAYERS or name == "t5_gated"
    several = len(shape.modules) > 1
    recipe = stack((a, 0, 3), (b, 1, 4), module=module.name if several else None)
    stacked = merganser.merge(recipe, tmp_path / "stacked")
    origins = [(x, 0), (x, 1), (x, 2), (y, 1), (y, 2), (y, 3)]
    wanted = {}
    for key, place in shape.places.items():
        if place.layer_axis is not None:
            blocks = [t[key].chunk(LAYERS, place.layer_axis)[layer] for t, layer in origins]
            wanted[key] = torch.cat(blocks, place.layer_axis)
        elif place.module != module.name or place.layer is None:
            last = place.module == module.name and place.after_layers
            wanted[key] = (y if last else x)[key]
    for i, (tensors, layer) in enumerate(origins):
        prefix = f"{module.stack}{layer}."
        for key in x:
            if key.startswith(prefix) and shape.places[key].layer is not None:
                wanted[f"{module.stack}{i}.{key[len(prefix) :]}"] = tensors[key]
    assert different_bits(load(tmp_path / "stacked"), wanted) == {}
    if several:
        others = ", ".join(other for other in shape.modules if other != module.name)
        assert f"modules: does not name {others}: copied unchanged from {a}" in stacked.warnings[0]
    check_loads(family, tmp_path / "stacked")
    assert shape_of(tmp_path / "stacked").main.depth == 6


@pytest.mark.parametrize(
    ("names", "modules"),
    [
        (["vision_model.layers.0.w", "classifier.weight"], ["default"]),
        (["visual.blocks.0.w", "visual.merger.w"], ["default"]),
        (["model.layers.0.merger.w", "model.layers.0.connector.w"], ["default"]),
        (["encoder.layer.0.w", "cls.predictions.decoder.weight"], ["default"]),
        (["model.decoder.layers.0.w"], ["default"]),
        (["encoder.layers.0.w", "decoder.layers.0.w", "x"], ["encoder", "decoder", "shared"]),
        (["layers.0.w", "vpm.0.w", "resampler.w"], ["text_decoder", "vision_tower", "multi_modal_projector"]),
    ],
)  # fmt: skip
def test_the_parts_of_a_model_are_told_by_words(names: list[str], modules: list[str]) -> None:
    spec = TensorSpec(BY_NAME["float32"], (2, 2))
    assert list(infer(dict.fromkeys(names, spec), {}).modules) == modules


TEXT_CONFIG = {"num_hidden_layers": 3, "hidden_size": 4}
TOWER = {"num_hidden_layers": 2, "hidden_size": 6}


def towers(text: str, *others: str, width: int = 6, depth: int = 2) -> dict[str, TensorSpec]:
    """The tensors of a language model of three layers of width 4, and of some towers."""
    float32 = BY_NAME["float32"]
    blocks = {f"{text}.{i}.norm.weight": TensorSpec(float32, (4,)) for i in range(3)}
    for other in others:
        blocks |= {f"{other}.{i}.norm.weight": TensorSpec(float32, (width,)) for i in range(depth)}
    return blocks | {"model.embed_tokens.weight": TensorSpec(float32, (8, 4))}


@pytest.mark.parametrize(
    ("specs", "config", "stacks"),
    [
        (towers("language_model.model.layers", "image_tower.encoder.layers", "video_tower.encoder.layers"),
         {"text_config": TEXT_CONFIG, "vision_config": TOWER},
         {"text_decoder": ("language_model.model.layers.", ("text_config",)),
          "image_tower": ("image_tower.encoder.layers.", ("vision_config",)),
          "video_tower": ("video_tower.encoder.layers.", ("vision_config",))}),
        (towers("model.layers", "model.embed_tokens_extend.image_embed.layers"),
         TEXT_CONFIG | {"vision_config": TOWER},
         {"text_decoder": ("model.layers.", ()),
          "embed_tokens_extend": ("model.embed_tokens_extend.image_embed.layers.", ("vision_config",))}),
        (towers("model.layers", "model.protein_encoder.encoder.layer", depth=5),
         TEXT_CONFIG | {"protein_encoder_config": TOWER | {"num_hidden_layers": 5}},
         {"text_decoder": ("model.layers.", ()),
          "protein_encoder": ("model.protein_encoder.encoder.layer.", ("protein_encoder_config",))}),
        (towers("model.layers", "qwen2_model.layers", depth=3),
         {"text_config": TEXT_CONFIG, "other_config": TOWER},
         {"text_decoder": ("model.layers.", ("text_config",)), "qwen2_model": ("qwen2_model.layers.", None)}),
        (towers("language_model.decoder.layers", "qformer.layer", width=4, depth=3),
         {"text_config": TEXT_CONFIG, "qformer_config": TEXT_CONFIG},
         {"text_decoder": ("language_model.decoder.layers.", ("text_config",)),
          "qformer": ("qformer.layer.", ("qformer_config",))}),
        (towers("text_model.model.layers", "vqmodel.decoder.up", "vqmodel.encoder.down"),
         {"text_config": TEXT_CONFIG, "vq_config": {"base_channels": 6}},
         {"text_decoder": ("text_model.model.layers.", ("text_config",)), "vqmodel": (None, None)}),
        (towers("decoder.layer", "encoder.layer", depth=3),
         {"text_config": {"num_layers": 3, "hidden_size": 4}, "vision_config": TOWER | {"num_hidden_layers": 3}},
         {"decoder": ("decoder.layer.", ("text_config",)), "encoder": ("encoder.layer.", ("vision_config",)),
          "shared": (None, None)}),
    ],
)  # fmt: skip
def test_the_language_model_is_the_part_that_the_config_describes(
    specs: dict[str, TensorSpec], config: dict[str, Any], stacks: dict[str, Any]
) -> None:
    shape = infer(specs, config)
    assert set(shape.modules) == set(stacks)
    for name, (stack_name, section) in stacks.items():
        module = shape.modules[name]
        assert module.section == section
        assert stack_name is None or list(module.stacks) == [stack_name]
    assert shape.main.name in ("text_decoder", "decoder")


def test_a_module_may_be_named_by_its_path(tmp_path: Path) -> None:
    config = TEXT_CONFIG | {"vision_config": TOWER, "audio_config": {"num_blocks": 3}}
    specs = towers("model.layers", "model.extend.image_embed.layers")
    specs |= towers("model.layers", "model.extend.audio_embed.layers", depth=3)
    folder = tmp_path / "a"
    folder.mkdir()
    save_file(
        {n: torch.rand(spec.shape) for n, spec in specs.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError) as error:
        merganser.plan(stack((folder, 0, 1), module="extend"))
    assert_one_line(str(error.value), "modules.extend", "several runs", "audio_embed")
    recipe = stack((folder, 0, 2), (folder, 1, 3), module="audio_embed")
    merganser.merge(recipe, tmp_path / "out")
    made = load(tmp_path / "out")
    name = "model.extend.audio_embed.layers.{}.norm.weight"
    assert torch.equal(made[name.format(3)], load(folder)[name.format(2)])
    assert made.keys() - load(folder).keys() == {name.format(3)}
    assert config_of(tmp_path / "out")["audio_config"] == {"num_blocks": 4}
    assert config_of(tmp_path / "out")["vision_config"] == TOWER


def test_one_side_of_a_text_model_may_be_named_by_its_path(tmp_path: Path) -> None:
    """Florence-2's text model has an encoder and a decoder, described in one section."""
    folder = tmp_path / "a"
    folder.mkdir()
    specs = towers(
        "language_model.encoder.layers", "language_model.decoder.layers", width=4, depth=3
    )
    specs |= towers("language_model.encoder.layers", "vision_tower.blocks")
    save_file(
        {n: torch.rand(spec.shape) for n, spec in specs.items()}, folder / "model.safetensors"
    )
    text = {"encoder_layers": 3, "decoder_layers": 3, "d_model": 4}
    config = {"text_config": text, "vision_config": {"depths": [1, 1]}}
    (folder / "config.json").write_text(json.dumps(config))
    merganser.merge(stack((folder, 0, 2), (folder, 1, 3), module="decoder"), tmp_path / "out")
    assert config_of(tmp_path / "out")["text_config"] == text | {"decoder_layers": 4}
    assert infer(
        open_checkpoint(tmp_path / "out").specs, config_of(tmp_path / "out"), ["decoder"]
    ).modules["decoder"].stacks == {"language_model.decoder.layers.": 4}


def test_towers_of_one_count_are_not_stacked_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    specs = towers("language_model.layers", "image_tower.layers", "video_tower.layers")
    save_file(
        {n: torch.ones(spec.shape) for n, spec in specs.items()}, folder / "model.safetensors"
    )
    config = {"text_config": TEXT_CONFIG, "vision_config": TOWER}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        merganser.plan(stack((folder, 0, 1), module="image_tower"))
    assert_one_line(
        str(error.value), str(folder), "num_hidden_layers", "image_tower", "video_tower"
    )
    assert merganser.plan(stack((folder, 0, 1), module="text_decoder"))


# -- modules ---------------------------------------------------------------------------------------


def test_every_module_is_merged_by_its_name(zoo: Any, tmp_path: Path) -> None:
    """One from a, one from b, one halfway; the vision tower under another of its names."""
    a, b = zoo("llava")
    x, y = load(a), load(b)
    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "modules": {
            "text_decoder": {"models": [{"model": str(b)}]},
            "vision_model": {"slices": slices((a, 0, 1), (b, 1, 2))},
            "multi_modal_projector": average(a, b) | {"parameters": {}},
        },
    }
    del recipe["modules"]["multi_modal_projector"]["merge_method"]  # type: ignore[index]
    result = merganser.merge(recipe, tmp_path / "out")
    assert list(result.plan.layers) == ["vision_tower"]
    wanted = {}
    for name in x:
        if name.startswith("language_model."):
            wanted[name] = y[name]
        elif name.startswith("multi_modal_projector."):
            wanted[name] = ((x[name].double() + y[name].double()) / 2).bfloat16()
        else:
            last = ".layers.1." in name or "post_layernorm" in name
            wanted[name] = (y if last else x)[name]
    assert different_bits(load(tmp_path / "out"), wanted) == {}
    assert config_of(tmp_path / "out") == config_of(a)
    check_loads(FAMILIES["llava"], tmp_path / "out")


def test_what_comes_after_a_vision_tower_takes_the_last_value(zoo: Any, tmp_path: Path) -> None:
    a, b = zoo("qwen2_5_vl")
    recipe = average(a, b, parameters={"weight": [0.2, 0.8]})
    for model in recipe["models"]:
        del model["parameters"]
    weights = {job.name: job.numbers["weight"][0] for job in merganser.plan(recipe).jobs}
    mergers = {name: weight for name, weight in weights.items() if ".merger." in name}
    assert len(mergers) == 5
    assert mergers.pop("visual.merger.ln_q.weight") == 0.2
    assert set(mergers.values()) == {0.8}
    assert weights["visual.patch_embed.proj.weight"] == 0.2


def test_what_modules_do_not_name_is_taken_in_the_recipes_dtype(zoo: Any, tmp_path: Path) -> None:
    """MergeKit loses it, and writes "torch.float16" into the config."""
    a, b = zoo("gemma3")
    recipe = average(a, b, dtype="torch.float16")
    recipe["modules"] = {"text_decoder": {"models": recipe.pop("models")}}
    result = merganser.merge(recipe, tmp_path / "out")
    x, made = load(a), load(tmp_path / "out")
    assert made.keys() == x.keys()
    assert result.warnings[0].startswith(
        "modules: does not name multi_modal_projector, vision_tower"
    )
    taken = {n: t for n, t in made.items() if not n.startswith("language_model.")}
    assert different_bits(taken, {n: x[n].half() for n in taken}) == {}
    assert config_of(tmp_path / "out")["dtype"] == "float16"
    assert check_loads(FAMILIES["gemma3"], tmp_path / "out").dtype == torch.float16


def test_the_nearest_setting_wins_in_modules(zoo: Any) -> None:
    """Source, slice, module, recipe."""
    a, b = (str(model) for model in zoo("t5"))
    part = {"model": a, "layer_range": [0, 2]}
    recipe = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "modules": {
            "shared": {"models": [{"model": a}]},
            "encoder": {"models": [{"model": a}], "parameters": {"weight": 2}},
            "decoder": {
                "parameters": {"weight": 2},
                "slices": [
                    {"sources": [part, {**part, "model": b}]},
                    {
                        "sources": [part, {**part, "model": b, "parameters": {"weight": [4, 6]}}],
                        "parameters": {"weight": 3},
                    },
                ],
            },
        },
    }
    weights = {job.name: job.numbers["weight"] for job in merganser.plan(recipe).jobs}
    query = "{}.block.{}.layer.0.SelfAttention.q.weight"
    assert weights["shared.weight"] == (1,)
    assert weights[query.format("encoder", 1)] == (2,)
    found = [weights[query.format("decoder", i)] for i in range(4)]
    assert found == [(2, 2), (2, 2), (3, 4), (3, 6)]
    assert weights["decoder.final_layer_norm.weight"] == (3, 4)
    assert weights["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (2, 2)


@pytest.mark.parametrize(
    ("name", "recipe", "parts"),
    [
        ("t5", {"modules": {"encodr": {"models": [{"model": "A"}]}}},
         ["modules.encodr", "no such module", "decoder, encoder, shared"]),
        ("llava", {"slices": [{"sources": [{"model": "A", "layer_range": [0, 1]}]}]},
         ["slices", "text_decoder (4 layers)", "vision_tower (2 layers)", "modules:"]),
        ("mllama", {"modules": {"vision_model": {"slices": slices((Path("A"), 0, 1))}}},
         ["modules.vision_model.slices", "several runs of layers", "global_transformer"]),
        ("llama", {"modules": {"vision_tower": {"models": [{"model": "A"}]}}},
         ["modules.vision_tower", "no such module", "it has default"]),
        ("t5", {"modules": {"encoder": {"slices": slices((Path("A"), 3, 5))}}},
         ["modules.encoder.slices[0].sources[0].layer_range", "[3, 5]", "4 layers"]),
    ],
)  # fmt: skip
def test_what_modules_cannot_be(
    zoo: Any, name: str, recipe: dict[str, Any], parts: list[str]
) -> None:
    text = json.dumps({"merge_method": "passthrough", **recipe}).replace('"A"', f'"{zoo(name)[0]}"')
    with pytest.raises(RecipeError) as error:
        merganser.plan(json.loads(text))
    assert_one_line(str(error.value), *parts)


def test_the_fact_sheet_names_the_modules(zoo: Any) -> None:
    sheet = inspect(str(zoo("qwen2_5_vl")[0]))
    assert sheet["layers"] == LAYERS
    assert sheet["modules"] == {
        "text_decoder": "51 tensors, 4 layers (model.layers.*)",
        "vision_tower": "25 tensors, 2 layers (visual.blocks.*)",
        "multi_modal_projector": "5 tensors",
    }
    assert inspect(str(zoo("llama")[0]))["modules"] == {}


def test_the_plan_of_modules_is_shown(zoo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = zoo("llava")
    plan = merganser.plan(stack((a, 0, 3), (b, 1, 4), module="language_model"))
    show_plan(plan)
    shown = capsys.readouterr().out
    assert "output layers of text_decoder" in shown
    assert "4 + 2" in shown
    described = json.loads(json.dumps(describe(plan)))
    assert [[origin["layer"] for origin in o] for o in described["layers"]["text_decoder"]] == [
        [0], [1], [2], [1], [2], [3],
    ]  # fmt: skip


# -- slices ----------------------------------------------------------------------------------------

NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


def reads(recipe: dict[str, Any], *names: str) -> list[list[tuple[int, str]]]:
    found = {job.name: job for job in merganser.plan(recipe).jobs}
    return [[(read.source, read.name) for read in found[name].reads] for name in names]


def test_slices_without_layers_choose_the_donors(tmp_path: Path) -> None:
    a, b, c = (make_model(tmp_path / name, seed=i) for i, name in enumerate("abc"))
    recipe = stack((b, 0, 0), (a, 0, 2), (b, 1, 1), (c, 2, 2))
    assert reads(recipe, EMBEDDING, NORM, HEAD) == [[(0, EMBEDDING)], [(2, NORM)], [(2, HEAD)]]
    assert len(merganser.plan(recipe).layers["default"]) == 2


def test_all_models_of_the_last_slice_make_the_norm(tmp_path: Path) -> None:
    """MergeKit leaves out those that the first slice has not."""
    a, b = (make_model(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    recipe = stack((a, 0, 1), (a, 1, 2)) | {"merge_method": "linear", "parameters": {"weight": 1}}
    recipe["slices"][1]["sources"] += slices((b, 1, 2))[0]["sources"]
    assert reads(recipe, NORM, EMBEDDING) == [[(0, NORM), (1, NORM)], [(0, EMBEDDING)]]


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_one_model_at_two_places_of_a_slice(tmp_path: Path, method: str) -> None:
    """Self-interpolation, as published recipes have it: the same as with a copy of the model. Where
    the method has a base, the first time it is that."""
    a = make_model(tmp_path / "a", layers=4)
    copy = Path(shutil.copytree(a, tmp_path / "copy"))
    parameters = {"t": 0.3} if method == "slerp" else {"weight": 0.3}
    made = []
    for other in (a, copy):
        sources = [*slices((a, 0, 2), (other, 1, 3))]
        recipe = {
            "merge_method": method,
            "base_model": str(a),
            "parameters": parameters,
            "slices": [{"sources": [s["sources"][0] for s in sources]}],
        }
        merganser.merge(recipe, tmp_path / f"out-{len(made)}")
        made.append(load(tmp_path / f"out-{len(made)}"))
    assert different_bits(*made) == {}
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(made[0][name], load(a)[name])


def test_a_slice_may_have_a_base_of_its_own(tmp_path: Path) -> None:
    a, b, c = (make_model(tmp_path / name, seed=i) for i, name in enumerate("abc"))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(b),
        "parameters": {"weight": 1},
        "slices": [
            {"sources": [s["sources"][0] for s in slices((a, 0, 1), (b, 0, 1))]},
            {
                "sources": [s["sources"][0] for s in slices((a, 1, 2), (c, 1, 2))],
                "base_model": str(c),
            },
        ],
    }
    up = "model.layers.{}.mlp.up_proj.weight"
    found = reads(recipe, up.format(0), up.format(1), NORM)
    assert [[source for source, _ in entry] for entry in found] == [[1, 0], [2, 0], [2, 0]]


def test_blocks_for_each_layer_are_merged_as_the_layers_are(zoo: Any, tmp_path: Path) -> None:
    """Stacks of two models a slice: as if both had been stacked first. Numbers must agree."""
    a, b = zoo("gemma3n")
    cuts = [(0, 2), (1, 4)]
    stacked = [tmp_path / "a", tmp_path / "b"]
    for model, folder in zip((a, b), stacked, strict=True):
        merganser.merge(stack(*((model, *cut) for cut in cuts)), folder)
    merganser.merge(average(*stacked), tmp_path / "wanted")
    pairs = [[slices((m, *cut))[0]["sources"][0] for m in (a, b)] for cut in cuts]
    recipe = average(a, b, slices=[{"sources": pair} for pair in pairs])
    del recipe["models"]
    recipe["parameters"] = {"weight": 0.5}
    merganser.merge(recipe, tmp_path / "out")
    assert different_bits(load(tmp_path / "out"), load(tmp_path / "wanted")) == {}
    recipe["parameters"] = {"weight": [0.1, 0.9]}
    with pytest.raises(RecipeError) as error:
        merganser.plan(recipe)
    assert_one_line(str(error.value), "slices", str(a), "per_layer", "block for each layer")
    recipe["parameters"] = {
        "weight": [{"filter": "per_layer_m", "value": 0.5}, {"value": [0.1, 0.9]}]
    }
    recipe["parameters"]["weight"].insert(0, {"filter": "per_layer.w", "value": 0.5})
    assert merganser.plan(recipe)
    recipe["slices"][1]["sources"] = pairs[1][:1]
    with pytest.raises(RecipeError) as error:
        merganser.plan(recipe)
    assert_one_line(str(error.value), "slices", "embed_tokens_per_layer", "as many models")


def test_layers_of_different_kinds(zoo: Any) -> None:
    a, b = zoo("jamba")
    recipe = average(a, b)
    del recipe["models"]
    recipe["parameters"] = {"weight": 0.5}
    recipe["slices"] = [
        {"sources": [piece["sources"][0] for piece in slices((a, 0, 1), (b, 1, 2))]}
    ]
    with pytest.raises(InputError) as error:
        merganser.plan(recipe)
    assert_one_line(str(error.value), str(a), "model.layers.0.", str(b), "model.layers.1.", "kinds")


def test_layers_that_share_weights_cannot_be_stacked(tmp_path: Path) -> None:
    """Zamba's, by their numbers."""
    a = make_model(tmp_path / "a", extra={"model.layers.1.shared_transformer.w": torch.ones(2, 2)})
    assert merganser.plan(average(a))
    with pytest.raises(RecipeError) as error:
        merganser.plan(stack((a, 0, 2), (a, 0, 2)))
    assert_one_line(str(error.value), "slices", "shared_transformer", "cannot be stacked")


# -- tensors that only some models have ------------------------------------------------------------

ONES = torch.ones(16, dtype=torch.bfloat16)
EXTRA = "model.layers.1.self_attn.o_proj.bias"


def test_a_tensor_of_some_models_is_merged_from_those(tmp_path: Path) -> None:
    a, c = make_model(tmp_path / "a"), make_model(tmp_path / "c")
    b = make_model(
        tmp_path / "b", extra={EXTRA: ONES, "model.layers.0.self_attn.o_proj.bias": 2 * ONES}
    )
    plan = merganser.plan(average(a, b, c))
    job = next(job for job in plan.jobs if job.name == EXTRA)
    assert [read.source for read in job.reads] == [1]
    assert job.numbers["weight"] == (0.5,)
    assert plan.warnings == (
        f"{a}, {c} lack 2 tensors (model.layers.*.self_attn.o_proj.bias): merged from the models that "
        f"have them; config.json is that of {a}, and may not know them",
    )


@pytest.mark.parametrize(
    ("method", "owners", "sources"),
    [
        ("task_arithmetic", {"base"}, [0]),
        ("task_arithmetic", {"base", "b"}, [0, 2]),
        ("task_arithmetic", {"b"}, None),
        ("ties", {"base"}, [0]),
        ("slerp", {"base"}, [0]),
        ("linear", {"a", "b"}, [1, 2]),
        ("model_stock", {"base", "b"}, [0]),
    ],
)
def test_methods_and_tensors_that_are_missing(
    tmp_path: Path, method: str, owners: set[str], sources: list[int] | None
) -> None:
    """Only the base has it: the base's. The base lacks what a method compares with it: an error."""
    names = ["base", "a"] if method == "slerp" else ["base", "a", "b"]
    folders = [
        make_model(tmp_path / n, seed=i, extra={EXTRA: i + ONES} if n in owners else None)
        for i, n in enumerate(names)
    ]
    recipe = {
        "merge_method": method,
        "base_model": str(folders[0]),
        "models": [{"model": str(folder)} for folder in folders],
        "parameters": {"t": 0.5} if method == "slerp" else {"weight": 1.0, "density": 0.5},
    }
    if sources is None:
        with pytest.raises(InputError) as error:
            merganser.plan(recipe)
        assert_one_line(str(error.value), str(folders[0]), EXTRA, str(folders[2]), "differences")
        return
    job = next(job for job in merganser.plan(recipe).jobs if job.name == EXTRA)
    assert [read.source for read in job.reads] == sources
    assert (job.method == "copy") == (sources == [0])
    result = merganser.merge(recipe, tmp_path / "out")
    assert EXTRA in " ".join(result.warnings)
    assert EXTRA in load(tmp_path / "out")


def test_a_matrix_of_a_layer_may_not_be_missing(tmp_path: Path) -> None:
    extra = {"model.layers.1.mlp.experts.0.w.weight": torch.ones(2, 2)}
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", extra=extra)
    with pytest.raises(InputError) as error:
        merganser.plan(average(a, b))
    assert_one_line(str(error.value), str(a), "experts.0", "has no tensor", str(b), "architectures")


def without(folder: Path, target: Path, *words: str) -> Path:
    """A copy of a model that lacks tensors."""
    shutil.copytree(folder, target)
    kept = {n: t for n, t in load(folder).items() if not any(word in n for word in words)}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def renamed(folder: Path, target: Path, *changes: tuple[str, str]) -> Path:
    """A copy of a model whose tensors are called otherwise."""
    shutil.copytree(folder, target)
    tensors = {}
    for name, tensor in load(folder).items():
        for old, new in changes:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("name", "words"),
    [("bert", ["pooler"]), ("cohere_qk_norm", ["q_norm", "k_norm"]), ("llama", ["_proj.bias"])],
)
@pytest.mark.parametrize("first", [True, False])
def test_models_with_and_without(
    zoo: Any, tmp_path: Path, name: str, words: list[str], first: bool
) -> None:
    a, b = zoo(name)
    short = without(b, tmp_path / "short", *words)
    models = (a, short) if first else (short, a)
    result = merganser.merge(average(*models), tmp_path / "out")
    made, x = load(tmp_path / "out"), load(a)
    assert made.keys() == x.keys()
    alone = {n: t for n, t in made.items() if any(word in n for word in words)}
    assert different_bits(alone, {n: x[n] for n in alone}) == {}
    assert any(str(short) in w and "lack" in w for w in result.warnings)
    check_loads(FAMILIES[name], tmp_path / "out")


def test_masks_that_old_checkpoints_hold(zoo: Any, tmp_path: Path) -> None:
    """GPT-NeoX before transformers 5: masks and frequencies beside the weights. They are copied."""
    a, b = zoo("gpt_neox")
    old = Path(shutil.copytree(b, tmp_path / "old"))
    buffers: Tensors = {}
    for i in range(LAYERS):
        prefix = f"gpt_neox.layers.{i}.attention."
        buffers[prefix + "bias"] = torch.tril(torch.ones(1, 1, 8, 8, dtype=torch.bool))
        buffers[prefix + "masked_bias"] = torch.tensor(-1e9)
        buffers[prefix + "rotary_emb.inv_freq"] = torch.rand(4)
    save_file(load(old) | buffers, old / "model.safetensors", {"format": "pt"})
    for i, models in enumerate([(a, old), (old, old.parent / "old")]):
        weights = average(*models[: 2 - i], parameters={"normalize": False})
        merganser.merge(weights, tmp_path / f"out{i}")
        made = load(tmp_path / f"out{i}")
        assert different_bits({n: made[n] for n in buffers}, buffers) == {}
        merganser.merge(stack((old, 0, 3), (old, 1, 4)), tmp_path / f"stack{i}")
        assert sum("masked_bias" in name for name in load(tmp_path / f"stack{i}")) == 6


def test_a_language_model_goes_into_the_text_decoder(zoo: Any, tmp_path: Path) -> None:
    """Its names lack the wrappers that those of the vision–language model have."""
    a, b = zoo("mistral3")
    text = tmp_path / "text"
    tensors = {
        n.removeprefix("language_model."): t
        for n, t in load(b).items()
        if n.startswith("language_model.")
    }
    text.mkdir()
    save_file(tensors, text / "model.safetensors", {"format": "pt"})
    config = config_of(b)["text_config"] | {"architectures": ["MistralForCausalLM"]}
    (text / "config.json").write_text(json.dumps(config))
    whole = merganser.merge(average(a, text), tmp_path / "whole")
    assert "text lacks 24 tensors (multi_modal_projector.linear_1" in whole.warnings[0]
    recipe = {
        "merge_method": "linear",
        "base_model": str(a),
        "parameters": {"weight": 0.5},
        "modules": {"text_decoder": {"models": [{"model": str(text)}]}},
    }
    merganser.merge(recipe, tmp_path / "out")
    made = load(tmp_path / "out")
    assert different_bits(made, load(tmp_path / "whole")) == {}
    name = "language_model.model.layers.2.mlp.up_proj.weight"
    assert torch.equal(
        made[name], ((load(a)[name].double() + load(b)[name].double()) / 2).bfloat16()
    )
    check_loads(FAMILIES["mistral3"], tmp_path / "out")


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", [("transformer.", "")]),
        ("bert_masked", [("bert.", "")]),
        ("llama", [("model.", ""), ("lm_head", "lm_head")]),
        ("gemma3", [("language_model.model.", "model.language_model."),
                    ("vision_tower.", "model.vision_tower.vision_model."),
                    ("multi_modal_projector.", "model.multi_modal_projector.")]),
        ("llava", [("language_model.lm_head", "lm_head"),
                   ("language_model.model.", "model.language_model."),
                   ("vision_tower.", "model.vision_tower."),
                   ("multi_modal_projector.", "model.multi_modal_projector.")]),
        ("qwen2_5_vl", [("visual.", "model.visual."), ("model.", "model.language_model.")]),
    ],
)  # fmt: skip
def test_the_same_tensors_by_other_names(
    zoo: Any, tmp_path: Path, name: str, changes: list[tuple[str, str]]
) -> None:
    """As older releases and trainers write them; the output's names are the donor's."""
    a, b = zoo(name)
    other = renamed(b, tmp_path / "other", *changes)
    assert load(other).keys() != load(b).keys()
    for i, second in enumerate((b, other)):
        merganser.merge(average(a, second), tmp_path / f"out{i}")
    made = load(tmp_path / "out1")
    assert made.keys() == load(a).keys()
    assert different_bits(made, load(tmp_path / "out0")) == {}
    merganser.merge(average(other, a), tmp_path / "turned")
    assert load(tmp_path / "turned").keys() == load(other).keys()
    module = shape_of(a).main.name if len(shape_of(a).modules) > 1 else None
    for i, second in enumerate((b, other)):
        merganser.merge(stack((a, 0, 2), (second, 2, 4), module=module), tmp_path / f"stack{i}")
    assert different_bits(load(tmp_path / "stack0"), load(tmp_path / "stack1")) == {}


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "donor", "tied", "head"),
    [
        (True, True, None, True, None),
        (True, False, None, False, (1, HEAD)),
        (False, True, None, False, (1, EMBEDDING)),
        (True, True, False, True, None),
        (False, False, True, False, (1, HEAD)),
    ],
)
def test_the_head_of_a_stack(
    tmp_path: Path,
    first: bool,
    last: bool,
    donor: bool | None,
    tied: bool,
    head: tuple[int, str] | None,
) -> None:
    """The last slice's, and the config says whether it is the embedding."""
    a = make_model(tmp_path / "a", seed=1, tied=first)
    b = make_model(tmp_path / "b", seed=2, tied=last)
    recipe = stack((a, 0, 2), (b, 0, 2))
    if donor is not None:
        recipe["base_model"] = str(make_model(tmp_path / "donor", seed=3, tied=donor))
    plan = merganser.plan(recipe)
    found = [(r.source, r.name) for job in plan.jobs if job.name == HEAD for r in job.reads]
    assert found == ([head] if head else [])
    merganser.merge(recipe, tmp_path / "out")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is tied
    with quiet():
        _, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert {kind: keys for kind, keys in info.items() if keys} == {}


def test_an_untied_head_where_tying_goes_without_saying(zoo: Any, tmp_path: Path) -> None:
    """Gemma's configs need not say that the head is the embedding."""
    a, b = zoo("gemma")
    donor = Path(shutil.copytree(a, tmp_path / "donor"))
    change_config(donor, tie_word_embeddings=None)
    headed = Path(shutil.copytree(b, tmp_path / "headed"))
    change_config(headed, tie_word_embeddings=False)
    head = {HEAD: torch.zeros(64, 16, dtype=torch.bfloat16)}
    save_file(load(b) | head, headed / "model.safetensors", {"format": "pt"})
    merganser.merge(average(donor, headed), tmp_path / "out")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    model = check_loads(FAMILIES["gemma"], tmp_path / "out")
    assert torch.equal(model.lm_head.weight, (load(a)[EMBEDDING].double() / 2).bfloat16())


# -- what the config says of the layers ------------------------------------------------------------


def bare(
    folder: Path,
    config: dict[str, Any],
    layers: int,
    prefix: str = "model.layers.",
    extra: Tensors | None = None,
) -> Path:
    """A checkpoint of hardly any weights."""
    folder.mkdir()
    tensors = {f"{prefix}{i}.w": torch.ones(2, 2) for i in range(layers)} | (extra or {})
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", **config}))
    return folder


FULL = "full_attention"
FIVE = {"num_hidden_layers": 5}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        ({"n_layer": 5}, {"n_layer": 6}),
        ({"n_layers": 5, "num_hidden_layers": 5}, {"n_layers": 6, "num_hidden_layers": 6}),
        ({"text_config": FIVE, "vision_config": {"depth": 2}}, {"text_config": {"num_hidden_layers": 6}}),
        (FIVE | {"layer_types": list("abcde")}, {"num_hidden_layers": 6, "layer_types": list("abcbcd")}),
        ({"layers_block_type": list("abcde")}, {"layers_block_type": list("abcbcd")}),
        (FIVE | {"num_kv_heads": [1, 2, 3, 4, 5]}, {"num_hidden_layers": 6, "num_kv_heads": [1, 2, 3, 2, 3, 4]}),
        (FIVE | {"ssm_multipliers": [1, 2, 3, 4, 5]}, {"num_hidden_layers": 6}),
        (FIVE | {"hybrid_override_pattern": "M-*EM"}, {"num_hidden_layers": 6, "hybrid_override_pattern": "M-*-*E"}),
        (FIVE | {"model_type": "abcde"}, {"num_hidden_layers": 6}),
        (FIVE | {"mlp_only_layers": [1, 4]}, {"num_hidden_layers": 6, "mlp_only_layers": [1, 3]}),
        (FIVE | {"full_attn_idxs": [0, 1, 2, 3, 4]}, {"num_hidden_layers": 6, "full_attn_idxs": [0, 1, 2, 3, 4, 5]}),
        (FIVE | {"mlp_only_layers": [0], "decoder_sparse_step": 2},
         {"num_hidden_layers": 6, "mlp_only_layers": [0, 2, 4], "decoder_sparse_step": 1}),
        (FIVE | {"pruned_heads": {"2": [0], "4": [1]}}, {"num_hidden_layers": 6, "pruned_heads": {"2": [0], "4": [0]}}),
        (FIVE | {"id2label": {"1": "x", "2": "y"}}, {"num_hidden_layers": 6}),
        (FIVE | {"first_k_dense_replace": 1}, {"num_hidden_layers": 6}),
        (FIVE | {"num_nextn_predict_layers": 1}, {"num_hidden_layers": 6, "num_nextn_predict_layers": 0}),
        (FIVE | {"max_window_layers": 5}, {"num_hidden_layers": 6, "max_window_layers": 6}),
        (FIVE | {"max_window_layers": 28}, {"num_hidden_layers": 6, "max_window_layers": 6}),
        (FIVE | {"max_window_layers": 3, "use_sliding_window": True},
         {"num_hidden_layers": 6, "max_window_layers": 5}),
        (FIVE | {"max_window_layers": 2, "use_sliding_window": True},
         {"num_hidden_layers": 6, "max_window_layers": 2,
          "layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING]}),
        (FIVE | {"model_type": "gemma2"},
         {"num_hidden_layers": 6}),
        (FIVE | {"sliding_window_pattern": 3},
         {"num_hidden_layers": 6, "layer_types": [SLIDING, SLIDING, FULL, SLIDING, FULL, SLIDING]}),
        (FIVE | {"global_attn_every_n_layers": 3},
         {"num_hidden_layers": 6, "layer_types": [FULL, SLIDING, SLIDING, SLIDING, SLIDING, FULL]}),
        (FIVE | {"no_rope_layer_interval": 3}, {"num_hidden_layers": 6, "no_rope_layers": [1, 1, 0, 1, 0, 1]}),
        (FIVE | {"interleave_moe_layer_step": 3}, {"num_hidden_layers": 6, "moe_layers": [2, 4]}),
        (FIVE | {"attn_layer_period": 3, "attn_layer_offset": 0},
         {"num_hidden_layers": 6, "attn_layer_period": 5}),
        (FIVE | {"num_blocks": 5}, {"num_hidden_layers": 6, "num_blocks": 6}),
        (FIVE | {"per_layer_config": {"03": {"d": 8}, "1": {"d": 4}}},
         {"num_hidden_layers": 6, "per_layer_config": {"1": {"d": 4}, "3": {"d": 4}, "5": {"d": 8}}}),
        (FIVE | {"layer_scales": {"2": 0.5}}, {"num_hidden_layers": 6, "layer_scales": {"2": 0.5, "4": 0.5}}),
        (FIVE | {"kv_source_layers": [0, 0, 2, 2, 4]},
         {"num_hidden_layers": 6, "kv_source_layers": [0, 0, 2, 0, 4, 4]}),
        (FIVE | {"ple_layer_ids": [2]}, {"num_hidden_layers": 6, "ple_layer_ids": [2, 4]}),
        (FIVE | {"rope_scaling_layers": [1, 3]}, {"num_hidden_layers": 6, "rope_scaling_layers": [1, 3, 5]}),
        (FIVE | {"mtp_per_layer_config": {"0": 1}, "mtp_layer_types": list("abcde"), "mtp_layers": [1]},
         {"num_hidden_layers": 6}),
        (FIVE | {"conv_layers": [8, 16]}, {"num_hidden_layers": 6}),
        (FIVE | {"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 1},
         {"num_hidden_layers": 6, "moe_layer_end_index": 5}),
        (FIVE | {"first_k_dense_replace": 2, "mlp_layer_types": list("ddsss")},
         {"num_hidden_layers": 6, "mlp_layer_types": list("ddsdss")}),
        (FIVE | {"attn_layer_period": 3, "layers_block_type": list("maama")},
         {"num_hidden_layers": 6, "layers_block_type": list("maaaam")}),
        (FIVE | {"encoder_sparse_step": 2, "model_type": "nllb-moe"},
         {"num_hidden_layers": 6}),
        (FIVE | {"block_types": ["r", "r", "a"]}, {"num_hidden_layers": 6, "block_types": list("rrarar")}),
        (FIVE | {"model_type": "neomme", "layer_types": [FULL, "s", "s", FULL, "s"]},
         {"num_hidden_layers": 6, "layer_types": [FULL, "s", "s", "s", "s", FULL]}),
        (FIVE | {"attention_layers": list("glglg"), "attention_types": [[["g", "l"], 2]]},
         {"num_hidden_layers": 6, "attention_layers": list("glglgl"), "attention_types": [[list("glglgl"), 1]]}),
    ],
)  # fmt: skip
def test_configs_follow_the_layers(
    tmp_path: Path, before: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Three layers, then the second to the fourth of a model of five."""
    a = bare(tmp_path / "a", before, 5)
    result = merganser.merge(stack((a, 0, 3), (a, 1, 4)), tmp_path / "out")
    wanted = {"torch_dtype": "float32", **before, **changed}
    assert config_of(tmp_path / "out") == {k: v for k, v in wanted.items() if v is not None}
    assert not any("config.json" in warning for warning in result.warnings)


def test_lists_come_from_the_models_that_the_layers_come_from(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", FIVE | {"layer_types": list("abcde"), "moe_layers": [0]}, 5)
    b = bare(tmp_path / "b", FIVE | {"layer_types": list("vwxyz"), "moe_layers": [4]}, 5)
    recipe = stack((a, 0, 2), (b, 3, 5), base_model=str(b))
    merganser.merge(recipe, tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["layer_types"], config["moe_layers"]) == (list("abyz"), [0, 3])


@pytest.mark.parametrize(
    "before",
    [
        {"first_k_dense_replace": 2},
        {"expert_layer_period": 3, "expert_layer_offset": 2},
        {"loop_layer_index_start": 1},
        {"cross_layer_interval": 2},
        {"moe_layer_start_index": 2, "moe_layer_end_index": 2},
        {"decoder_sparse_step": 3, "model_type": "nllb-moe"},
        {"depths": [2, 2, 6, 2, 2]},
        {"layer_types": ["s", FULL, "s", FULL, "s"], "model_type": "neomme"},
    ],
)
def test_what_a_config_cannot_describe_is_refused(tmp_path: Path, before: dict[str, Any]) -> None:
    a = bare(tmp_path / "a", FIVE | before, 5)
    with pytest.raises(InputError) as error:
        merganser.plan(stack((a, 0, 3), (a, 1, 4)))
    assert_one_line(str(error.value), str(a), next(iter(before)), "cannot describe", "order")
    assert merganser.plan(stack((a, 0, 2), (a, 2, 5)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "diffllama"}, "a layer of diffllama computes with its index"),
        ({"model_type": "esmc"}, "a layer of esmc computes with the number of layers"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx in its config",
        ),
    ],
)
def test_layers_that_compute_with_their_number_stay(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    a = bare(tmp_path / "a", FIVE | config, 5)
    assert merganser.plan(stack((a, 0, 2), (a, 2, 5)))
    with pytest.raises(InputError) as error:
        merganser.plan(stack((a, 0, 2), (a, 3, 5)))
    assert_one_line(str(error.value), str(a), words)


def test_a_factor_by_the_root_of_the_depth_keeps_its_effect(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", FIVE | {"scale_depth": 1.4}, 5)
    merganser.merge(stack((a, 0, 3), (a, 1, 4)), tmp_path / "out")
    made = config_of(tmp_path / "out")["scale_depth"]
    assert made / 6**0.5 == pytest.approx(1.4 / 5**0.5, rel=1e-15)
    b = bare(tmp_path / "b", FIVE | {"scale_depth": 1.5}, 5)
    with pytest.raises(InputError, match="scale_depth"):
        merganser.plan(stack((a, 0, 3), (b, 1, 4)))


def test_a_layer_comes_after_the_layer_that_it_takes_keys_from(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", FIVE | {"kv_source_layers": [0, 1, 0, 1, 4]}, 5)
    with pytest.raises(InputError) as error:
        merganser.plan(stack((a, 0, 1), (a, 2, 5)))
    assert_one_line(str(error.value), str(a), "kv_source_layers", "layer 3", "layer 1")


@pytest.mark.parametrize(
    ("cuts", "shared"),
    [
        ([(0, 3), (1, 5)], 2),
        ([(0, 5)], 2),
        ([(0, 3)], 0),
        ([(0, 4)], 1),
        ([(0, 4), (1, 5)], None),
        ([(0, 2), (3, 5)], None),
        ([(1, 2), (0, 1), (2, 5)], 2),
    ],
)
def test_layers_that_share_keys_and_values(
    tmp_path: Path, cuts: list[tuple[int, int]], shared: int | None
) -> None:
    """The last two take those of the last full and the last sliding layer before (Gemma 3n)."""
    types = [FULL, SLIDING, FULL, SLIDING, FULL]
    a = bare(tmp_path / "a", FIVE | {"num_kv_shared_layers": 2, "layer_types": types}, 5)
    recipe = stack(*((a, first, stop) for first, stop in cuts))
    if shared is None:
        with pytest.raises(InputError) as error:
            merganser.plan(recipe)
        assert_one_line(str(error.value), str(a), "num_kv_shared_layers", "cannot describe")
        return
    merganser.merge(recipe, tmp_path / "out")
    assert config_of(tmp_path / "out")["num_kv_shared_layers"] == shared


@pytest.mark.parametrize("config", [{}, {"layer_types": list("aabaa")}])
def test_layers_that_differ_by_their_place_alone(tmp_path: Path, config: dict[str, Any]) -> None:
    """The config does not say which layers have experts: they keep their places, or stay whole."""
    extra = {f"model.layers.{i}.experts.w": torch.ones(2, 2) for i in (1, 3)}
    a = bare(tmp_path / "a", FIVE | config, 5, extra=extra)
    assert merganser.plan(stack((a, 0, 2), (a, 2, 5)))
    for cuts in ([(a, 1, 3), (a, 0, 5)], [(a, 0, 2), (a, 1, 4)]):
        with pytest.raises(InputError) as error:
            merganser.plan(stack(*cuts))
        assert_one_line(str(error.value), str(a), "experts.w", "config.json does not say")
    b = bare(tmp_path / "b", FIVE | {"layer_types": list("xyxyx")}, 5, extra=extra)
    assert merganser.plan(stack((b, 0, 3), (b, 1, 5)))


def test_blocks_beside_the_layers_go_with_them(tmp_path: Path) -> None:
    """Blocks next to the layers (XLM), and lists with a tensor for each, or each but the first."""
    numbers = {f"model.norms.{i}.w": i for i in range(5)}
    numbers |= {f"model.queries.mlp.{i}": i for i in range(5)}
    numbers |= {f"model.queries.attention.{i - 1}": i for i in range(1, 5)}
    extra = {name: torch.full((2, 2), float(i)) for name, i in numbers.items()}
    a = bare(tmp_path / "a", FIVE, 5, extra=extra)
    merganser.merge(stack((a, 0, 3), (a, 1, 5)), tmp_path / "out")
    origins = [0, 1, 2, 1, 2, 3, 4]
    made = {n: int(t[0, 0]) for n, t in load(tmp_path / "out").items() if "layers" not in n}
    wanted = {f"model.norms.{i}.w": layer for i, layer in enumerate(origins)}
    wanted |= {f"model.queries.mlp.{i}": layer for i, layer in enumerate(origins)}
    wanted |= {f"model.queries.attention.{i}": layer for i, layer in enumerate(origins[1:])}
    assert made == wanted
    with pytest.raises(InputError) as error:
        merganser.plan(stack((a, 1, 3), (a, 0, 5)))
    assert_one_line(str(error.value), str(a), "queries.attention", "config.json does not say")


@pytest.mark.parametrize("place", [0, 4])
def test_a_first_or_last_layer_of_its_own_kind(tmp_path: Path, place: int) -> None:
    a = bare(tmp_path / "a", FIVE, 5, extra={f"model.layers.{place}.bias": torch.ones(2)})
    assert merganser.plan(stack((a, 0, 3), (a, 1, 5)))
    for cuts in ([(a, 0, 5), (a, 0, 5)], [(a, 1, 4)]):
        with pytest.raises(InputError) as error:
            merganser.plan(stack(*cuts))
        assert_one_line(str(error.value), f"layer {place} has a tensor 'bias'")


def test_an_order_that_does_not_change_keeps_layers_for_further_tokens(tmp_path: Path) -> None:
    extra = {f"model.layers.5.{name}": torch.ones(2, 2) for name in ("w", "embed_tokens.weight")}
    a = bare(tmp_path / "a", FIVE | {"num_nextn_predict_layers": 1}, 5, extra=extra)
    merganser.merge(stack((a, 0, 3), (a, 3, 5)), tmp_path / "out")
    assert load(tmp_path / "out").keys() == load(a).keys()
    assert config_of(tmp_path / "out") == config_of(a)


def test_a_config_without_a_layer_count(tmp_path: Path) -> None:
    a = bare(tmp_path / "a", {"hidden_size": 2}, 5)
    with pytest.raises(InputError) as error:
        merganser.plan(stack((a, 0, 3), (a, 1, 4)))
    assert_one_line(str(error.value), str(a), "config.json", "the number of layers")


def test_both_sides_of_an_encoder_decoder_config(zoo: Any, tmp_path: Path) -> None:
    """One side's layers: the other is as deep as it was, even where that went unsaid. The first
    layer holds what all share, whichever layer that becomes."""
    a = Path(shutil.copytree(zoo("t5")[0], tmp_path / "a"))
    change_config(a, num_decoder_layers=None)
    for module, counts in (("encoder", (6, 4)), ("decoder", (4, 6))):
        out = tmp_path / module
        merganser.merge(stack((a, 1, 4), (a, 0, 3), module=module), out)
        config = config_of(out)
        assert (config["num_layers"], config["num_decoder_layers"]) == counts
        check_loads(FAMILIES["t5"], out)


def test_layers_for_predicting_further_tokens(zoo: Any, tmp_path: Path) -> None:
    """DeepSeek keeps them behind the last layer; whole merges keep them, stacks cannot."""
    a, b = (Path(shutil.copytree(m, tmp_path / m.name)) for m in zoo("deepseek_v3"))
    extra = {
        f"model.layers.{LAYERS}.eh_proj.weight": torch.ones(16, 32, dtype=torch.bfloat16),
        f"model.layers.{LAYERS}.enorm.weight": ONES,
    }
    save_file(load(a) | extra, a / "model.safetensors", {"format": "pt"})
    assert shape_of(a).depth == LAYERS
    plan = merganser.plan(average(a, b))
    assert set(extra) <= {job.name for job in plan.jobs}
    plan = merganser.plan(stack((a, 0, 3), (b, 1, 4)) | {"base_model": str(a)})
    assert set(extra).isdisjoint(job.name for job in plan.jobs)
    recipe = stack((b, 0, 3), (a, 1, 4))
    result = merganser.merge(recipe, tmp_path / "out")
    assert "predicting further tokens" in result.warnings[0]
    assert set(extra).isdisjoint(load(tmp_path / "out"))
    assert config_of(tmp_path / "out")["num_nextn_predict_layers"] == 0
    check_loads(FAMILIES["deepseek_v3"], tmp_path / "out")


# -- MergeKit --------------------------------------------------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize("name", ["mamba", "phi", "olmo2", "starcoder2", "stablelm", "t5_gated"])
def test_whole_models_have_the_bits_of_mergekit(zoo: Any, tmp_path: Path, name: str) -> None:
    a, b = zoo(name)
    recipe = average(a, b, dtype="bfloat16")
    merganser.merge(recipe, tmp_path / "ours", arithmetic="mergekit")
    assert different_bits(load(tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs")) == {}


@pytest.mark.peer
def test_gradients_over_a_vision_tower_have_the_bits_of_mergekit(zoo: Any, tmp_path: Path) -> None:
    a, b = zoo("qwen2_5_vl")
    recipe = average(a, b, dtype="bfloat16")
    recipe["models"][0]["parameters"] = {"weight": [0.2, 0.8]}
    recipe["models"][1]["parameters"] = {"weight": [0.9, 0.1]}
    merganser.merge(recipe, tmp_path / "ours", arithmetic="mergekit")
    assert different_bits(load(tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs")) == {}


@pytest.mark.peer
def test_modules_have_the_bits_of_mergekit(zoo: Any, tmp_path: Path) -> None:
    a, b = zoo("t5_gated")
    recipe = average(a, b, dtype="bfloat16", base_model=str(a))
    models = recipe.pop("models")
    layers = [{"sources": [piece["sources"][0] for piece in slices((a, 0, 3), (b, 0, 3))]}]
    recipe["parameters"] = {"weight": [0.2, 0.7]}
    recipe["modules"] = {
        "shared": {"models": models},
        "encoder": {"slices": layers, "parameters": {"weight": [0.1, 0.9]}},
        "decoder": {"models": models},
    }
    merganser.merge(recipe, tmp_path / "ours", arithmetic="mergekit")
    assert different_bits(load(tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs")) == {}
