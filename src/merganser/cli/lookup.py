"""Commands that look things up: inspect, models, methods, schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from merganser.cli.options import json_option, methods_option, weights_option
from merganser.cli.output import print_json
from merganser.errors import RecipeError

if TYPE_CHECKING:
    from merganser.checkpoints import Weights


@click.command()
@click.argument("model")
@weights_option
@json_option
def inspect(model: str, weights: Weights | None, as_json: bool) -> None:
    """Show the fact sheet of MODEL: a folder, a file or a Hub id."""
    from merganser.release import fact_sheet

    sheet = fact_sheet.inspect(model, weights or "auto")
    if as_json:
        print_json(sheet)
        return
    from merganser.cli.fact_sheet_table import show_facts

    show_facts(sheet)


@click.command()
@click.argument("text", required=False)
@json_option
def models(text: str | None, as_json: bool) -> None:
    """List the models in the Hub's cache, or search the Hub for TEXT.

    With TEXT the most downloaded models whose names contain it. Only such a search uses the network.

    \b
    Examples:
      merganser models
      merganser models qwen2.5-1.5b
    """
    from dataclasses import asdict

    from merganser.hub import catalogue

    listed = catalogue.list_models(text)
    if as_json:
        print_json([asdict(model) for model in listed])
        return
    from merganser.cli.model_table import show_models

    show_models(listed, searched=text)


@click.command("methods")
@click.argument("name", required=False)
@methods_option
@json_option
def list_methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or describe the method NAME.

    \b
    Examples:
      merganser methods
      merganser methods ties
    """
    from merganser import methods, suggestions

    known = [methods.get(each) for each in ([name] if name else methods.names())]
    known_methods = [method for method in known if method is not None]
    if not known_methods:
        raise RecipeError(
            f"there is no method {name!r}; {suggestions.suggest(name or '', methods.names())}"
        )
    if as_json:
        print_json([methods.describe(method) for method in known_methods])
        return
    from merganser.cli.method_table import show_methods

    show_methods(known_methods, full=name is not None)


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes and studies, for editors."""
    from merganser.study.json_schema import json_schema

    print_json(json_schema())
