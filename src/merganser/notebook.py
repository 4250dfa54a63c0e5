"""HTML tables of results, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def escape(text: str) -> str:
    """Text for HTML."""
    from html import escape  # loaded by notebooks alone

    return escape(text)


def facts(values: Mapping[str, object], caption: str = "") -> str:
    """An HTML table of names and values, without those that are None."""
    rows = [(name, value) for name, value in values.items() if value is not None]
    return table((), rows, caption)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """An HTML table; its texts are escaped."""
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{escape(caption)}</caption>")
    if head:
        parts.append(
            f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>"
        )
    parts.append("<tbody>")
    for row in rows:
        parts.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>")
    parts.append("</tbody></table>")
    return "".join(parts)


def notes(texts: Sequence[str]) -> str:
    """Warnings as an HTML list; an empty text if there are none."""
    if not texts:
        return ""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"
