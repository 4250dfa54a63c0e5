"""Tables of what a push will publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from merganser import number_format
from merganser.cli.columns import stdout

if TYPE_CHECKING:
    from merganser.publishing.push import Publication, State


def show_publication(
    publication: Publication, state: State | None = None, *, on_stderr: bool = False
) -> None:
    """Print what a push will publish: each repository's files, licences and local paths."""
    console = Console(stderr=True) if on_stderr else stdout()
    visibility = "private" if publication.private else "PUBLIC: anyone can read and copy it"
    for package in publication.packages:
        there = state.repositories[package.repository] if state else None
        seen = ("private" if there.private else "PUBLIC") if there else visibility
        known = "" if state is None else ", is there already" if there else ", new"
        branch = f", branch {publication.revision}" if publication.revision else ""
        console.print(f"[bold]{escape(package.repository)}[/] ({seen}{known}{escape(branch)})")
        table = Table(box=None, header_style="dim")
        table.add_column("file", overflow="fold")
        table.add_column("size", justify="right")
        for name, size in package.sizes.items():
            changed = " (names in place of paths)" if isinstance(package.files[name], bytes) else ""
            table.add_row(escape(name + changed), number_format.size(size))
        table.add_row("[dim]together", number_format.size(sum(package.sizes.values())))
        console.print(table)
        for name in state.stale(package) if state else ():
            console.print(f"  [yellow]is deleted there:[/] {escape(name)}")
        licences = ", ".join(
            f"{name}: {license_ or 'none stated'}" for name, license_ in package.licenses.items()
        )
        console.print(f"  licences of the parents: {escape(licences)}")
        for path in package.disclosed:
            console.print(
                f"  [yellow]local path[/] in {escape(path.file)}: {escape(path.path)}",
                soft_wrap=True,
            )
    if publication.collection:
        console.print(f"collection: {escape(publication.collection)}")
    if state is not None:
        console.print(f"as {escape(state.account)}")
