"""The list of models in the Hub's cache, or on the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from merganser import number_format
from merganser.cli.columns import Column, print_columns, stdout
from merganser.hub.catalogue import HubModel


def show_models(models: Sequence[HubModel], *, searched: str | None) -> None:
    """Print models, one line each.

    Args:
        models: the models.
        searched: the text that the Hub was searched for; None for the cache.
    """
    console = stdout()
    if not models:
        where = "the Hub's cache has no complete model" if searched is None else "no model"
        more = "" if searched is None else f" on the Hub has {searched!r} in its name"
        console.print(f"{where}{more}", highlight=False, markup=False)
        return
    names = Column("model", [model.name for model in models])
    kinds = Column("", [_kind(model) for model in models])
    if searched is None:
        sizes = [number_format.size(model.size or 0) for model in models]
        print_columns(console, [names, Column("size", sizes, True), kinds])
        return
    parameters = [_count(model.parameters) for model in models]
    downloads = [_count(model.downloads) for model in models]
    numbers = [Column("parameters", parameters, True), Column("downloads", downloads, True)]
    print_columns(console, [names, *numbers, kinds])


def _kind(model: HubModel) -> str:
    words = ["adapter"] * bool(model.adapter) + ["gated"] * model.gated + ["cached"] * model.cached
    return ", ".join(words)


def _count(number: int | None) -> str:
    return number_format.MISSING if number is None else f"{number:,}"
