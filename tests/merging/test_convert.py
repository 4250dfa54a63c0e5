"""``merganser convert``: every form that can be read becomes a folder with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ggufs
import merganser
from checkpoints_on_disk import make_model, save_weights, tree, write_json
from merganser.cli import main
from merganser.errors import RecipeError
from messages import assert_one_line
from sources import FORMS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize(
    "form",
    ["safetensors_shards", "pickled_shards", "gguf_quantised", "fsdp2-3", "dcp-2", "zero2-3"],
)
def test_every_form_keeps_its_numbers(tmp_path: Path, form: str) -> None:
    path, expected = FORMS[form](tmp_path / "in")
    done = run("convert", path, tmp_path / "out", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    found = weights(tmp_path / "out")
    tied = {"lm_head.weight"} - set(found)  # a head that is the embedding is not written twice
    assert set(found) == set(expected) - tied
    for name, tensor in found.items():
        whole = tensor.dtype == torch.float32
        assert whole or name == "buffer", name
        assert torch.equal(tensor, expected[name].float()), name


def test_without_a_dtype_nothing_is_changed(tmp_path: Path) -> None:
    source = make_model(tmp_path / "in", dtype=torch.float16, shards=2)
    result = merganser.convert(source, tmp_path / "out", shard_size="5GB")
    assert result.plan.dtype.name == "float16"
    assert all(job.method == "copy" for job in result.plan.jobs)
    expected = weights(source)
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name])
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert merganser.verify(tmp_path / "out", recompute=True) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_that_of_torch(tmp_path: Path, dtype: str) -> None:
    source = make_model(tmp_path / "in", dtype=torch.float32)
    merganser.convert(source, tmp_path / "out", dtype=dtype)
    expected = weights(source)
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, expected[name].to(getattr(torch, dtype))), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_stochastic_rounding_is_right_on_average_and_follows_its_seed(tmp_path: Path) -> None:
    exact = torch.full((512, 512), 1.0 + 2**-9)  # a quarter of the way between two bfloat16
    source = make_model(tmp_path / "in", dtype=torch.float32, extra={"model.norm.weight": exact})
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run("convert", source, tmp_path / name, "--dtype", "bfloat16", "--rounding",
                   "stochastic", "--seed", seed)  # fmt: skip
        assert done.exit_code == 0, done.output
        found.append(weights(tmp_path / name)["model.norm.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    up = (found[0] > 1).float().mean().item()
    assert up == pytest.approx(0.25, abs=0.005)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_with_its_adapter_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    source = make_model(tmp_path / "in", dtype=torch.float32)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    done = run("convert", f"{source}+{tmp_path / 'adapter'}", tmp_path / "out")
    assert done.exit_code == 0, done.output
    expected = model.merge_and_unload().state_dict()
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def test_a_gguf_file_becomes_a_model_that_loads(tmp_path: Path) -> None:
    file = ggufs.save(tmp_path / "m.gguf", ggufs.llama(), ggufs.LLAMA, "Q8_0")
    done = run("convert", file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "lacks tokenizer; --base MODEL lends" in done.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = ggufs.rounded(ggufs.llama()[name], "Q8_0").bfloat16()
    assert torch.equal(model.state_dict()[name], expected)


def test_a_model_without_words_lacks_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"layers.0.weight": torch.ones(4, 4)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "vit"}')
    done = run("convert", tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output


def test_a_base_lends_config_and_tokenizer(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    bare = tmp_path / "bare" / "only.safetensors"
    save_file(weights(whole), bare)
    done = run("convert", bare, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "lacks config.json and tokenizer" in done.output
    for file in whole.glob("*.safetensors"):
        file.unlink()  # only the small files are looked at
    done = run("convert", bare, tmp_path / "lent", "--base", whole)
    assert done.exit_code == 0, done.output
    assert "lacks" not in done.output
    made, given = tree(tmp_path / "lent"), tree(whole)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(made)
    for name in set(given) - {"config.json"}:
        assert made[name] == given[name]
    assert json.loads(made["config.json"]) == json.loads(given["config.json"])


def test_the_card_tells_of_a_conversion(tmp_path: Path) -> None:
    file = ggufs.save(tmp_path / "m.gguf", ggufs.llama(), ggufs.LLAMA, "Q8_0")
    merganser.convert(file, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`m.gguf`, which are stored as GGUF (Q8_0) there, in bfloat16" in card
    assert "- merge\n" not in card
    assert "mergekit\n" not in card
    same = merganser.convert(tmp_path / "out", tmp_path / "again")
    assert same.folder is not None
    assert "bit for bit" in (same.folder / "README.md").read_text()


def test_as_json(tmp_path: Path) -> None:
    make_model(tmp_path / "in")
    done = run("convert", tmp_path / "in", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["method"] == "passthrough"


def test_inspect_tells_of_a_gguf_file(tmp_path: Path) -> None:
    file = ggufs.save(tmp_path / "m.gguf", ggufs.llama(), ggufs.LLAMA, "Q8_0")
    done = run("inspect", file, "--json")
    assert done.exit_code == 0, done.output
    sheet: dict[str, Any] = json.loads(done.stdout)
    assert sheet["format"] == "GGUF (Q8_0)"
    assert sheet["architecture"] == ["LlamaForCausalLM"]
    assert sheet["by_dtype"] == {"bfloat16": sum(t.numel() for t in ggufs.llama().values())}
    assert sheet["layers"] == 2
    assert sheet["missing"] == ["tokenizer"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nowhere", "out"], 3, "nowhere"),
        (["in", "in"], 2, "not empty"),
        (["in", "in/below"], 2, "in"),
        (["a+b+c", "out"], 2, "more than one '+'"),
        (["in", "out", "--shard-size", "much"], 2, "shard size"),
        (["in", "out", "--memory", "much"], 2, "--memory"),
        (["in", "out", "--base", "nowhere"], 3, "nowhere"),
        (["broken.gguf", "out"], 3, "broken.gguf"),
        (["in", "out", "--weights", "huggingface"], 0, ""),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "in")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    before = tree(tmp_path)
    done = run("convert", *arguments)
    assert done.exit_code == code, done.output
    if code:
        assert_one_line(done.stderr.strip(), "merganser: ", part)
        assert tree(tmp_path) == before


def test_an_output_is_replaced_only_by_force(tmp_path: Path) -> None:
    make_model(tmp_path / "in")
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "x.json", {})
    assert run("convert", tmp_path / "in", tmp_path / "out").exit_code == 2
    assert run("convert", tmp_path / "in", tmp_path / "out", "--force").exit_code == 0
    assert not (tmp_path / "out" / "x.json").exists()


def test_python_takes_only_known_dtypes(tmp_path: Path) -> None:
    save_weights(make_model(tmp_path / "in"), {"a": torch.zeros(2)})
    with pytest.raises(RecipeError):
        merganser.convert(tmp_path / "in", tmp_path / "out", dtype="int3")
