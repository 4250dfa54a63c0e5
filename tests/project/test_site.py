"""The documentation's site: it builds strictly, has every name and page, and loads nothing from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import merganser

ROOT = Path(__file__).parents[2]
BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict"]
QUIET = {"NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [*BUILD, "--config-file", str(root / "mkdocs.yml"), "--site-dir", str(out)]
    return subprocess.run(command, cwd=root, env=QUIET, capture_output=True, text=True)


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h\d id="merganser\.(\w+)"', page))
    assert shown == {name for name in dir(merganser) if not name.startswith("_")}


def test_the_reference_links_what_docstrings_refer_to(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    assert '<a href="#merganser.evaluate_sweep"><code>evaluate_sweep</code></a>' in page
    assert re.findall(r":\w+:<code>", page) == []


def test_every_page_is_in_the_site(site: Path) -> None:
    outside = [*ROOT.glob("bench/*.md"), *ROOT.glob("examples/*/README.md")]
    pages = [path.relative_to(ROOT) for path in outside]
    pages += [p.relative_to(ROOT / "docs") for p in ROOT.glob("docs/*.md") if ".head" not in p.name]
    built = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert len(pages) > 20
    for page in pages:
        name = (
            page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")
        )
        assert name.as_posix() in built


def test_the_site_loads_nothing_from_outside(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|link)[^>]*?(?:src|href)="([^"]*)"', text)
        assert loaded
        assert [url for url in loaded if re.match(r"(\w+:)?//", url)] == [], page.name
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", text) == [], sheet.name


@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nowhere", "../gone.py"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    settings["nav"], settings["hooks"] = ["index.md", "other.md"], []
    settings["plugins"], settings["extra_css"] = ["search"], []
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    for text, code in (("[good](other.md#other)", 0), (f"[bad]({link})", 1)):
        (tmp_path / "docs" / "index.md").write_text(f"# Index\n\n{text}\n")
        assert build(tmp_path, tmp_path / "out").returncode == code


def test_the_citation_names_this_release() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    for key in ("version", "license"):
        assert cited[key] == project[key]
    assert cited["repository-code"] == project["urls"]["Homepage"]
    assert [author["name"] for author in cited["authors"]] == [
        a["name"] for a in project["authors"]
    ]
