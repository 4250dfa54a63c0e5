"""Chat templates: what the named ones say, which one a merge takes, and where it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

import merganser
from checkpoints_on_disk import make_model, tree, write_json
from merganser import planning
from merganser.errors import RecipeError
from merganser.tokenizer import chat_templates
from messages import assert_one_line

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
]

SAID = {
    "alpaca": (
        "Be kind.\n\n### Instruction:\nHello\n\n### Response:\nHi!</s>\n\n"
        "### Instruction:\nHow are you?\n\n### Response:\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "exaone": (
        "[|system|]Be kind.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi![|endofturn|]\n"
        "[|user|]How are you?\n[|assistant|]"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHello [/INST] Hi!</s>[INST] How are you? [/INST]",
}

ONE = "{% for m in messages %}1 {{ m.content }} {% endfor %}"
TWO = "{% for m in messages %}2 {{ m.content }} {% endfor %}"


def with_template(folder: Path, template: Any, place: str = chat_templates.FILE) -> Path:
    """A model with a template in one of the places where they stand."""
    make_model(folder, vocab=32, hidden=8, layers=1)
    (folder / chat_templates.FILE).unlink()
    if place == chat_templates.FILE and template is not None:
        (folder / place).write_text(template)
    elif template is not None:
        file = folder / place
        old = json.loads(file.read_text()) if file.exists() else {}
        write_json(file, old | {"chat_template": template})
    return folder


def recipe(*models: Path, **keys: Any) -> dict[str, Any]:
    listed = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": listed, **keys}


def template_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder).chat_template


def test_the_names() -> None:
    assert chat_templates.names() == sorted(SAID)


@pytest.mark.parametrize("name", list(SAID))
def test_a_named_template(tmp_path: Path, name: str) -> None:
    model, out = with_template(tmp_path / "a", ONE), tmp_path / "out"
    merganser.merge(recipe(model, chat_template=name), out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    said = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert said == SAID[name]
    finished = tokenizer.apply_chat_template(TALK[:3], tokenize=False)
    assert said.startswith(finished)


def test_exaone_begins_with_a_system_that_says_nothing(tmp_path: Path) -> None:
    model, out = with_template(tmp_path / "a", ONE), tmp_path / "out"
    merganser.merge(recipe(model, chat_template="exaone"), out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    said = tokenizer.apply_chat_template(TALK[1:2], tokenize=False)
    assert said == "[|system|][|endofturn|]\n[|user|]Hello\n"


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([ONE, TWO, TWO], TWO),
        ([ONE, TWO], ONE),
        ([None, TWO, ONE], TWO),
        ([TWO, ONE, f"\n{ONE}\n", TWO], TWO),
        ([TWO, f" {ONE}", ONE], f" {ONE}"),
        ([None, None], None),
    ],
)
def test_auto(tmp_path: Path, templates: list[str | None], expected: str | None) -> None:
    models = [with_template(tmp_path / f"{i}", text) for i, text in enumerate(templates)]
    merganser.merge(recipe(*models, chat_template="auto"), tmp_path / "out")
    found = tree(tmp_path / "out").get(chat_templates.FILE)
    assert (found and found.decode()) == expected


@pytest.mark.parametrize("place", ["tokenizer_config.json", chat_templates.LEGACY_FILE])
@pytest.mark.parametrize("template", [TWO, [{"name": "default", "template": TWO}]])
def test_auto_finds_templates_wherever_they_are(tmp_path: Path, place: str, template: Any) -> None:
    one = with_template(tmp_path / "one", None)
    two = with_template(tmp_path / "two", template, place)
    merganser.merge(recipe(one, two, chat_template="auto"), tmp_path / "out")
    assert template_of(tmp_path / "out") == TWO


def test_the_old_template_is_gone_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    several = [
        {"name": "default", "template": ONE},
        {"name": "tool_use", "template": TWO},
        {"name": "../outside", "template": TWO},
    ]
    model = with_template(tmp_path / "a", several, "tokenizer_config.json")
    out = tmp_path / "out"
    merganser.merge(recipe(model, chat_template="chatml"), out)
    chatml = chat_templates.named("chatml")
    assert template_of(out) == {"default": chatml, "tool_use": TWO}
    assert not (tmp_path / "outside.jinja").exists()
    before, after = tree(model), tree(out)
    assert after["tokenizer.json"] == before["tokenizer.json"]
    assert after["generation_config.json"] == before["generation_config.json"]
    settings = json.loads(before["tokenizer_config.json"])
    settings.pop("chat_template")
    assert json.loads(after["tokenizer_config.json"]) == settings


def test_a_template_that_stays_changes_no_file(tmp_path: Path) -> None:
    model = with_template(tmp_path / "a", ONE, "tokenizer_config.json")
    merganser.merge(recipe(model, chat_template="auto"), tmp_path / "out")
    before, after = tree(model), tree(tmp_path / "out")
    assert after["tokenizer_config.json"] == before["tokenizer_config.json"]
    assert chat_templates.FILE not in after


def test_a_literal_template(tmp_path: Path) -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    model, out = with_template(tmp_path / "a", ONE), tmp_path / "out"
    merganser.merge(recipe(model, chat_template=text), out)
    assert (out / chat_templates.FILE).read_text() == text


def test_with_a_tokenizer_of_another_model_comes_its_template(tmp_path: Path) -> None:
    models = [with_template(tmp_path / name, text) for name, text in (("a", ONE), ("b", TWO))]
    config = recipe(*models, tokenizer_source=str(models[1]))
    merganser.merge(config, tmp_path / "out")
    assert template_of(tmp_path / "out") == TWO
    merganser.merge(config | {"chat_template": ONE}, tmp_path / "out", force=True)
    assert template_of(tmp_path / "out") == ONE


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("chatlm", ["'chatlm'", "chatml"]),
        ("{{ messages }}", ["auto"]),
        ("A text that is long, but holds nothing.", ["nor a Jinja template"]),
        ("{% for m in messages %}{{ m.content }}", ["Jinja", "line 1"]),
        ("{{ messages[0].content | shout }} ", ["Jinja", "shout"]),
        ("../../../../etc/hostname", ["nor a Jinja template"]),
    ],
)
def test_what_is_no_template(tmp_path: Path, text: str, parts: list[str]) -> None:
    model = with_template(tmp_path / "a", ONE)
    with pytest.raises(RecipeError) as error:
        planning.plan(recipe(model, chat_template=text))
    assert_one_line(str(error.value), "chat_template", *parts)
