"""A hook of MkDocs: pages from outside ``docs/``, links between them, and the API reference.

The changelog, the benchmarks and the examples' pages are part of the site under their own paths. A
link to a file that is no page leads to the repository; a link to a file that does not exist stays as
it is, and fails the strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import merganser

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/merganser-ml/merganser/blob/main/"
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/*.md", "examples/*/README.md")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):<code>([^<]*)</code>")
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """Give pages that the navigation does not name a place of their own at its end."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    outside = [path.relative_to(ROOT) for pattern in OUTSIDE for path in ROOT.glob(pattern)]
    pages = [p.relative_to(ROOT / "docs") for p in ROOT.glob("docs/*.md") if ".head" not in p.name]
    unnamed = sorted({path.as_posix() for path in [*outside, *pages]} - named)
    if unnamed:
        config.nav.append({"More": unnamed})
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages from outside, and the API reference."""
    from mkdocs.structure.files import File

    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Point links at the page of the site, or else at the file in the repository."""
    home = page.file.src_uri
    origin = home if (ROOT / home).is_file() else f"docs/{home}"

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
        uri = path.removeprefix("docs/")
        if files.get_file_from_path(uri) is not None:
            return match[1] + posixpath.relpath(uri, posixpath.dirname(home) or ".")
        readme = f"{uri.rstrip('/')}/README.md"
        if files.get_file_from_path(readme) is not None:
            return match[1] + posixpath.relpath(readme, posixpath.dirname(home) or ".")
        return match[1] + (REPOSITORY + path if (ROOT / path).exists() else match[2])

    return LINK.sub(target, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Show the roles of docstrings (``:func:`merge` ``) as code, with a link to public names."""

    def code(match: re.Match[str]) -> str:
        name = match[1].lstrip("~").split(".")[-1]
        shown = f"<code>{name}</code>"
        return f'<a href="#merganser.{name}">{shown}</a>' if name in dir(merganser) else shown

    return ROLE.sub(code, html) if page.file.src_uri == "reference.md" else html


def reference() -> str:
    """The page of the public API: the groups of ``merganser.__doc__``, each name with its docstring."""
    lines = ["# API", "", "Everything that `import merganser` offers, from its docstrings."]
    groups = re.split(r"^(\w[\w ]*)(?: \(.*\))?:$", merganser.__doc__ or "", flags=re.MULTILINE)[1:]
    for title, text in zip(groups[0::2], groups[1::2], strict=True):
        names = re.findall(r"^    ((?:\w+, )*\w+)", text, re.MULTILINE)
        lines += ["", f"## {title}"]
        lines += [f"\n::: merganser.{name}" for line in names for name in line.split(", ")]
    types = [name for name in dir(merganser) if f"merganser.{name}" not in "\n".join(lines).split()]
    lines += ["", "## Types", *(f"\n::: merganser.{n}" for n in types if not n.startswith("_"))]
    return "\n".join(lines) + "\n"
