"""Stack layers of models that have tensors outside the layers with one block per layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from merganser.errors import RecipeError
from merganser.modules import DEFAULT
from merganser.planning.plan_data import OpenSource
from merganser.recipe import ParsedRecipe, key_name
from merganser.recipe.document import KeyPath
from merganser.recipe.schema import OutputSlice


def with_joined_blocks(
    parsed: ParsedRecipe, sources: Sequence[OpenSource], index: Mapping[str, int]
) -> tuple[OpenSource, ...]:
    """The sources; in the models of each stack's first slice, tensors with one block per layer get
    one block per output layer.

    A layer's block comes from the model at the same position in the list of the layer's slice.

    Raises:
        RecipeError: when the slices' lists do not allow joining blocks.
        InputError: when blocks have different shapes.
    """
    result = list(sources)
    for path, module, slices in _stacks(parsed):
        listed = [sources[index[given.model.text]] for piece in slices for given in piece.sources]
        owner = next((source for source in listed if _names(source, module)), None)
        if owner is None:
            continue
        _check_slices(parsed, path, slices, f"{owner.reference}: {_names(owner, module)[0]!r}")
        for place, given in enumerate(slices[0].sources):
            position = index[given.model.text]
            layers = [
                (index[piece.sources[place].model.text], layer)
                for piece in slices
                for layer in range(*piece.sources[place].layer_range)
            ]
            result[position] = _joined(sources, position, module, layers)
    return tuple(result)


def _stacks(parsed: ParsedRecipe) -> Iterator[tuple[KeyPath, str, Sequence[OutputSlice]]]:
    recipe = parsed.recipe
    if recipe.modules is None and recipe.slices:
        yield ("slices",), DEFAULT, recipe.slices
    for name, module in (recipe.modules or {}).items():
        if module.slices:
            yield ("modules", name, "slices"), name, module.slices


def _names(source: OpenSource, module: str) -> list[str]:
    """A module's tensors with one block per layer."""
    architecture = source.architecture
    stacked = (architecture.module(module) or architecture.main).name
    return [
        name
        for name, place in architecture.places.items()
        if place.layer_axis is not None and place.module == stacked
    ]


def _check_slices(
    parsed: ParsedRecipe, path: KeyPath, slices: Sequence[OutputSlice], tensor: str
) -> None:
    """Raise RecipeError if the slices' models do not correspond by their positions."""

    def error(wish: str) -> RecipeError:
        return parsed.error(
            f"{key_name(path)}: {tensor} has a block for each layer, so {wish}", path
        )

    bases = []
    for piece in slices:
        base = piece.base_model or parsed.recipe.base_model
        models = [given.model.text for given in piece.sources]
        bases.append([base is not None and model == base.text for model in models])
        if len(set(models)) < len(models):
            raise error("a slice cannot list a model twice")
    if any(len(base) != len(bases[0]) for base in bases):
        raise error("all slices must list as many models")
    if any(base != bases[0] for base in bases):
        raise error("all slices must list the base at the same place, or none of them")


def _joined(
    sources: Sequence[OpenSource], first: int, module: str, layers: Sequence[tuple[int, int]]
) -> OpenSource:
    """A source whose blocks per layer come from the layers of several sources."""
    from merganser.checkpoints.computed.layer_blocks import Blocks, JoinedBlocks, joined

    source = sources[first]
    tensors: dict[str, JoinedBlocks] = {}
    order = list(dict.fromkeys((first, *(s for s, _ in layers))))
    for name in _names(source, module):
        donors = []
        for s in order:
            architecture, checkpoint = sources[s].architecture, sources[s].checkpoint
            there = architecture.names.get(source.architecture.key(name))
            place = architecture.places[there] if there is not None else None
            if there is None or place is None or place.layer_axis is None:
                return source  # the plan rejects models of different architectures
            depth = architecture.modules[place.module].depth
            if any(layer >= depth for donor, layer in layers if donor == s):
                return source  # the plan rejects ranges beyond the layers
            donors.append(Blocks(checkpoint, there, place.layer_axis, depth))
        tensors[name] = JoinedBlocks(donors, [(order.index(s), layer) for s, layer in layers])
    return replace(source, checkpoint=joined(source.checkpoint, tensors)) if tensors else source
