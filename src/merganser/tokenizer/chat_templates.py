"""Chat templates: named templates in the folder ``templates``, and those of models.

The named templates follow the published descriptions of the formats. They take ``messages`` with the
roles system, user and assistant, and ``add_generation_prompt``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from merganser.checkpoints import read_json
from merganser.checkpoints.sidecar_files import read_text

FILE = "chat_template.jinja"
"""The file that transformers reads first."""

LEGACY_FILE = "chat_template.json"
"""The template file of multimodal processors in older releases of transformers."""

NAMED = Path(__file__).parent / "templates"
"""Folder with one file per named template."""

SHORTEST = 20
"""Minimum length of a template in characters; a shorter text is an error in the recipe, as in MergeKit."""


def names() -> list[str]:
    """The names of the named templates."""
    return sorted(file.stem for file in NAMED.glob("*.jinja"))


def named(name: str) -> str:
    """The text of a named template."""
    return (NAMED / f"{name}.jinja").read_text(encoding="utf-8")


def of_model(folder: Path) -> str | None:
    """The default chat template of the model in a folder, or None.

    Raises:
        InputError: when a file of the template is invalid.
    """
    if (folder / FILE).is_file():
        return read_text(folder / FILE)
    for file in (folder / LEGACY_FILE, folder / "tokenizer_config.json"):
        template = read_json(file).get("chat_template") if file.is_file() else None
        if isinstance(template, list):
            template = by_name(template).get("default")
        elif isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str) and template.strip():
            return template
    return None


def by_name(templates: Sequence[Any]) -> dict[str, str]:
    """Templates by name, from a list of mappings with ``name`` and ``template``; skips other entries."""
    return {
        entry["name"]: entry["template"]
        for entry in templates
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }


def commonest(templates: Iterable[str | None]) -> str | None:
    """The most frequent template, the first one of a tie; None if there is no template.

    Templates that differ only in white space at their ends count as one.
    """
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for template in templates:
        if template is not None and template.strip():
            counts[template.strip()] = counts.get(template.strip(), 0) + 1
            first.setdefault(template.strip(), template)
    return first[max(counts, key=lambda text: counts[text])] if counts else None


def check(template: str) -> None:
    """Check that a text is a Jinja template.

    Raises:
        ValueError: when it is not; the message is the reason.
    """
    if len(template) < SHORTEST or "{" not in template:
        raise ValueError(
            f"{template[:40]!r} is neither auto, nor one of {', '.join(names())}, nor a Jinja template"
        )
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.ext import Extension
    from jinja2.nodes import Filter, Node, Test
    from jinja2.parser import Parser

    class Generation(Extension):
        """The tag with which transformers marks the assistant's text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    extensions: list[str | type[Extension]] = [Generation, "jinja2.ext.loopcontrols"]
    try:  # parse only: compiling would evaluate constants such as "x" * 10**10
        grammar = Environment(extensions=extensions)
        tree = Parser(grammar, template).parse()
    except TemplateSyntaxError as error:
        raise ValueError(f"is not a Jinja template: {error.message}, line {error.lineno}") from None
    except RecursionError:
        raise ValueError("is not a Jinja template: nested too deep") from None
    unknown = [each.name for each in tree.find_all(Filter) if each.name not in grammar.filters]
    unknown += [each.name for each in tree.find_all(Test) if each.name not in grammar.tests]
    if unknown:
        raise ValueError(f"is not a Jinja template: there is no {unknown[0][:40]!r} in Jinja")
