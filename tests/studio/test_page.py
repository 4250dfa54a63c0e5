"""The page in a real browser, through all of its screens."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
import merganser
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

TYPED = """merge_method: linear
models:
- {model: a, parameters: {weight: 0.4}}
- {model: b, parameters: {weight: 0.6}}
"""

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
    merge(folder / "merged_before", folder)
    readme = folder / "merged_before" / "README.md"
    readme.write_text(f"{readme.read_text()}\n# {HOSTILE}\n\n[x](javascript:alert(1)) {HOSTILE}\n")
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


def merge(out: Path, folder: Path) -> None:
    """Write a merge of the folder's models."""
    models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in "ab"]
    merganser.merge({"merge_method": "linear", "models": models}, out)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[browser.Browser]:
    """The page in a browser, opened."""
    with browser.browser() as made:
        made.look(1280, 900)
        made.open(address)
        made.until("document.querySelector('#recipe')?.value")
        made.until("document.querySelector('.tiles')")
        yield made
        assert made.problems == []
        others = [url for url in made.requests if not url.startswith((address, "data:"))]
        assert others == []  # no request leaves the machine, nor goes to another of its servers


def find(text: str) -> str:
    """A button by its text or name."""
    wanted = json.dumps(text)
    return (
        f"[...document.querySelectorAll('button')].find(b => b.checkVisibility() && "
        f"[b.textContent, b.getAttribute('aria-label')].includes({wanted}))"
    )


def click(page: browser.Browser, text: str) -> None:
    page.until(f"{find(text)} && !{find(text)}.disabled")
    page.run(f"{find(text)}.click()")


def go(page: browser.Browser, screen: str) -> None:
    page.run(f"void (location.hash = '#{screen}')")
    page.until(f"document.getElementById('main').dataset.screen === '{screen}'")


def write(page: browser.Browser, selector: str, value: str, event: str = "input") -> None:
    page.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
        f"e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}')); }})()"
    )


def labelled(page: browser.Browser, label: str, value: str, event: str = "input") -> None:
    """Set the control with a label."""
    find_control = (
        f"[...document.querySelectorAll('main label')].find(l => l.textContent === {json.dumps(label)}"
        " && l.checkVisibility()).control"
    )
    page.run(
        f"(() => {{ const e = {find_control}; e.value = {json.dumps(value)}; "
        f"e.dispatchEvent(new Event('{event}')); }})()"
    )


def press(page: browser.Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
        )


REACHABLE = (
    "[...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex=\"0\"]')]"
    ".filter(e => e.checkVisibility() && !e.disabled)"
)


def check(page: browser.Browser, *, keyboard: bool = False) -> None:
    """Every screen shows texts as text, names its controls, fits a narrow window, can be used by keyboard,
    and has no violation of accessibility in light, dark and narrow."""
    assert page.run("document.querySelectorAll('main img, main script, main b').length") == 0
    assert "hacked" not in page.run("document.title")
    nameless = page.run(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => "
        "!e.labels?.length && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
    )
    assert nameless == []
    for width, dark in ((1280, False), (1280, True), (360, False), (360, True)):
        page.look(width, 900, dark=dark)
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), width
        violations(page, f"{width} {'dark' if dark else 'light'}")
    page.look(1280, 900)
    if keyboard:
        by_keyboard(page)


def violations(page: browser.Browser, where: str) -> None:
    """Check the page with axe-core, where there is a copy of it."""
    file = os.environ.get("MERGANSER_AXE")
    if file is None:
        return
    if not page.run("typeof axe === 'object'"):
        page.run(Path(file).read_text(encoding="utf-8") + "; void 0")
    found = page.run(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => "
        "v.id + ': ' + v.nodes.slice(0, 3).map(n => n.target + ' ' + n.failureSummary).join(' | ')))"
    )
    assert found == [], where


def by_keyboard(page: browser.Browser) -> None:
    """Reach everything by Tab, and see where the focus is."""
    count = page.run(f"{REACHABLE}.length")
    page.run("void (document.activeElement.blur(), window.seen = new Set(), window.bare = [])")
    page.run("void (document.querySelector('.skip').focus(), seen.add(document.activeElement))")
    note = (
        "(() => { const e = document.activeElement; seen.add(e); const s = getComputedStyle(e), "
        "p = getComputedStyle(e.closest('.code') ?? e); "
        "if (e !== document.body && s.outlineStyle === 'none' && p.outlineStyle === 'none' "
        "&& !(e instanceof SVGElement)) "
        "bare.push(e.outerHTML.slice(0, 200)); })()"
    )
    for _ in range(count + 5):
        press(page, "Tab", 9)
        page.run(note)
    missed = page.run(f"{REACHABLE}.filter(e => !seen.has(e)).map(e => e.outerHTML.slice(0, 200))")
    assert missed == []
    assert page.run("bare") == []


def test_the_page_is_ready_soon(address: str) -> None:
    with browser.browser() as page:
        began = time.monotonic()
        page.open(address)
        page.until("document.querySelector('#recipe')?.value && document.querySelector('.slider')")
        assert time.monotonic() - began < 10
        page.until("document.querySelector('.tiles')")
        assert page.bytes < 2_000_000


def test_blend(page: browser.Browser) -> None:
    go(page, "blend")
    check(page, keyboard=True)
    write(page, "input[type=range]", "0.8")
    page.until("document.querySelector('#recipe').value.includes('weight: 0.8')")
    assert "weight: 0.2" in page.run("document.querySelector('#recipe').value")
    text = "merge_method: linear\nmodels:\n- {model: b, parameters: {weight: 0.3}}\n- {model: a}\n"
    write(page, "#recipe", text + "parametres: {}\n")
    page.until("document.querySelector('#recipe-problem').textContent.startsWith('Line 5')")
    check(page)
    write(page, "#recipe", text.replace("model: a", "model: a, parameters: {weight: 0.7}"))
    page.until("document.querySelector('input[type=range]').value === '0.3'")
    page.until("document.querySelector('#recipe-problem').textContent === ''")
    click(page, "Blend now")
    page.until("document.querySelectorAll('.bars tr').length === 2", 120)


def test_a_curve_is_drawn_by_keyboard(page: browser.Browser) -> None:
    go(page, "blend")
    write(
        page,
        "#recipe",
        TYPED,
    )
    page.until(
        "document.querySelector('#recipe-problem').textContent === '' && "
        "document.querySelector('input[type=range]').value === '0.4'"
    )
    click(page, "By layer: a curve for a")
    page.until("document.querySelectorAll('.handle').length === 5")
    page.run("void document.querySelector('.handle').focus()")
    press(page, "ArrowRight", 39)
    press(page, "ArrowUp", 38)
    press(page, "Home", 36)
    press(page, "ArrowUp", 38)
    page.until(
        "document.querySelector('#recipe').value.includes('weight: [0.4, 0.01, 0.4, 0.4, 0.4]')"
    )
    click(page, "Add a point: a")
    page.until("document.querySelectorAll('.handle').length === 6")
    page.until(
        "document.querySelector('.handle').getAttribute('aria-valuetext').includes('point 1 of 6')"
    )
    check(page, keyboard=True)
    click(page, "Even: one value for all layers, a")
    page.until("document.querySelectorAll('.handle').length === 0")


def test_talk(page: browser.Browser) -> None:
    go(page, "talk")
    write(page, "main textarea", "1 + 2")
    write(page, "input[type=number][max='100000']", "8", "change")
    click(page, "Ask")
    page.until("document.querySelectorAll('[aria-label=History] tbody tr').length === 1", 120)
    answers = page.run("[...document.querySelectorAll('.answer pre')].map(e => e.textContent)")
    assert len(answers) == 3
    assert len(set(answers)) == 3
    assert all(answers)
    click(page, "Pin")
    page.run("document.querySelector('input[type=range]').value = 0.9")
    page.run("document.querySelector('input[type=range]').dispatchEvent(new Event('input'))")
    click(page, "Ask")
    page.until("document.querySelectorAll('[aria-label=History] tbody tr').length === 2")
    assert page.run("document.querySelectorAll('.answer').length") == 4
    pinned = page.run("[...document.querySelectorAll('.answer.pin pre')].map(e => e.textContent)")
    assert pinned == answers[:1]
    page.run(
        "[...document.querySelectorAll('button')].find(b => b.textContent === 'Back to this').click()"
    )
    check(page, keyboard=True)


def test_a_study_is_read(page: browser.Browser) -> None:
    go(page, "study")
    page.until("document.querySelectorAll('circle.mark[role=button]').length === 2")
    before = page.run("document.querySelectorAll('.answer').length")
    page.run("document.querySelector('circle.mark[aria-pressed=false]').focus()")
    press(page, "Enter", 13)
    page.until(f"document.querySelectorAll('.answer').length === {before + 1}")
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert HOSTILE in page.run("document.querySelector('.answer pre').textContent")
    check(page, keyboard=True)


def test_a_study_grows_stops_and_goes_on(page: browser.Browser, folder: Path) -> None:
    go(page, "study")
    page.until("document.querySelector('.form')")
    page.run("void (document.querySelector('.form').open = true)")
    labelled(page, "Step", "0.02", "change")
    labelled(page, "Tokens at most", "64", "change")
    page.until("document.querySelector('.summary').textContent.includes('41 merges')")
    click(page, "Multi-SLERP")
    page.until("document.querySelector('.summary').textContent.includes('82 merges')")
    click(page, "Multi-SLERP")
    page.until("document.querySelector('.summary').textContent.includes('41 merges')")
    labelled(page, "Name, below the studio's folder", "swept")
    check(page)
    click(page, "Run the study")
    page.until("document.querySelectorAll('circle.mark[role=button]').length > 2", 120)
    early = page.run("document.querySelectorAll('circle.mark[role=button]').length")
    page.until(f"document.querySelectorAll('circle.mark[role=button]').length > {early}", 120)
    click(page, "Stop")
    page.until("document.querySelector('.state').textContent.startsWith('Stopped')")
    assert (folder / "swept" / "results.partial.json").is_file()
    check(page)
    click(page, "Resume")
    page.until("document.querySelectorAll('circle.mark[role=button]').length === 43", 240)
    page.until("!document.querySelector('progress')", 60)
    assert (folder / "swept" / "results.json").is_file()
    assert not (folder / "swept" / "results.partial.json").exists()
    page.until("document.querySelector('a.button')?.textContent === 'Open the report'")
    click(page, "Blend a")
    page.until("document.getElementById('main').dataset.screen === 'blend'")


def test_differences(page: browser.Browser) -> None:
    go(page, "differences")
    check(page, keyboard=True)
    labelled(page, "Third", "merged_before", "change")
    labelled(page, "Round both to", "bfloat16", "change")
    click(page, "Compare")
    page.until("document.querySelectorAll('main .chips button').length === 3", 120)
    assert page.run("document.querySelectorAll('table.heat td').length") > 4
    assert "Both rounded to bfloat16" in page.run("document.querySelector('main').textContent")
    page.run("document.querySelectorAll('main .chips button')[2].click()")
    page.until("document.querySelectorAll('main .chips button')[2].ariaPressed === 'true'")
    check(page)


def test_publish(page: browser.Browser, folder: Path) -> None:
    go(page, "publish")
    check(page, keyboard=True)
    labelled(page, "Merge", "merged_before", "change")
    page.until("document.querySelector('.card h2, .card h1')")
    assert HOSTILE in page.run("document.querySelector('.card').textContent")
    labelled(page, "Repository", "org/name")
    page.until("document.querySelector('.repository').textContent.startsWith('org/name')")
    click(page, "Show what will be public")
    page.until("document.querySelector('main table tbody th')?.textContent", 120)
    assert "started without --network" in page.run("document.querySelector('main').textContent")
    check(page)


def test_a_blend_is_written(page: browser.Browser, folder: Path) -> None:
    go(page, "blend")
    write(
        page,
        "#recipe",
        TYPED,
    )
    page.until(
        "document.querySelector('#recipe-problem').textContent === '' && "
        "document.querySelector('input[type=range]').value === '0.4'"
    )
    labelled(page, "Name, below the studio's folder", "written")
    click(page, "Write")
    page.until(
        "[...document.querySelectorAll('#jobs li')].some(e => e.textContent.includes('write written: done'))",
        120,
    )
    assert (folder / "written" / "config.json").is_file()
    check(page)


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
        assert 0 < marks <= len(newer)
        problems = exported(page, "Export as problem set")
        assert problems == [{"id": "1", "prompt": "1 + 2", "answer": newer}]
        check(page)
        assert page.problems == []
