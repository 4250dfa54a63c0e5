"""What the page asks its server; and what others may not."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import pytest
import yaml

from merganser.planning import make_plan
from merganser.results import scores
from merganser.results.scores import Entry, Results
from merganser.studio.commands import Command
from merganser.studio.jobs import Jobs
from merganser.studio.routes import HEADER, OPEN, PAGE
from studio_client import RECIPE, Client


def test_the_page_is_small_and_asks_nobody_else(client: Client) -> None:
    size = 0
    for name, kind in PAGE.items():
        reply = client.get(f"/studio/page/{name}")
        assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        text = reply.body.decode()
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text
        size += len(reply.body)
    assert size < 2_000_000
    assert client.get("/").body == client.get("/studio/page/index.html").body
    assert client.get("/studio/page/..%2fstudio.py").status == 404


def test_all_files_of_the_page_are_served() -> None:
    from importlib import resources

    found = {each.name for each in resources.files("merganser.studio").joinpath("page").iterdir()}
    assert found == set(PAGE)


def test_a_folder_is_listed(client: Client) -> None:
    found = client.get("/studio/library").data
    assert found["models"] == ["a", "b"]
    assert found["problems"] == ["problems.jsonl"]
    assert {"exact", "tokens"} <= set(found["scorers"])
    listed = {each["name"]: each for each in client.get("/studio/methods").data["methods"]}
    assert listed["ties"]["base"] == "required"


def test_a_recipe_is_planned_as_by_the_command_line(client: Client, folder: Path) -> None:
    found = client.post("/studio/blend", {"text": RECIPE, "live": True}).data
    file = folder / "recipe.yml"
    file.write_text(RECIPE)
    plan = make_plan(file)
    file.unlink()
    assert found["error"] is None
    assert found["plan"]["digest"] == plan.digest
    assert found["plan"]["output_bytes"] == plan.output_bytes
    assert found["model"] == f"blend-{plan.digest[:12]}"
    assert found["controls"]["method"] == "linear"
    assert [each["parameters"] for each in found["controls"]["models"]] == [
        {"weight": 0.25},
        {"weight": 0.75},
    ]
    assert client.blends.find(found["model"]).plan.digest == plan.digest
    again = client.post("/studio/blend", {"text": RECIPE + "# the same\n", "live": True}).data
    assert again["model"] == found["model"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (RECIPE.replace("weight: 0.75", "weigth: 1"), 6, "did you mean 'weight'"),
        (RECIPE.replace("linear", "tis"), 1, "did you mean 'ties'"),
        (RECIPE.replace("model: b", "model: ../secret"), 5, "is not below"),
        (RECIPE.replace("model: b", "model: way_out"), 5, "is not below"),
        (RECIPE.replace("model: b", "model: a+../secret"), 5, "is not below"),
        (RECIPE.replace("model: b", "model: org/model"), 5, "is not below"),
        (RECIPE.replace("model: b", "model: b@main"), 5, "is not below"),
        (RECIPE + "base_model: /etc\n", 7, "is not below"),
        (RECIPE + "tokenizer_source: ../secret\n", 7, "is not below"),
        (RECIPE.replace("model: b", "run: ../secret\n    steps: [1]"), 5, "is not below"),
        ("models: [", 1, "YAML"),
    ],
)
def test_what_is_wrong_has_its_line(client: Client, text: str, line: int, message: str) -> None:
    found = client.post("/studio/blend", {"text": text, "live": True}).data
    assert message in found["error"]["message"]
    assert found["error"]["line"] == line
    assert found["plan"] is None
    assert found["model"] is None


@pytest.mark.parametrize("place", ["../secret", "way_out", "/etc", "..", "a/../../secret", "\0"])
def test_nothing_outside_of_the_folder_is_read(client: Client, place: str) -> None:
    from urllib.parse import quote

    for route in ("card", "file", "study", "answers", "report"):
        reply = client.get(f"/studio/{route}?place={quote(place)}")
        assert reply.status in (400, 404), route
        assert b"secret\n" not in reply.body
    for asked in (
        {"kind": "diff", "first": "a", "second": place},
        {"kind": "publish", "folder": place, "repository": "org/name"},
        {"kind": "merge", "text": RECIPE, "name": place},
        {"kind": "again", "name": place},
        {"kind": "report", "name": place},
    ):
        assert client.post("/studio/jobs", asked).status == 400
    assert client.post("/studio/save", {"text": RECIPE, "name": f"{place}/x"}).status == 400
    reply = client.post("/v1/completions", {"model": place, "prompt": "1", "max_tokens": 1})
    assert reply.status in (400, 404)


def test_all_places_that_are_not_the_studios_get_one_answer(client: Client) -> None:
    answers = set()
    for place in (
        "../secret",
        "../nowhere",
        "/etc",
        "/nowhere/at/all",
        "way_out",
        "missing",
        "..",
        "org/name",
    ):
        for kind in ("study", "answers", "report", "file", "card"):
            suffix = ".yml" if kind == "file" else ""
            reply = client.get(f"/studio/{kind}?place={place}{suffix}")
            answers.add(
                (kind, reply.status, reply.body.decode().replace(place, "X").replace("X.yml", "X"))
            )
        posted = client.post(
            "/studio/blend", {"text": RECIPE.replace("model: b", f"model: {place}")}
        )
        answers.add(("blend", posted.status, posted.body.decode().replace(place, "X")))
    by_kind = {kind: sum(answer[0] == kind for answer in answers) for kind, _, _ in answers}
    assert set(by_kind.values()) == {1}, answers


def test_pages_of_other_sites_can_change_nothing(client: Client) -> None:
    asked = {"text": RECIPE, "name": "stolen"}
    for headers in (
        {HEADER: ""},
        {"origin": "http://evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        assert client.post("/studio/save", asked, **headers).status == 403
    assert client.post("/studio/save", asked, content_type="text/plain").status == 415
    assert client.post("/studio/save", asked, host="evil.example").status == 421
    assert client.get("/studio/library", sec_fetch_site="cross-site").status == 403
    assert not (client.library.root / "stolen.yml").exists()
    good = {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}
    assert client.post("/studio/save", asked, **good).status == 200
    (client.library.root / "stolen.yml").unlink()


def test_a_key_is_asked_for(folder: Path) -> None:
    made = Client(folder, keys=("right",))
    try:
        for path in OPEN:
            assert made.get(path).status == 200
        assert made.get("/studio/library").status == 401
        assert made.post("/studio/blend", {"text": RECIPE}).status == 401
        assert made.get("/studio/library", authorization="Bearer right").status == 200
    finally:
        made.close()


def test_recipes_are_saved_and_never_overwritten(client: Client) -> None:
    root = client.library.root
    found = client.post("/studio/save", {"text": RECIPE, "name": "mine"}).data
    assert found == {"saved": "mine.yml", "command": "merganser plan mine.yml"}
    assert (root / "mine.yml").read_text() == RECIPE
    assert client.post("/studio/save", {"text": RECIPE, "name": "mine"}).status == 200
    reply = client.post("/studio/save", {"text": RECIPE + "\n", "name": "mine"})
    assert reply.status == 400
    assert "choose another name" in reply.data["error"]["message"]
    assert client.get("/studio/file?place=mine.yml").data == {"text": RECIPE}
    for name in ("-x", ".x", "x/../y", "/x", "x y", "way_out/x", "a\nb", "<b>"):
        assert client.post("/studio/save", {"text": RECIPE, "name": name}).status == 400
    assert client.post("/studio/jobs", {"kind": "merge", "text": RECIPE, "name": "a"}).status == 400
    (root / "mine.yml").unlink()


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_server(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/where/mine.yml")

    monkeypatch.setattr(Path, "open", refuse)
    reply = client.post("/studio/save", {"text": RECIPE, "name": "mine"})
    assert reply.status == 403
    assert reply.data["error"]["message"] == "mine.yml: permission denied"


def test_a_report_is_a_stranger_to_the_server(client: Client) -> None:
    study = client.library.root / "study"
    study.mkdir(exist_ok=True)
    (study / "report.html").write_text("<script>alert(1)</script>")
    reply = client.get("/studio/report?place=study")
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert "connect-src" not in policy
    (study / "report.html").unlink()


def test_a_model_may_not_link_out_of_the_folder(client: Client) -> None:
    root = client.library.root
    linked = root / "linked"
    linked.mkdir()
    for file in (root / "a").iterdir():
        (linked / file.name).symlink_to(file)
    text = RECIPE.replace("model: b", "model: linked")
    assert client.post("/studio/blend", {"text": text}).data["error"] is None
    (linked / "config.json").unlink()
    (linked / "config.json").symlink_to(root.parent / "secret" / "config.json")
    found = client.post("/studio/blend", {"text": text, "live": True}).data
    assert "is not below" in found["error"]["message"]
    for file in linked.iterdir():
        file.unlink()
    linked.rmdir()


def test_a_point_of_a_study_becomes_the_blend(client: Client) -> None:
    folder = client.library.root / "points"
    folder.mkdir()
    sweep = {
        "name": "p{{ w }}", "sweep": {"w": [0.3, 0.6]}, "merge_method": "linear",
        "models": [
            {"model": "a", "parameters": {"weight": "{{ w }}"}},
            {"model": "b", "parameters": {"weight": "{{ 1 - w }}"}},
        ],
    }  # fmt: skip
    entries = (Entry("a", "expert", model="a"), Entry("p0.6", "point", values={"w": 0.6}))
    scores.write(Results("s", yaml.safe_dump(sweep), {"exact": "max"}, {}, entries), folder)
    text = client.get("/studio/recipe?place=points&name=p0.6").data["text"]
    found = client.post("/studio/blend", {"text": text}).data
    assert found["error"] is None
    weights = [each["parameters"]["weight"] for each in found["controls"]["models"]]
    assert weights == pytest.approx([0.6, 0.4])
    text = client.get("/studio/recipe?place=points&name=a").data["text"]
    assert client.post("/studio/blend", {"text": text}).data["error"] is None
    assert client.get("/studio/recipe?place=points&name=none").status == 400
    assert client.get("/studio/recipe?place=../secret&name=a").status == 400
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_names_are_data(client: Client) -> None:
    name = "<img src=x onerror=alert(1)>"
    (client.library.root / f"{name}.yml").write_text(RECIPE)
    reply = client.get("/studio/library")
    assert f"{name}.yml" in reply.data["recipes"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    (client.library.root / f"{name}.yml").unlink()


def test_nonsense_is_the_clients_fault(client: Client) -> None:
    for path in ("blend", "save", "jobs"):
        for data in (None, [], {}, {"kind": "rm"}, {"text": 3}, {"kind": "merge", "extra": 1}):
            assert client.post(f"/studio/{path}", data).status == 400
    assert client.get("/studio/card").status == 400
    assert client.get("/studio/jobs/77").status == 404
    assert client.post("/studio/jobs/77/stop", {}).status == 404


def test_a_command_runs_and_is_shown(folder: Path) -> None:
    async def run() -> None:
        jobs = Jobs(folder)
        job = await jobs.start(Command("version", ["--version"]))
        assert job.task is not None
        await job.task
        described = job.describe()
        assert described["state"] == "done"
        assert shlex.split(described["command"]) == ["merganser", "--version"]
        assert "merganser" in described["lines"][0].lower()
        slow = await jobs.start(Command("slow", ["chat", "nowhere"]))
        jobs.stop(slow)
        await jobs.close()
        assert slow.state == "stopped"
        assert slow.process is not None
        assert slow.process.returncode is not None

    asyncio.run(run())
