"""Warn about settings of a recipe that have no effect."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from merganser import suggestions
from merganser.methods import Method
from merganser.planning.parameter_checks import Block, Warn
from merganser.planning.plan_data import TensorJob
from merganser.recipe import ModelReference, ParsedRecipe, Recipe, Rule
from merganser.recipe.document import KeyPath
from merganser.recipe.schema import ModelInput, OutputSlice, SliceSource

Form = tuple[KeyPath, Sequence[ModelInput] | None, Sequence[OutputSlice] | None]


def check_names(
    parsed: ParsedRecipe, method: Method, blocks: Iterable[Block], warnings: list[str], warn: Warn
) -> None:
    """Check that every parameter belongs to the method and stands where the method reads it.

    Args:
        parsed: the recipe.
        method: its method.
        blocks: the recipe's parameter blocks.
        warnings: receives warnings about unknown names.
        warn: receives all other warnings.

    Raises:
        RecipeError: for an evident misspelling, or in strict mode.
    """
    known = [parameter.name for parameter in method.parameters]
    for path, parameters, model in blocks:
        for name in parameters:
            here = (*path, name)
            parameter = method.parameter(name)
            if name in method.ignored:
                warn(here, f"has no effect in {method.name}, as in MergeKit")
            elif parameter is None:
                warnings.append(parsed.oddity(name, here, known, f"the method {method.name}"))
            elif model is not None and not parameter.per_model:
                warn(
                    here,
                    f"{name} is one number for all models; under a model it is ignored, "
                    "as MergeKit does: put it under the recipe's own parameters",
                )


def check_base(recipe: Recipe, method: Method, forms: Iterable[Form], warn: Warn) -> None:
    """Warn about parameters of a base that is listed among the models.

    The base's parameters are not used, since the models are compared with it. A slice may list
    the base twice: the second entry is a model.
    """
    if method.base == "none":
        return
    lists: list[tuple[KeyPath, Sequence[ModelInput | SliceSource], ModelReference | None]] = []
    for path, models, slices in forms:
        lists.append(((*path, "models"), models or [], recipe.base_model))
        for i, piece in enumerate(slices or []):
            base = piece.base_model or recipe.base_model
            lists.append(((*path, "slices", i, "sources"), piece.sources, base))
    for path, entries, base in lists:
        listed = [i for i, entry in enumerate(entries) if base and entry.model.text == base.text]
        if len(listed) != 1:
            continue
        for name in entries[listed[0]].parameters:
            parameter = method.parameter(name)
            if parameter is not None and parameter.per_model:
                here = (*path, listed[0], "parameters", name)
                warn(here, f"has no effect: {base} is the base of {method.name}")


def check_filters(
    method: Method,
    blocks: Iterable[Block],
    index: Mapping[str, int],
    jobs: Sequence[TensorJob],
    warn: Warn,
) -> None:
    """Warn about unused rules: their filter matches no tensor, or another rule takes precedence.

    Args:
        method: the recipe's method.
        blocks: its parameter blocks.
        index: the sources' indices by the text of their references.
        jobs: the plan's tensors.
        warn: receives the warnings.
    """
    outputs = {job.name for job in jobs}
    inputs = {(read.source, read.name) for job in jobs for read in job.reads}
    for path, parameters, model in blocks:
        for name, setting in parameters.items():
            parameter = method.parameter(name)
            if parameter is None:
                continue
            names = outputs
            if parameter.per_model:
                source = None if model is None else index[model.text]
                names = {tensor for i, tensor in inputs if source in (None, i)}
            for i, rule in enumerate(setting.rules):
                if rule.filter:
                    _check_filter((*path, name), rule, setting.rules[:i], names, warn)


def _check_filter(
    path: KeyPath, rule: Rule, before: Sequence[Rule], names: Collection[str], warn: Warn
) -> None:
    matched = [tensor for tensor in names if rule.matches(tensor)]
    if not matched:
        parts = dict.fromkeys(part for tensor in sorted(names) for part in tensor.split("."))
        slip = suggestions.nearest(
            str(rule.filter), [part for part in parts if part.isidentifier()]
        )
        hint = f"; did you mean {slip!r}?" if slip else ""
        warn(path, f"the filter {rule.filter!r} matches no tensor{hint}")
    elif all(any(other.matches(tensor) for other in before) for tensor in matched):
        warn(
            path,
            f"the rule for {rule.filter!r} is never used: rules before it match all its tensors, "
            "and the first that matches counts",
        )
