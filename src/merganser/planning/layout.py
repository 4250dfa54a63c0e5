"""From models or slices to groups: which tensors of the inputs make which output tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from merganser.architecture import Place, ties_embeddings
from merganser.errors import InputError
from merganser.planning.plans import Source
from merganser.recipe import ParsedRecipe, Setting, key_name

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of one output tensor, and the settings that come with it, nearest first."""

    source: int
    name: str
    path: Path
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Group:
    """One output tensor before its numbers are settled."""

    name: str
    place: Place
    layer: int | None
    position: float
    entries: tuple[Entry, ...]
    base: int | None
    parameters: tuple[tuple[Path, Mapping[str, Setting]], ...]


class Layout:
    """Lays the inputs out into groups.

    Attributes:
        layers: for layer stacks, what each output layer is made of, as (source, layer) pairs;
            filled as the groups are taken. None where whole models are merged.
        tied_away: heads that are left out, since every model ties them to its embedding.
    """

    def __init__(
        self,
        parsed: ParsedRecipe,
        sources: Sequence[Source],
        index: Mapping[str, int],
        base: int | None,
        donor: int,
    ) -> None:
        self.parsed = parsed
        self.recipe = parsed.recipe
        self.sources = sources
        self.index = index
        self.base = base
        self.donor = donor
        self.layers: list[tuple[tuple[int, int], ...]] | None = None
        self.tied_away: set[str] = set()

    def groups(self) -> Iterator[Group]:
        """The output's tensors in its order."""
        return self._slices() if self.recipe.slices is not None else self._whole_models()

    def _whole_models(self) -> Iterator[Group]:
        listed = [
            Entry(self.index[model.model.text], "", ("models", i, "parameters"), model.parameters)
            for i, model in enumerate(self.recipe.models or [])
        ]
        if self.base is not None and self.base not in [entry.source for entry in listed]:
            listed.append(Entry(self.base, "", ("base_model",), {}))
        names = dict.fromkeys(
            name
            for source in (self.donor, *range(len(self.sources)))
            for name in self.sources[source].checkpoint.specs
        )
        places = {
            name: place
            for source in reversed(self.sources)
            for name, place in source.architecture.places.items()
        } | dict(self.sources[self.donor].architecture.places)
        stacks = {k: v for source in self.sources for k, v in source.architecture.stacks.items()}
        levels = ((("parameters",), self.recipe.parameters),)
        for name in names:
            place = places[name]
            entries = self._present(name, place, listed)
            if entries:
                depth = stacks[place.stack] if place.stack is not None else 0
                position = _position(place.layer, depth)
                yield Group(name, place, place.layer, position, entries, self.base, levels)

    def _present(self, name: str, place: Place, listed: Sequence[Entry]) -> tuple[Entry, ...]:
        """The inputs that have a tensor; a model without a head of its own lends its embedding."""
        tied = [self._lent(entry.source, name, place) for entry in listed]
        if None not in tied:
            self.tied_away.add(name)  # a second copy of the embedding, as verl writes it
            return ()
        entries = []
        for entry, embedding in zip(listed, tied, strict=True):
            source = self.sources[entry.source]
            actual = name if name in source.checkpoint.specs else embedding
            if actual is None:
                owners = [s.reference for s in self.sources if name in s.checkpoint.specs]
                raise InputError(
                    f"{source.reference}: has no tensor {name!r}, which {owners[0]} has; "
                    "models of different architectures cannot be merged"
                )
            entries.append(Entry(entry.source, actual, entry.path, entry.parameters))
        return tuple(entries)

    def _lent(self, source: int, name: str, place: Place) -> str | None:
        """The embedding that serves a model as this head, if its config ties the two."""
        if place.role != "head" or not ties_embeddings(self.sources[source].checkpoint.config):
            return None
        embedding = self._embedding(source)
        if embedding is None:
            return None
        shape = self.sources[source].checkpoint.specs[embedding].shape
        heads = (s.checkpoint.specs.get(name) for s in self.sources)
        return embedding if any(h is not None and h.shape == shape for h in heads) else None

    def _embedding(self, source: int) -> str | None:
        places = self.sources[source].architecture.places
        return next(
            (
                name
                for name, place in places.items()
                if place.role == "embedding" and name.endswith("weight")
            ),
            None,
        )

    def _slices(self) -> Iterator[Group]:
        """Layer stacks: what comes before the layers from the first slice's models, what comes
        after from the last slice's."""
        slices = self.recipe.slices or []
        self.layers = []
        for i, piece in enumerate(slices):
            if i == 0:
                yield from self._outside_layers(i, after=False)
            indices = [self.index[source.model.text] for source in piece.sources]
            first = self.sources[indices[0]].architecture
            if len(first.stacks) > 1:  # stacking one of them would lose the others
                raise self.parsed.error(
                    f"slices: {piece.sources[0].model} has several stacks of layers "
                    f"({', '.join(first.stacks)}), which is not supported yet",
                    ("slices",),
                )
            stack = next(iter(first.stacks), None)
            for j, (source, index) in enumerate(zip(piece.sources, indices, strict=True)):
                depth = self.sources[index].architecture.depth
                if source.layer_range[1] > depth:
                    path: Path = ("slices", i, "sources", j, "layer_range")
                    raise self.parsed.error(
                        f"{key_name(path)}: {list(source.layer_range)} reaches beyond the {depth} layers "
                        f"of {source.model} (ranges are half-open and count from 0)",
                        path,
                    )
            length = piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0]
            templates = [
                place
                for place in first.places.values()
                if place.stack == stack and place.layer is not None
            ]
            for offset in range(length):
                layers = tuple(
                    (index, source.layer_range[0] + offset)
                    for source, index in zip(piece.sources, indices, strict=True)
                )
                output = len(self.layers)
                self.layers.append(layers)
                for place in templates:
                    if place.layer == layers[0][1]:
                        yield self._slice_group(
                            i,
                            place.name_at(output),
                            place,
                            output,
                            _position(offset, length),
                            [layer for _, layer in layers],
                        )
            if i == len(slices) - 1:
                yield from self._outside_layers(i, after=True)

    def _outside_layers(self, i: int, *, after: bool) -> Iterator[Group]:
        source = self.index[(self.recipe.slices or [])[i].sources[0].model.text]
        for name, place in self.sources[source].architecture.places.items():
            if place.layer is None and place.after_layers == after:
                yield self._slice_group(i, name, place, None, 0.0, None)

    def _slice_group(
        self,
        i: int,
        output: str,
        place: Place,
        layer: int | None,
        position: float,
        layers: list[int] | None,
    ) -> Group:
        piece = (self.recipe.slices or [])[i]
        entries = []
        for j, source in enumerate(piece.sources):
            index = self.index[source.model.text]
            name = place.name_at(layers[j]) if layers is not None else place.rest
            if name not in self.sources[index].checkpoint.specs and place.role == "head":
                name = self._embedding(index) or name
            if name not in self.sources[index].checkpoint.specs:
                raise InputError(f"{source.model}: has no tensor {name!r}, which the slice needs")
            path = ("slices", i, "sources", j, "parameters")
            entries.append(Entry(index, name, path, source.parameters))
        base = piece.base_model or self.recipe.base_model
        levels = (
            (("slices", i, "parameters"), piece.parameters),
            (("parameters",), self.recipe.parameters),
        )
        return Group(
            output,
            place,
            layer,
            position,
            tuple(entries),
            self.index[base.text] if base is not None else None,
            levels,
        )


def _position(layer: int | None, depth: int) -> float:
    """Where a layer lies in the depth of its slice; MergeKit puts a single layer at the end."""
    if layer is None:
        return 0.0
    return layer / (depth - 1) if depth > 1 else 1.0
