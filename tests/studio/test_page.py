"""The page in a real browser, through all of its screens."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
from merganser.evaluation import samples
from merganser.evaluation.samples import Sample
from merganser.evaluation.statistics import Score
from merganser.results import scores
from merganser.results.scores import Entry, Results
from merganser.serving.limits import Limits
from merganser.serving.server import Address
from merganser.studio.running import make_server
from merganser.study.live_model import LiveModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.program() is None, reason="no Chromium is installed"),
]

HOSTILE = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"


def write_study(folder: Path) -> None:
    """An evaluated study whose texts are markup."""
    entries = []
    for number, role in enumerate(("expert", "point")):
        name = f"<b>{role}</b>"
        file = f"samples/{role}.jsonl"
        samples.write(
            [Sample("t", HOSTILE, 0, HOSTILE, HOSTILE, 3, "stop", {"exact": 1.0})], folder / file
        )
        score = Score(mean=0.25 + number / 2, error=0.1, problems=4, low=0.1, high=0.9)
        other = Score(mean=20.0 - number, error=0.5, problems=4, low=19.0, high=21.0)
        found = {"exact": score, "tokens": other}
        entries.append(
            Entry(name, role, model="a" if number == 0 else None, scores=found, samples=file)
        )  # type: ignore[arg-type]
    directions = {"exact": "max", "tokens": "min"}
    scores.write(Results(HOSTILE, "text", directions, {}, tuple(entries)), folder)  # type: ignore[arg-type]


def write_hostile_model(folder: Path) -> None:
    """A model most of whose digits are markup."""
    shutil.copytree(folder / "b", folder / "loud")
    file = folder / "loud" / "tokenizer.json"
    data = json.loads(file.read_text())
    markup = HOSTILE.replace(" ", "Ġ")  # as a byte-level vocabulary writes it
    data["model"]["vocab"] = {
        markup + word if word in "03456789" else word: number
        for word, number in data["model"]["vocab"].items()
    }
    file.write_text(json.dumps(data))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A studio on loopback."""
    write_study(folder / "study")
    (folder / "<b>bold<i>.yml").write_text(HOSTILE)
    (folder / "a" / "README.md").write_text(f"# {HOSTILE}\n\n[x](javascript:alert(1)) {HOSTILE}\n")
    write_hostile_model(folder)
    ready = threading.Event()
    urls: list[str] = []

    def tell(url: str) -> None:
        urls.append(url)
        ready.set()

    server = make_server(folder, Address(port=0), LiveModel(), Limits(turn=0.1), tell)
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield urls[0]
    server.stop()
    thread.join(30)
    assert not thread.is_alive()


def click(page: browser.Browser, text: str) -> None:
    found = (
        f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(text)})"
    )
    page.run(f"{found}.click()")


def go(page: browser.Browser, screen: str) -> None:
    page.run(f"void (location.hash = '#{screen}')")
    page.until(f"document.getElementById('main').dataset.screen === '{screen}'")


def write(page: browser.Browser, selector: str, value: str, event: str = "input") -> None:
    page.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
        f"e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}')); }})()"
    )


def check(page: browser.Browser) -> None:
    """No screen is wider than a narrow window, has an element of a text, or a control without a name."""
    assert page.run("document.querySelectorAll('main img, main script, main b').length") == 0
    assert "hacked" not in page.run("document.title")
    nameless = page.run(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => "
        "!e.labels?.length && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
    )
    assert nameless == []
    page.look(360, 800)
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    page.look(1280, 900)


def test_every_screen(address: str, folder: Path) -> None:
    with browser.browser() as page:
        page.look(1280, 900)
        began = time.monotonic()
        page.open(address)
        page.until("document.querySelector('#recipe')?.value")
        assert time.monotonic() - began < 20
        page.until("document.querySelector('.facts')")
        check(page)

        # A slider changes the text, and the text the sliders.
        write(page, "input[type=range]", "0.8")
        page.until("document.querySelector('#recipe').value.includes('weight: 0.8')")
        assert "weight: 0.2" in page.run("document.querySelector('#recipe').value")
        text = (
            "merge_method: linear\nmodels:\n- {model: b, parameters: {weight: 0.3}}\n- {model: a}\n"
        )
        write(page, "#recipe", text + "parametres: {}\n")
        page.until("document.querySelector('#recipe-problem').textContent.startsWith('Line 5')")
        write(page, "#recipe", text.replace("model: a", "model: a, parameters: {weight: 0.7}"))
        page.until("document.querySelector('input[type=range]').value === '0.3'")
        page.until("document.querySelector('#recipe-problem').textContent === ''")

        # The blend and its models answer as OpenAI's API does.
        go(page, "talk")
        write(page, "textarea", "1 + 2")
        write(page, "input[type=number][max='100000']", "8", "change")
        click(page, "Ask")
        page.until("document.querySelectorAll('tbody tr').length === 1", 120)
        answers = page.run("[...document.querySelectorAll('.answer pre')].map(e => e.textContent)")
        assert len(answers) == 3
        assert len(set(answers)) == 3
        assert all(answers)
        click(page, "Pin")
        page.run("document.querySelector('input[type=range]').value = 0.9")
        page.run("document.querySelector('input[type=range]').dispatchEvent(new Event('input'))")
        click(page, "Ask")
        page.until("document.querySelectorAll('tbody tr').length === 2")
        assert page.run("document.querySelectorAll('.answer').length") == 4
        pinned = page.run(
            "[...document.querySelectorAll('.answer.pin pre')].map(e => e.textContent)"
        )
        assert pinned == answers[:1]
        click(page, "Back to this")
        check(page)

        go(page, "study")
        page.until("document.querySelectorAll('circle.mark').length === 2")
        before = page.run("document.querySelectorAll('.answer').length")
        page.run("document.querySelector('circle.mark[aria-pressed=false]').focus()")
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
            )
        page.until(f"document.querySelectorAll('.answer').length === {before + 1}")
        assert HOSTILE in page.run("document.querySelector('.answer pre').textContent")
        check(page)

        go(page, "differences")
        click(page, "Compare")
        page.until("document.querySelector('table.heat td')", 120)
        check(page)

        go(page, "publish")
        write(page, "main select", "a", "change")
        page.until("document.querySelector('.card h2, .card h1')")
        assert HOSTILE in page.run("document.querySelector('.card').textContent")
        check(page)

        go(page, "blend")
        write(page, "main input[type=text]", "written")
        click(page, "Write")
        page.until(
            "[...document.querySelectorAll('#jobs li')].some(e => e.textContent.includes('write written: done'))",
            120,
        )
        assert (folder / "written" / "config.json").is_file()
        check(page)

        assert page.problems == []
        assert page.bytes < 2_000_000
        own = [url for url in page.requests if url.startswith(address)]
        assert [
            url for url in page.requests if url not in own and not url.startswith("data:")
        ] == []


def texts(page: browser.Browser, selector: str) -> list[str]:
    """The texts of elements."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    return list(page.run(found))


def exported(page: browser.Browser, name: str) -> list[dict[str, Any]]:
    """The lines of a file that a button saves."""
    page.run(
        "window.saved = null; URL.createObjectURL = (blob) => "
        "{ blob.text().then((text) => { window.saved = text; }); return 'data:,'; };"
    )
    click(page, name)
    page.until("window.saved !== null")
    return [json.loads(line) for line in page.run("window.saved").splitlines()]


def test_talk_compares_answers_also_blind(address: str) -> None:
    """A model whose words are markup answers too."""
    with browser.browser() as page:
        page.look(1280, 900)
        page.open(address + "#talk")
        page.until("document.getElementById('main')?.dataset.screen === 'talk'")
        page.until("document.querySelector('input[type=range]')")
        write(page, "textarea", "1 + 2")
        write(page, "input[type=number][max='100000']", "8", "change")
        write(page, "select[aria-label='Another model as a column']", "loud", "change")

        blind = (
            "[...document.querySelectorAll('.check')].find(e => e.textContent.startsWith('Blind'))"
        )
        page.run(f"{blind}.click()")
        click(page, "Ask")
        page.until("document.querySelectorAll('.answer footer button').length === 4", 120)
        assert texts(page, ".answer h3") == [f"Answer {letter}" for letter in "ABCD"]
        assert page.run("getComputedStyle(document.getElementById('queue')).visibility") == "hidden"
        assert not texts(page, "#main tbody tr")
        answers = texts(page, ".answer pre")
        assert any("<script>" in answer for answer in answers)
        check(page)
        page.run("document.querySelectorAll('.answer footer button')[1].click()")
        page.until(
            "document.querySelectorAll('.answer h3')[1].textContent.startsWith('Answer B · ')"
        )
        titles = [title.split(" · ", 1)[1] for title in texts(page, ".answer h3")]
        assert {"a", "b", "loud"} < set(titles)
        assert (
            page.run("getComputedStyle(document.getElementById('queue')).visibility") == "visible"
        )
        assert sorted(texts(page, "#choices tbody td:nth-child(2)")) == ["0", "0", "0", "1"]
        click(page, "Ask")
        page.until("document.querySelectorAll('.answer footer button').length === 4", 120)
        click(page, "None is better")
        page.until("document.querySelectorAll('[aria-label=History] tbody tr').length === 2")
        assert set(texts(page, "#choices tbody td:nth-child(3)")) == {"2"}
        check(page)

        first, second = exported(page, "Export as JSONL")
        name = titles[1] if titles[1] in ("a", "b", "loud") else "this blend"
        assert first["choice"]["chosen"] == name
        assert (
            set(first["choice"]["shown"])
            == {"a", "b", "loud", "this blend"}
            == set(first["answers"])
        )
        assert second["choice"]["chosen"] is None

        # Two answers of the blend, word by word.
        page.run(f"{blind}.click()")
        write(page, "input[type=range]", "0.9")
        page.until("document.querySelector('fieldset input[type=number]').value === '0.9'")
        click(page, "Ask")
        page.until("document.querySelectorAll('[aria-label=History] tbody tr').length === 3", 120)
        page.run("document.querySelectorAll('.answer.this footer button')[0].click()")
        for number in (3, 1):
            page.run(f"document.querySelector('[aria-label=\"Compare number {number}\"]').click()")
        click(page, "Compare the chosen")
        older, newer = texts(page, ".answer pre")
        entries = exported(page, "Export as JSONL")
        assert [entries[i]["answers"]["this blend"]["text"] for i in (0, 2)] == [older, newer]
        assert older != newer
        marks = page.run("document.querySelectorAll('.answer mark').length")
        assert 0 < marks <= len(newer.split())
        problems = exported(page, "Export as problem set")
        assert problems == [{"id": "1", "prompt": "1 + 2", "answer": newer}]
        check(page)
        assert page.problems == []
