"""Whether the inputs' vocabularies are aligned or cut, and the chat template."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.planning.inputs import Inputs, Opener
from merganser.planning.plan_data import OpenSource, TokenizerEdit
from merganser.recipe import ParsedRecipe
from merganser.tokenizer import chat_templates


def chosen_template(parsed: ParsedRecipe, sources: Sequence[OpenSource]) -> str | None:
    """The chat template that the recipe sets; None to keep the donor's.

    Raises:
        RecipeError: when it is neither a name nor a template.
    """
    given = parsed.recipe.chat_template
    if given is None:
        return None
    if given == "auto":
        folders = (source.checkpoint.path for source in sources)
        return chat_templates.commonest(
            chat_templates.of_model(folder) for folder in folders if folder is not None
        )
    if given in chat_templates.names():
        return chat_templates.named(given)
    try:
        chat_templates.check(given)
    except ValueError as error:
        raise parsed.error(f"chat_template: {error}", ("chat_template",)) from None
    return given


def align_vocabularies(
    inputs: Inputs, opener: Opener, truncate: bool
) -> tuple[Inputs, TokenizerEdit | None, int | None]:
    """Align the inputs' vocabularies as the recipe asks.

    Args:
        inputs: the models.
        opener: opens the models that token rules name and the recipe does not merge.
        truncate: cut vocabularies of different sizes to the shortest if the recipe has no
            ``tokenizer``.

    Returns:
        The inputs with the output's rows, the tokenizer and the number of rows; each of the last
        two is None if the output takes the donor's.

    Raises:
        RecipeError: when a rule for a token cannot be applied.
        InputError: when a model's tokenizer is missing or corrupt.
    """
    recipe = opener.parsed.recipe
    if recipe.tokenizer is not None or recipe.tokenizer_source is not None:
        from merganser.planning.alignment import Aligner

        aligned = Aligner(inputs, opener).align()
        return inputs.with_sources(aligned.sources), aligned.tokenizer, aligned.rows
    if not truncate:
        return inputs, None, None
    from merganser.planning.alignment import truncated

    sources, rows = truncated(inputs.sources)
    return inputs.with_sources(sources), None, rows
