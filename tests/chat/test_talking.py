"""Models speak: streamed as scored, and merges that were never written as those that were."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import merganser
from checkpoints_on_disk import CHAT_TEMPLATE, make_model, tree
from merganser import cli
from merganser.chat import talk as talking
from merganser.evaluation.generation import Request, Sampling
from messages import assert_one_line
from recipe_files import RecipeFile
from sweeps import SWEEP

DRAWN = Sampling(temperature=1.5, top_p=0.95, max_tokens=12, seed=3)
ANSWERING = CHAT_TEMPLATE.strip() + "{% if add_generation_prompt %}<|im_start|> {% endif %}"


@pytest.fixture
def sweep(tmp_path: Path, recipe_file: RecipeFile) -> Path:
    """A sweep file whose models have other things to say than each other."""
    for seed, name in enumerate("ab"):
        folder = make_model(tmp_path / name, seed=seed, hidden=32)
        (folder / "chat_template.jinja").write_text(ANSWERING)
    return recipe_file(SWEEP, "sweep.yml")


def run(*arguments: object, said: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(part) for part in arguments], input=said)


def drawn(prompt: str, *models: object) -> list[str]:
    found = run(
        *("generate", models[0], prompt, "--json", "--temperature", 1.5, "--top-p", 0.95),
        *("--max-tokens", 12, "--seed", 3),
        *(part for model in models[1:] for part in ("--with", model)),
    )
    assert found.exit_code == 0, found.output
    return [answer["text"] for answer in json.loads(found.stdout)["answers"]]


def test_a_stream_is_the_completion_that_is_scored(sweep: Path) -> None:
    [talk] = talking.conversations([f"{sweep}#w=0.7"])
    backend = talk.voice.live.backend
    backend.codec.end_tokens = []
    for prompt in ("1 + 2 =", [{"role": "user", "content": "3 - 1"}]):
        [(_, whole)] = backend([Request(prompt)], DRAWN)
        parts = list(backend.stream(prompt, DRAWN))
        assert "".join(parts) == whole.text
        assert len([part for part in parts if part]) > 1


def test_what_is_not_written_says_what_is_written(sweep: Path, tmp_path: Path) -> None:
    before = tree(tmp_path)
    recipe = tmp_path / "recipe.yml"
    texts = drawn("1 + 2", tmp_path / "a", f"{sweep}#w=0.7", f"{sweep}#m_w0.3")
    assert tree(tmp_path) == before
    merganser.sweep(sweep, tmp_path / "out")
    written = drawn(
        "1 + 2", tmp_path / "a", *(tmp_path / "out" / f"m_w{w}" for w in ("0.7", "0.3"))
    )
    assert texts == written
    assert len(set(texts)) == 3
    recipe.write_text((tmp_path / "out" / "m_w0.7" / "mergekit_config.yml").read_text())
    assert drawn("1 + 2", recipe) == texts[1:2]


def test_text_is_streamed_under_names(sweep: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    options = ("--max-tokens", 5)
    alone = run("generate", a, "1 + 2", *options)
    assert alone.exit_code == 0, alone.output
    assert alone.stdout.strip() == drawn_greedily(a)
    assert f"[{a}: cut off after 5 tokens; --max-tokens N allows more]" in alone.stderr
    both = run("generate", a, "-", "--with", b, *options, said="1 + 2")
    assert both.stdout.index(f"== {a} ==") < both.stdout.index(f"== {b} ==")
    assert drawn_greedily(b) in both.stdout


def drawn_greedily(model: Path) -> str:
    found = run("generate", model, "1 + 2", "--max-tokens", 5, "--json")
    [answer] = json.loads(found.stdout)["answers"]
    assert answer["tokens"] <= 5
    return str(answer["text"]).strip()


def test_the_template_and_the_system_prompt(sweep: Path, tmp_path: Path) -> None:
    [talk] = talking.conversations([str(tmp_path / "a")], system="0 1 2")
    asked: list[object] = []
    talk.voice.live.backend.codec.encode = lambda prompt: (  # type: ignore[method-assign]
        asked.append(prompt) or [1]  # type: ignore[func-returns-value]
    )
    list(talk.answer("1 + 2", DRAWN))
    talk.voice.raw = True
    talk.reset()
    list(talk.answer("1 + 2", DRAWN))
    chat = ({"role": "system", "content": "0 1 2"}, {"role": "user", "content": "1 + 2"})
    assert asked == [chat, "0 1 2\n\n1 + 2"]


def test_a_chat(sweep: Path, tmp_path: Path) -> None:
    options = ("--temperature", 1.5, "--max-tokens", 8)
    once = run("chat", tmp_path / "a", *options, said="1 + 2\n3\n")
    assert once.exit_code == 0, once.output
    first, second = once.stdout.splitlines()
    assert first
    again = run("chat", tmp_path / "a", *options, said="1 + 2\n/reset\n\n/what\n1 + 2\n/quit\n3\n")
    assert again.stdout.splitlines() == [first, first]
    assert "there are /reset and /quit" in again.stderr
    assert again.stderr.startswith("talking with a; /reset starts a new conversation, /quit")
    fresh = run("chat", tmp_path / "a", *options, said="3\n")
    assert fresh.stdout.splitlines() != [second]


def test_an_answer_can_be_stopped(sweep: Path, tmp_path: Path) -> None:
    [talk] = talking.conversations([str(tmp_path / "a")])
    before = threading.active_count()
    answer = talk.answer("1 + 2", Sampling(temperature=1.5, max_tokens=100_000))
    first = next(answer)
    answer.close()
    assert threading.active_count() <= before  # an earlier test's thread may have ended meanwhile
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"] == first


def test_ctrl_c_stops_all_that_would_answer(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(talk: talking.Conversation, text: str, _sampling: Sampling) -> Iterator[str]:
        asked.append(talk.voice.name)
        yield "I say"
        if text == "stop me":
            raise KeyboardInterrupt

    monkeypatch.setattr(talking.Conversation, "answer", answer)
    monkeypatch.setattr(
        "merganser.cli.chat._mark_cut_off", lambda *_: None
    )  # the answers here have no end
    found = run(*("chat", tmp_path / "a", "--with", tmp_path / "b"), said="stop me\nhello\n/quit\n")
    assert found.exit_code == 0, found.output
    assert asked == ["a", "a", "b"]


def test_a_prompt_beyond_the_context_is_one_line(sweep: Path, tmp_path: Path) -> None:
    config = tmp_path / "a" / "config.json"
    facts = json.loads(config.read_text())
    facts["max_position_embeddings"] = 12
    config.write_text(json.dumps(facts))
    fits = run("generate", tmp_path / "a", "1 + 2", "--raw", "--max-tokens", 2)
    assert fits.exit_code == 0, fits.output
    found = run("generate", tmp_path / "a", "1 + 2 " * 9, "--raw")
    assert found.exit_code == 3
    assert_one_line(found.stderr.strip(), "tokens, and the model's context is 12: 1 + 2 1 + 2")
    facts["rope_parameters"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    config.write_text(json.dumps(facts))
    longer = run("generate", tmp_path / "a", "1 + 2 " * 9, "--raw", "--max-tokens", 2)
    assert longer.exit_code == 0, longer.output


def test_an_answer_ends_where_the_context_is_full(sweep: Path, tmp_path: Path) -> None:
    config = tmp_path / "a" / "config.json"
    facts = json.loads(config.read_text()) | {"max_position_embeddings": 9}
    config.write_text(json.dumps(facts))
    found = run("generate", tmp_path / "a", "1 + 2", "--raw")
    assert found.exit_code == 0, found.output
    assert "tokens; the model's context is full]" in found.stderr


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "classifies and does not generate"),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}},
            "needs its own code",
        ),
    ],
)
def test_a_model_that_cannot_generate_says_why(
    sweep: Path, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    found = run("generate", tmp_path / "a", "1 + 2")
    assert found.exit_code == 3
    assert_one_line(found.stderr.strip().splitlines()[-1], reason)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("{sweep}", "#w=0.7"),
        ("{sweep}#w=0.3,0.7", "several points"),
        ("{sweep}#w=0.4", "no point"),
        ("{sweep}#nothing", "no such point"),
        ("{folder}/nowhere.yml#w=1", "nowhere.yml"),
        ("{folder}/nowhere", "nowhere"),
    ],
)
def test_what_is_no_model(sweep: Path, tmp_path: Path, model: str, told: str) -> None:
    found = run("generate", model.format(sweep=sweep, folder=tmp_path), "1")
    assert found.exit_code in (2, 3), found.output
    assert_one_line(found.stderr.strip(), told)


def test_no_template_no_system_prompt(sweep: Path, tmp_path: Path) -> None:
    found = run("generate", tmp_path / "a", "1", "--system", "2", "--raw")
    assert found.exit_code == 2
    assert_one_line(found.stderr.strip(), "system prompt")
    assert run("generate", tmp_path / "a", " ").exit_code == 2
