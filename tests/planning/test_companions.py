"""What belongs to a model besides its weights: its code, its modules, a tokenizer that fits."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from checkpoints_on_disk import TOKENIZER, WORDS, change_config, make_model, tree, write_json
from merganser import hub, merge, plan, verify
from merganser.checkpoints import open_checkpoint
from merganser.checkpoints.sentence_transformers import module_folders
from merganser.errors import InputError, MerganserError
from merganser.publishing.push import prepare
from messages import assert_one_line

CONFIGURATION = "from transformers import Qwen2Config\n\nclass DuckConfig(Qwen2Config):\n    pass\n"
MODELLING = """from transformers import Qwen2ForCausalLM
from .configuration_duck import DuckConfig
from .layers import SCALE

class DuckForCausalLM(Qwen2ForCausalLM):
    config_class = DuckConfig
    scale = SCALE
"""
AUTO_MAP = {
    "AutoConfig": "configuration_duck.DuckConfig",
    "AutoModelForCausalLM": "modeling_duck.DuckForCausalLM",
    "AutoModel": "org/elsewhere--modeling_elsewhere.Model",
}
CODE = {"configuration_duck.py": CONFIGURATION, "modeling_duck.py": MODELLING, "layers.py": "SCALE = 2\n"}  # fmt: skip


def average(*folders: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(folder), "parameters": {"weight": 1}} for folder in folders]
    return {"merge_method": "linear", "models": models, **more}


# -- config and tokenizer --------------------------------------------------------------------------


def test_a_first_model_without_a_config_is_named(tmp_path: Path) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", seed=1)
    (a / "config.json").unlink()
    [warning] = plan(average(a, b)).warnings
    assert_one_line(warning, f"{a} has no config.json", f"{b} has one")
    assert plan(average(b, a)).warnings == ()


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("padding", [0, 2**20])
def test_a_broken_file_is_not_copied(tmp_path: Path, name: str, padding: int) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b", seed=1)
    (a / name).write_text('{"version": "1.0", ' + " " * padding)
    with pytest.raises(InputError) as error:
        merge(average(a, b), tmp_path / "out")
    assert_one_line(str(error.value), str(a / name), "not readable as JSON")
    assert not list(tmp_path.glob("out*"))


# -- code ------------------------------------------------------------------------------------------


@pytest.fixture
def custom(tmp_path: Path) -> tuple[Path, Path]:
    """Two models with code of their own, and Python files that are none of it."""
    for seed, name in enumerate("ab"):
        folder = make_model(tmp_path / name, seed=seed)
        change_config(folder, auto_map=AUTO_MAP)
        for file, text in CODE.items():
            (folder / file).write_text(text)
        (folder / "train.py").write_text("raise SystemExit('never run')\n")
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('never run')\n")
    return tmp_path / "a", tmp_path / "b"


def test_the_code_of_a_model_is_copied_and_the_output_loads(
    custom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = merge(average(*custom), tmp_path / "out")
    assert result.warnings == ()
    python = {name: data for name, data in tree(tmp_path / "out").items() if name.endswith(".py")}
    code = [*CODE, "custom_generate/generate.py"]
    assert python == {name: (custom[0] / name).read_bytes() for name in code}
    assert set(python) <= set(result.manifest["companions"])
    (tmp_path / "out" / "custom_generate" / "generate.py").unlink()  # it would be run below
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    assert type(model).__name__ == "DuckForCausalLM"
    assert model.scale == 2


def test_changed_code_does_not_verify(custom: tuple[Path, Path], tmp_path: Path) -> None:
    merge(average(*custom), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    (tmp_path / "out" / "layers.py").write_text("SCALE = 3\n")
    assert verify(tmp_path / "out") == ["layers.py is not what was written"]


@pytest.mark.parametrize(
    ("file", "user"),
    [("modeling_duck.py", "config.json"), ("layers.py", "modeling_duck.py")],
)
def test_code_that_is_missing_is_named(custom: tuple[Path, Path], file: str, user: str) -> None:
    (custom[0] / file).unlink()
    [warning] = plan(average(*custom)).warnings
    assert_one_line(warning, str(custom[0]), f"{user} needs {file}")


@pytest.mark.parametrize(
    "reference", ["../secret.Model", "/etc/secret.Model", ".hidden.Model", "a/b.Model", "", 7, None, [None], {}]
)  # fmt: skip
def test_a_reference_to_code_never_leaves_the_folder(
    custom: tuple[Path, Path], tmp_path: Path, reference: Any
) -> None:
    (tmp_path / "secret.py").write_text("KEY = 1\n")
    change_config(custom[0], auto_map={"AutoModel": reference})
    result = merge(average(*custom), tmp_path / "out")
    assert result.warnings == ()
    assert {name for name in tree(tmp_path / "out") if name.endswith(".py")} == {
        "custom_generate/generate.py"
    }


def test_code_that_is_a_link_out_of_its_folder_is_refused(
    custom: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("KEY = 1\n")
    (custom[0] / "layers.py").unlink()
    (custom[0] / "layers.py").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InputError) as error:
        merge(average(*custom), tmp_path / "out")
    assert_one_line(str(error.value), "layers.py", "link out of its folder")
    assert not (tmp_path / "out").exists()


def test_the_code_of_a_tokenizer_and_a_processor_is_copied_too(tmp_path: Path) -> None:
    a, b = (make_model(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    settings = json.loads((a / "tokenizer_config.json").read_text())
    tokenizers = {"AutoTokenizer": ["tokenization_duck.DuckTokenizer", None]}
    write_json(a / "tokenizer_config.json", settings | {"auto_map": tokenizers})
    processors = {"AutoProcessor": "processing_duck.DuckProcessor"}
    write_json(a / "preprocessor_config.json", {"auto_map": processors})
    for name in ("tokenization_duck.py", "processing_duck.py"):
        (a / name).write_text("x = 1\n")
    merge(average(a, b), tmp_path / "out")
    assert {"tokenization_duck.py", "processing_duck.py"} <= set(tree(tmp_path / "out"))
    merge(average(a, b), tmp_path / "bare", copy_tokenizer=False)
    assert "tokenization_duck.py" not in tree(tmp_path / "bare")
    assert "processing_duck.py" in tree(tmp_path / "bare")


def test_code_of_another_models_tokenizer_does_not_replace_the_models(
    custom: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = custom
    settings = json.loads((b / "tokenizer_config.json").read_text())
    write_json(b / "tokenizer_config.json", settings | {"auto_map": {"AutoTokenizer": ["layers.T", None]}})  # fmt: skip
    recipe = average(a, b, tokenizer_source=str(b))
    assert merge(recipe, tmp_path / "same").warnings == ()
    (b / "layers.py").write_text("SCALE = 3\n")
    result = merge(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "layers.py").read_bytes() == (a / "layers.py").read_bytes()
    [warning] = result.warnings
    assert_one_line(warning, str(b / "layers.py"), "differs from the model's")


def test_code_and_cards_are_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.extend(allow_patterns)
        return str(Path())

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.resolve("org/duck", weights=False)
    wanted = [
        "modeling_duck.py",
        "custom_generate/generate.py",
        "README.md",
        "1_Pooling/config.json",
    ]
    there = [*wanted, "onnx/model.onnx", "model.safetensors"]
    assert list(filter_repo_objects(there, allow_patterns=asked)) == wanted


# -- sentence-transformers ---------------------------------------------------------------------------


MODULE_LIST = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "custom_norm.Normalize"},
]
SMALL = [
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
]


def dense(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "linear.weight": torch.randn(8, 16, generator=generator),
        "linear.bias": torch.randn(8, generator=generator),
        "blocks.0.scale": torch.randn(3, generator=generator),
        "blocks.1.scale": torch.randn(3, generator=generator),
    }


def make_sentence_model(folder: Path, seed: int, *, pickled: bool = False) -> Path:
    make_model(folder, seed=seed, dtype=torch.float32)
    for name in SMALL:
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, {"name": name})
    write_json(folder / "modules.json", MODULE_LIST)
    write_json(folder / "config_sentence_transformers.json", {"__version__": {"torch": str(seed)}})
    (folder / "custom_norm.py").write_text("x = 1\n")
    if pickled:
        torch.save(dense(seed), folder / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(dense(seed), folder / "2_Dense" / "model.safetensors")
    return folder


@pytest.fixture
def sentences(tmp_path: Path) -> tuple[Path, Path]:
    a = make_sentence_model(tmp_path / "a", 0)
    return a, make_sentence_model(tmp_path / "b", 1, pickled=True)


def test_the_modules_of_a_sentence_model_are_merged_and_verified(
    sentences: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = sentences
    out = tmp_path / "out"
    result = merge(average(a, b), out, shard_size=9_000)
    assert result.warnings == ()
    merged = load_file(out / "2_Dense" / "model.safetensors")
    one, two = dense(0), dense(1)
    assert set(merged) == set(one)
    for name, tensor in merged.items():
        assert torch.equal(tensor, ((one[name].double() + two[name].double()) / 2).float()), name
    for name in (*SMALL, "custom_norm.py"):
        assert (out / name).read_bytes() == (a / name).read_bytes()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert not any("2_Dense" in name for name in index["weight_map"])
    assert index["metadata"]["total_size"] == sum(
        spec.nbytes for name, spec in open_checkpoint(out).specs.items() if "/" not in name
    )
    assert verify(out, recompute=True) == []
    with (out / "2_Dense" / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x41")
    [problem] = verify(out)
    assert problem.startswith("tensor '2_Dense/")
    (out / "1_Pooling" / "config.json").unlink()
    assert any("1_Pooling/config.json" in problem for problem in verify(out))


def test_a_merge_of_modules_that_was_cut_off_goes_on(
    sentences: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = average(*sentences)
    merge(recipe, tmp_path / "whole" / "out", shard_size=9_000)

    def fail(*_: object, **__: object) -> None:
        raise MerganserError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("merganser.release.config.write_config", fail)
        with pytest.raises(MerganserError, match="no more"):
            merge(recipe, tmp_path / "out", shard_size=9_000)
    new = tmp_path / "out.partial" / "new"
    before = (new / "2_Dense" / "model.safetensors").stat().st_ino
    (new / "2_Dense" / "junk").write_text("of nobody")
    result = merge(recipe, tmp_path / "out", shard_size=9_000, resume=True)
    assert result.folder is not None
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").stat().st_ino == before
    own = {name: data for name, data in tree(tmp_path / "out").items() if "manifest" not in name}
    assert own == {n: d for n, d in tree(tmp_path / "whole" / "out").items() if "manifest" not in n}


def test_layers_of_a_sentence_model_are_stacked_and_its_modules_are_not(
    sentences: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = sentences
    cuts = [{"sources": [{"model": str(m), "layer_range": [0, 2]}]} for m in (a, b)]
    merge({"merge_method": "passthrough", "slices": cuts}, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in dense(1).items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4


def test_modules_that_differ_or_cannot_be_copied_are_named(sentences: tuple[Path, Path]) -> None:
    a, b = sentences
    write_json(b / "1_Pooling" / "config.json", {"name": "another"})
    (a / "2_Dense" / "weights.npy").write_bytes(b"?")
    other, settings = plan(average(a, b)).warnings
    assert_one_line(other, str(a / "2_Dense" / "weights.npy"), "the output lacks it")
    assert_one_line(settings, str(b), "1_Pooling/config.json differs", str(a))


def test_a_sentence_model_with_a_plain_base(sentences: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = sentences
    plain = make_model(tmp_path / "plain", dtype=torch.float32)
    for model in (a, b):
        shutil.rmtree(model / "2_Dense")
        write_json(model / "modules.json", MODULE_LIST[:2])
    recipe = average(a, b, base_model=str(plain)) | {"merge_method": "task_arithmetic"}
    warnings = plan(recipe).warnings
    assert len(warnings) == 2
    assert_one_line(warnings[0], str(a), str(plain), "none of its modules", f"base_model: {a}")


def test_weights_of_modules_need_a_donor_that_has_the_modules(
    sentences: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = make_model(tmp_path / "plain", dtype=torch.float32)
    with pytest.raises(InputError) as error:
        plan(average(plain, *sentences))
    assert_one_line(str(error.value), str(sentences[0]), "2_Dense/", f"base_model: {sentences[0]}")
    plan(average(plain, *sentences), tensor_names="intersection")


@pytest.mark.parametrize(
    "content",
    [
        "{}", "[", "[1]", '"x"', '[{"path": "../other"}]', '[{"path": "/etc"}]', '[{"path": 7}]',
        '[{"path": "1_Pooling/../../b"}]', '[{"path": "link"}]',
    ],
)  # fmt: skip
def test_lists_of_modules_that_are_none_are_refused(
    sentences: tuple[Path, Path], tmp_path: Path, content: str
) -> None:
    (sentences[0] / "link").symlink_to(tmp_path)
    (sentences[0] / "modules.json").write_text(content)
    if content == "{}":
        assert module_folders(sentences[0]) == []
        return
    with pytest.raises(InputError) as error:
        plan(average(*sentences))
    assert_one_line(str(error.value), "modules.json")


def test_a_transformer_in_a_folder_of_its_own_is_named(tmp_path: Path) -> None:
    make_model(tmp_path / "old" / "0_Transformer")
    write_json(tmp_path / "old" / "modules.json", [{"path": "0_Transformer", "type": "x"}])
    with pytest.raises(InputError) as error:
        plan(average(tmp_path / "old"))
    assert_one_line(str(error.value), f"name {tmp_path / 'old' / '0_Transformer'}")


@pytest.mark.parametrize("main", ["model.safetensors", "pytorch_model.bin"])
def test_modules_are_fetched_from_the_hub(
    sentences: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: str
) -> None:
    _, repository = sentences
    (repository / "model.safetensors").rename(repository / main)
    (repository / "openvino").mkdir()
    (repository / "openvino" / "openvino_model.bin").write_bytes(b"?")

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        names = list(tree(repository))
        for file in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    cache = hub.resolve("org/duck")
    assert tree(cache) == {n: d for n, d in tree(repository).items() if "openvino" not in n}


# -- the size of a tokenizer -----------------------------------------------------------------------


def with_tokens(folder: Path, count: int, kind: str) -> Path:
    """Give a model a tokenizer of that many tokens."""
    words = [*WORDS, *(f"word{i}" for i in range(count - len(WORDS)))]
    model: dict[str, Any] = {
        "type": "WordLevel",
        "vocab": {word: i for i, word in enumerate(words)},
        "unk_token": "<unk>",
    }
    added: list[dict[str, Any]] = []
    if kind == "Unigram":
        model = {"type": "Unigram", "unk_id": 3, "vocab": [[word, -1.5] for word in words]}
    if kind == "added":
        del model["vocab"][words[-1]]
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        added = [{"id": count - 1, "content": words[-1], **flags}]
    if kind == "loose":
        del model["vocab"][words[-1]]
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        decoder = {str(count - 1): {"content": words[-1]}}
        write_json(folder / "tokenizer_config.json", settings | {"added_tokens_decoder": decoder})
    write_json(folder / "tokenizer.json", TOKENIZER | {"model": model, "added_tokens": added})
    return folder


@pytest.mark.parametrize("kind", ["vocabulary", "Unigram", "added", "loose"])
@pytest.mark.parametrize("count", [32, 33])
def test_a_tokenizer_with_more_tokens_than_rows_is_named(
    tmp_path: Path, kind: str, count: int
) -> None:
    a = with_tokens(make_model(tmp_path / "a", vocab=32), count, kind)
    b = make_model(tmp_path / "b", vocab=32, seed=1)
    warnings = plan(average(a, b)).warnings
    if count == 32:
        assert warnings == ()
        return
    [warning] = warnings
    assert_one_line(warning, str(a), "33 tokens", "32 rows", f"tokenizer_source: {a}")
    advised = plan(average(a, b, tokenizer_source=str(a)))
    assert not any("33 tokens" in each for each in advised.warnings)
    assert advised.tokenizer is not None
    assert advised.tokenizer.output.size == 32


def test_a_tokenizer_of_a_vocabulary_that_is_cut_is_named(tmp_path: Path) -> None:
    a = with_tokens(make_model(tmp_path / "a", vocab=40), 40, "vocabulary")
    b = make_model(tmp_path / "b", vocab=32, seed=1)
    [warning] = plan(average(a, b), truncate_embeddings=True).warnings
    assert_one_line(warning, "40 tokens", "32 rows")


def test_other_large_numbers_of_a_tokenizer_are_no_tokens(tmp_path: Path) -> None:
    a = make_model(tmp_path / "a", vocab=32)
    contents = TOKENIZER | {"truncation": {"max_length": 4096}}
    write_json(a / "tokenizer.json", contents)
    assert plan(average(a)).warnings == ()
    (a / "tokenizer.json").write_text('{"broken": 4096')
    assert plan(average(a)).warnings == ()


# -- licences --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_model", "of_adapter", "of_output"),
    [("apache-2.0", "cc-by-nc-4.0", None), ("mit", "mit", "mit"), ("mit", None, None)],
)
def test_the_licence_of_an_adapter_is_shown_with_its_models(
    tmp_path: Path, of_model: str, of_adapter: str | None, of_output: str | None
) -> None:
    model = make_model(tmp_path / "model")
    (model / "README.md").write_text(f"---\nlicense: {of_model}\n---\n")
    adapter = tmp_path / "lora"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    write_json(adapter / "adapter_config.json", settings)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    sides = {f"{prefix}.lora_A.weight": torch.ones(1, 16), f"{prefix}.lora_B.weight": torch.ones(16, 1)}  # fmt: skip
    save_file(sides, adapter / "adapter_model.safetensors")
    if of_adapter:
        (adapter / "README.md").write_text(f"---\nlicense: {of_adapter}\n---\n")
    merge(
        {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]},
        tmp_path / "out",
        public=True,
    )
    [package] = prepare(tmp_path / "out", "org/name").packages
    assert package.licenses == {
        "model+lora (model)": of_model,
        "model+lora (adapter)": of_adapter,
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]).get("license") == of_output
