"""What belongs to a model besides its weights: its code, its modules, a tokenizer that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from conftest import TOKENIZER, WORDS, assert_one_line, change_config, make_model, tree, write_json
from merganser import hub, merge, plan, verify
from merganser.errors import InputError
from merganser.study.publishing import prepare

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
