"""Single files without a config: names that agree, and names that do not. MergeKit is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import merganser
from checkpoints_on_disk import make_model, tree
from merganser.cli import main
from merganser.errors import InputError, RecipeError
from messages import assert_one_line
from peers import Tensors, different_bits, load, mergekit_pytorch

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (5, 7),
    "model.layers.1.mlp.up_proj.weight": (5, 7),
    "encoder.3.bias": (9,),
    "alone": (2, 3, 4),
}


def tensors(seed: int, *without: str, **more: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = SHAPES | more
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor for name, tensor in made.items() if name not in without}


def save(file: Path, content: Tensors) -> str:
    if file.suffix == ".safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    return str(file)


def linear(files: list[str], **keys: Any) -> dict[str, Any]:
    weights = [0.3, 0.7, 0.4]
    listed = [
        {"model": file, "parameters": {"weight": weight}}
        for file, weight in zip(files, weights, strict=False)
    ]
    return {"merge_method": "linear", "models": listed, **keys}


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


@pytest.mark.peer
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".pth"])
def test_files_merge_as_in_mergekit(tmp_path: Path, suffix: str) -> None:
    files = [save(tmp_path / f"{i}{suffix}", tensors(i)) for i in range(3)]
    rule = {"filter": "mlp", "value": [0.1, 0.9]}  # MergeKit takes the first value of a gradient
    config = linear(files, parameters={"normalize": False})
    config["models"][0]["parameters"] = {"weight": [rule, {"value": 0.5}]}
    theirs = mergekit_pytorch(config, tmp_path / "theirs")
    result = merganser.merge(config, tmp_path / "ours", arithmetic="mergekit")
    assert different_bits(load(tmp_path / "ours"), theirs) == {}
    warning, sums = result.warnings
    assert_one_line(sums, "add up to 1", "normalize is false")
    assert_one_line(warning, "models[0].parameters.weight", "first value")


@pytest.mark.peer
@pytest.mark.parametrize("names", ["intersection", "union"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_names_that_differ(tmp_path: Path, names: str, method: str) -> None:
    contents = [tensors(0, here=(4,)), tensors(1, "alone", here=(4,)), tensors(2, "encoder.3.bias")]
    files = [save(tmp_path / f"{i}.safetensors", content) for i, content in enumerate(contents)]
    config = linear(files, merge_method=method)
    if method == "task_arithmetic":
        config["base_model"] = files[0]
    theirs = mergekit_pytorch(config, tmp_path / "theirs", names)
    options: dict[str, Any] = {"tensor_names": names, "arithmetic": "mergekit"}
    result = merganser.merge(config, tmp_path / "ours", **options)
    made = load(tmp_path / "ours")
    assert set(made) == (set(contents[0]) if names == "union" else {*list(SHAPES)[:2]})
    assert different_bits(made, theirs) == {}
    told = " ".join(result.warnings)
    for name in ("alone", "encoder.*.bias", "here"):
        assert name in told
    assert merganser.verify(tmp_path / "ours", recompute=True) == []
    assert f"--tensor-{names}" in (tmp_path / "ours" / "README.md").read_text()


def test_names_must_agree(tmp_path: Path) -> None:
    files = [
        save(tmp_path / "a.safetensors", tensors(0)),
        save(tmp_path / "b.pt", tensors(1, "alone")),
    ]
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(linear(files)))
    for command in (["plan", recipe], ["merge", recipe, tmp_path / "out"]):
        message = run(*command, code=3).stderr
        assert_one_line(
            message, "b.pt", "'alone'", "--tensor-intersection", "-i", "--tensor-union", "-u"
        )
    for flag, count in (("-i", 3), ("-u", 4), ("--tensor-intersection", 3), ("--tensor-union", 4)):
        planned = json.loads(run("plan", recipe, flag, "--json").stdout)
        assert len(planned["tensors"]) == count
        run("merge", recipe, tmp_path / "out", flag, "--force", "-q")
        assert len(load(tmp_path / "out")) == count


def test_a_base_must_have_what_is_changed_in_it(tmp_path: Path) -> None:
    base = save(tmp_path / "base.safetensors", tensors(0, "alone"))
    other = save(tmp_path / "other.safetensors", tensors(1))
    config = linear([other], merge_method="task_arithmetic", base_model=base)
    with pytest.raises(InputError) as error:
        merganser.plan(config, tensor_names="union")
    assert_one_line(str(error.value), "base.safetensors", "'alone'", "differences")
    assert len(merganser.plan(config, tensor_names="intersection").jobs) == 3


def test_a_head_is_a_tensor_like_the_others(tmp_path: Path) -> None:
    """No embedding stands for it, since nothing says that they are tied."""
    shape = (64, 8)
    names = {"model.embed_tokens.weight": shape, "lm_head.weight": shape}
    whole = save(tmp_path / "a.safetensors", {n: torch.randn(s) for n, s in names.items()})
    part = save(tmp_path / "b.safetensors", {"model.embed_tokens.weight": torch.randn(shape)})
    with pytest.raises(InputError, match=r"lm_head.*tensor_names='union'"):
        merganser.plan(linear([whole, part]))


def test_the_folder_has_no_config(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.safetensors", tensors(i)) for i in range(2)]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # not theirs
    result = merganser.merge(linear(files, dtype="bfloat16"), tmp_path / "out", shard_size=200)
    assert result.warnings == ()
    assert {n for n in tree(tmp_path / "out") if not n.startswith("model")} == {
        "README.md",
        "merge_manifest.json",
        "mergekit_config.yml",
    }
    assert "library_name" not in (tmp_path / "out" / "README.md").read_text()
    made = load(tmp_path / "out")
    for name, tensor in tensors(0).items():
        wanted = (0.3 * tensor.double() + 0.7 * tensors(1)[name].double()).bfloat16()
        assert torch.equal(made[name], wanted)
    again = merganser.merge(
        linear([str(tmp_path / "out"), str(tmp_path / "out") + "/."]), tmp_path / "2"
    )
    assert len(again.plan.jobs) == len(SHAPES)


def test_shapes_must_agree(tmp_path: Path) -> None:
    files = [
        save(tmp_path / "a.safetensors", {"x": torch.ones(2)}),
        save(tmp_path / "b.safetensors", {"x": torch.ones(3)}),
    ]
    for names in ("same", "intersection", "union"):
        with pytest.raises(InputError) as error:
            merganser.plan(linear(files), tensor_names=names)  # type: ignore[arg-type]
        assert_one_line(str(error.value), "'x'", "[3]", "[2]")


def test_nothing_in_common(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{n}.safetensors", {n: torch.ones(2)}) for n in "ab"]
    with pytest.raises(InputError, match="no tensor in common"):
        merganser.plan(linear(files), tensor_names="intersection")


def test_files_have_no_layers(tmp_path: Path) -> None:
    file = save(tmp_path / "a.safetensors", tensors(0))
    source = {"model": file, "layer_range": [0, 1]}
    config = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    with pytest.raises(RecipeError) as error:
        merganser.plan(config)
    assert_one_line(str(error.value), "slices", "list them under models")


def test_whole_models_may_differ_if_asked(tmp_path: Path) -> None:
    """The flags mean the same for models with a config: of one layer more, say."""
    models = [str(make_model(tmp_path / name, layers=n)) for name, n in (("a", 2), ("b", 3))]
    with pytest.raises(InputError):
        merganser.plan(linear(models))
    both, either = (
        merganser.plan(linear(models), tensor_names=names)  # type: ignore[arg-type]
        for names in ("intersection", "union")
    )
    assert max(job.layer or 0 for job in both.jobs) == 1
    assert max(job.layer or 0 for job in either.jobs) == 2
    assert_one_line(both.warnings[-1], "12 tensors", "model.layers.*", "left out")
