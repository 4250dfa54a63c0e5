"""Group input tensors by the output tensor that they are merged into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from merganser.architecture import SHARED_BY_LAYERS, Place, stated_tie
from merganser.errors import InputError
from merganser.modules import Module
from merganser.planning.groups import (
    MAX_LAYERS,
    Entry,
    Group,
    LayerOrigins,
    Levels,
    RecipePart,
    list_of,
    position_in,
)
from merganser.planning.heads import embedding_as_head
from merganser.planning.inputs import Inputs
from merganser.planning.omissions import Omissions
from merganser.planning.plan_data import Names
from merganser.recipe import ParsedRecipe, key_name
from merganser.recipe.document import KeyPath
from merganser.recipe.schema import OutputSlice


class Layout:
    """Groups the inputs' tensors.

    Attributes:
        layers: for each stacked module, the sources of its output layers; filled as groups are
            yielded.
        omissions: the tensors that are left out or not merged; filled as groups are yielded.
    """

    def __init__(
        self,
        parsed: ParsedRecipe,
        inputs: Inputs,
        tensor_names: Names = "same",
        *,
        takes_base: bool = True,
    ) -> None:
        self.parsed = parsed
        self.recipe = parsed.recipe
        self.sources = sources = inputs.sources
        self.index = inputs.index
        self.base = inputs.base
        self.donor = donor = inputs.donor
        self.tensor_names = tensor_names
        self.takes_base = takes_base
        self.shape = sources[donor].architecture
        self.layers: dict[str, list[LayerOrigins]] = {}
        self.omissions = Omissions()

    def groups(self) -> Iterator[Group]:
        """The groups, in the output's order."""
        for part in self._parts():
            yield from self._stack(part) if part.slices is not None else self._whole_models(part)
        yield from self._rest()

    # -- what the recipe lists ----------------------------------------------------------------

    def _parts(self) -> Iterator[RecipePart]:
        recipe = self.recipe
        levels: Levels = ((("parameters",), recipe.parameters),)
        everything = tuple(self.shape.modules)
        if recipe.modules is None:
            if recipe.slices is not None:
                self._check_several_modules(recipe.slices)
            yield RecipePart(everything, recipe.models, recipe.slices, (), levels)
        for name, module in (recipe.modules or {}).items():
            path = ("modules", name)
            served = self.shape.module_serving_as(name)
            if served is None:
                raise self.parsed.error(
                    f"{key_name(path)}: {self.sources[self.donor].reference} has no such module; "
                    f"it has {list_of(everything)}",
                    path,
                )
            settings = ((*path, "parameters"), module.parameters)
            yield RecipePart(
                (served.name,), module.models, module.slices, path, (settings, *levels)
            )

    def _check_several_modules(self, slices: Sequence[OutputSlice]) -> None:
        for piece in slices:
            for given in piece.sources:
                modules = self.sources[self.index[given.model.text]].architecture.modules
                if len(modules) > 1:
                    depths = list_of(
                        f"{name} ({module.depth} layers)" if module.depth else name
                        for name, module in modules.items()
                    )
                    raise self.parsed.error(
                        f"slices: {given.model} consists of {depths}; stack the layers of one of "
                        "them with slices: under modules:, by its name",
                        ("slices",),
                    )

    def _whole_models(self, part: RecipePart) -> Iterator[Group]:
        listed = [
            Entry(
                self.index[given.model.text],
                "",
                (*part.path, "models", i, "parameters"),
                given.parameters,
            )
            for i, given in enumerate(part.models or [])
        ]
        if self.base is not None and self.base not in [entry.source for entry in listed]:
            listed.append(Entry(self.base, "", ("base_model",), {}))
        order = [entry.source for entry in listed]
        depths = {m.name: m.depth for s in reversed(order) for m in self._modules(s)}
        for key, owner in self._keys([self.donor, *order]).items():
            architecture = self.sources[owner].architecture
            name = architecture.names[key]
            place = self._placed(architecture.places[name])
            if place.module not in part.modules:
                continue
            if not any(key in self.sources[s].architecture.names for s in order):
                self.omissions.unmerged.append(name)  # no model merged here has it
                continue
            position = position_in(place.layer, depths[place.module], name)
            group = Group(name, place, place.layer, position, (), self.base, part.levels)
            shape = self.sources[owner].checkpoint.specs[name].shape
            filled = self._fill(group, listed, [name] * len(listed), shape)
            if filled is not None:
                yield filled

    def _modules(self, source: int) -> Iterable[Module]:
        modules = self.sources[source].architecture.modules.values()
        return (replace(m, name=self._module_name(m.name)) for m in modules)

    def _module_name(self, name: str) -> str:
        """The donor's name for a module of any model."""
        module = self.shape.module_serving_as(name)
        return module.name if module is not None else self.shape.main.name

    def _placed(self, place: Place) -> Place:
        module = self._module_name(place.module)
        return place if module == place.module else replace(place, module=module)

    def _keys(self, order: Iterable[int]) -> dict[str, int]:
        """The tensors' keys, with the first source in the order that has each of them."""
        keys: dict[str, int] = {}
        for source in order:
            for key in self.sources[source].architecture.names:
                keys.setdefault(key, source)
        return keys

    # -- the inputs of one tensor -------------------------------------------------------------

    def _fill(
        self,
        group: Group,
        listed: Sequence[Entry],
        wanted: Sequence[str],
        shape: tuple[int, ...],
        *,
        may_tie: bool = True,
    ) -> Group | None:
        """The group with the tensor's inputs in the listed models; None if the tensor is omitted.

        A model whose head is tied provides its embedding instead. Other optional tensors are merged
        from the models that have them.

        Args:
            group: the group to fill.
            listed: the models.
            wanted: the tensor's name in each model, or in one that has it.
            shape: the tensor's shape.
            may_tie: whether to omit a head that is the embedding in all models.

        Raises:
            InputError: when a model lacks a required tensor.
        """
        names = []
        for entry, name in zip(listed, wanted, strict=True):
            architecture = self.sources[entry.source].architecture
            names.append(architecture.names.get(architecture.key(name)))
        lent = [
            embedding_as_head(self.sources[entry.source], name, group.place, shape)
            for entry, name in zip(listed, names, strict=True)
        ]
        if None not in lent and may_tie:
            self.omissions.tied_away.add(group.name)
            return None
        entries: list[Entry] = []
        absent: list[Entry] = []
        for entry, listed_name, embedding, name in zip(listed, names, lent, wanted, strict=True):
            actual = listed_name or embedding
            filled = Entry(entry.source, actual or name, entry.path, entry.parameters)
            (entries if actual is not None else absent).append(filled)
        if not entries:
            return None
        if absent and self.tensor_names == "intersection":
            self.omissions.left_out.append(group.name)
            return None
        if self.tensor_names == "same":
            for entry in absent:
                self._require_optional(group, entry, entries)
        if absent:
            lacking = tuple(dict.fromkeys(entry.source for entry in absent))
            self.omissions.partial.setdefault(lacking, []).append(group.name)
        return replace(group, entries=tuple(entries), partial=bool(absent))

    def _require_optional(self, group: Group, absent: Entry, entries: Sequence[Entry]) -> None:
        """Raise if the missing tensor is required: a matrix of a layer, an embedding, or any
        tensor of a bare state dict. Layers for multi-token prediction, with their embeddings,
        may be missing if the base has them."""
        place, present = group.place, entries[0]
        owner = self.sources[present.source]
        further = any(
            module.predicts_further(present.name) for module in owner.architecture.modules.values()
        )
        of_base = self.takes_base and group.base in [entry.source for entry in entries]
        asks = further and place.role == "embedding" and not of_base
        if self.sources[absent.source].bare or owner.bare or asks:
            raise InputError(
                f"{self.sources[absent.source].reference}: has no tensor {absent.name!r}, which "
                f"{owner.reference} has; tensor_names='intersection' leaves such tensors out, "
                "tensor_names='union' merges them from the models that have them"
            )
        if further:
            return
        matrix = len(owner.checkpoint.specs[present.name].shape) > 1
        needed = matrix if place.layer is not None else place.role == "embedding"
        bare = not owner.checkpoint.config
        if not bare and (not needed or place.role in ("norm", "buffer")):
            return
        if all(module.name != place.module for module in self._modules(absent.source)):
            return  # the model lacks the module: a language model merged with vision-language models
        other_layer = present.name != absent.name and present.name.endswith(place.rest)
        raise InputError(
            f"{self.sources[absent.source].reference}: has no tensor {absent.name!r}, which "
            f"{owner.reference} has"
            + (
                f" as {present.name!r}; layers of different kinds"
                if other_layer
                else "; models of different architectures"
            )
            + " cannot be merged"
        )

    # -- stacks of layers ---------------------------------------------------------------------

    def _stack(self, part: RecipePart) -> Iterator[Group]:
        """The groups of a stack: tensors before the layers come from the first slice's models,
        tensors after them from the last slice's."""
        slices = part.slices or []
        [module] = part.modules
        layers = self.layers.setdefault(module, [])
        yield from self._outside(part, 0, after=False)
        yield from self._blocks(part)
        for i, piece in enumerate(slices):
            listed = self._listed(part, i)
            starts = []
            for j, (given, entry) in enumerate(zip(piece.sources, listed, strict=True)):
                stack = self._stack_of(part, entry.source, module)
                if given.layer_range[1] > stack.depth:
                    path: KeyPath = (*part.path, "slices", i, "sources", j, "layer_range")
                    raise self.parsed.error(
                        f"{key_name(path)}: {list(given.layer_range)} reaches beyond the "
                        f"{stack.depth} layers of {given.model} (ranges are half-open and count "
                        "from 0)",
                        path,
                    )
                starts.append(given.layer_range[0])
            length = piece.sources[0].layer_range[1] - starts[0]
            if len(layers) + length > MAX_LAYERS:
                here: KeyPath = (*part.path, "slices", i)
                raise self.parsed.error(f"{key_name(here)}: more than {MAX_LAYERS} layers", here)
            for offset in range(length):
                made_of = tuple(
                    (e.source, start + offset) for e, start in zip(listed, starts, strict=True)
                )
                layers.append(made_of)
                yield from self._layer(part, i, listed, made_of, position_in(offset, length))
        yield from self._outside(part, len(slices) - 1, after=True)

    def _listed(self, part: RecipePart, i: int) -> list[Entry]:
        return [
            Entry(
                self.index[given.model.text],
                "",
                (*part.path, "slices", i, "sources", j, "parameters"),
                given.parameters,
            )
            for j, given in enumerate((part.slices or [])[i].sources)
        ]

    def _stack_of(self, part: RecipePart, source: int, module: str) -> Module:
        """The stack of layers of a model's module; there must be exactly one."""
        stacked = self.sources[source].architecture.module_serving_as(module)
        if stacked is None or len(stacked.stacks) > 1:
            stacks = list_of(stacked.stacks) if stacked is not None else ""
            raise self.parsed.error(
                f"{key_name((*part.path, 'slices'))}: {self.sources[source].reference} has "
                + (
                    f"several runs of layers there ({stacks}); stack one of them under modules: by "
                    "its path"
                    if stacks
                    else f"no {module}"
                ),
                (*part.path, "slices"),
            )
        return stacked

    def _layer(
        self,
        part: RecipePart,
        i: int,
        listed: Sequence[Entry],
        made_of: LayerOrigins,
        position: float,
    ) -> Iterator[Group]:
        """The groups of one output layer."""
        [module] = part.modules
        rests: dict[str, tuple[Place, tuple[int, ...]]] = {}
        named: list[dict[str, str]] = []
        stacks = [self._stack_of(part, source, module).stack for source, _ in made_of]
        for (source, layer), stack in zip(made_of, stacks, strict=True):
            architecture = self.sources[source].architecture
            names = architecture.layers.get((stack, layer), ())
            named.append({architecture.places[name].rest: name for name in names})
            for rest, name in named[-1].items():
                shape = self.sources[source].checkpoint.specs[name].shape
                rests.setdefault(rest, (self._placed(architecture.places[name]), shape))
        output = len(self.layers[module]) - 1
        home = self.shape.module_serving_as(module) or self._stack_of(part, made_of[0][0], module)
        for rest, (place, shape) in rests.items():
            if rest.startswith(SHARED_BY_LAYERS):
                raise self.parsed.error(
                    f"slices: {self.sources[made_of[0][0]].reference} has layers that share the "
                    f"weights of {rest.split('.')[0]}, by their indices, and cannot be stacked; "
                    "merge whole models",
                    (*part.path, "slices"),
                )
            name = place.name_at(output, home.stack)
            group = self._group(part, i, name, place, output, position)
            wanted = [
                names.get(rest) or place.name_at(layer, stack)
                for names, (_, layer), stack in zip(named, made_of, stacks, strict=True)
            ]
            filled = self._fill(group, listed, wanted, shape)
            if filled is not None:
                yield filled

    def _outside(self, part: RecipePart, i: int, *, after: bool) -> Iterator[Group]:
        """Groups for the tensors before or after the layers, from all models of a slice. The
        output gets a head if a model of the first slice is untied: its embedding cannot serve as
        the last slice's head."""
        listed = self._listed(part, i)
        [module] = part.modules
        ends = list(dict.fromkeys(e.source for e in (*listed, *self._listed(part, 0))))
        may_tie = all(stated_tie(self.sources[s].checkpoint.config) is not False for s in ends)
        here = {entry.source for entry in listed}
        for key, owner in self._keys(ends).items():
            architecture = self.sources[owner].architecture
            source_name = architecture.names[key]
            place = self._placed(architecture.places[source_name])
            stack = self._stack_of(part, owner, module)
            further = stack.number_beyond(source_name)
            if place.layer is not None or place.module != module or place.layer_axis is not None:
                continue
            if after != (place.after_layers or further is not None):
                continue
            if owner not in here and place.role != "head":
                continue
            if further is not None and not self._in_order(part, listed):
                self.omissions.beyond.setdefault(owner, []).append(source_name)
                continue
            group = self._group(part, i, self.shape.names.get(key, source_name), place, None, 0.0)
            shape = self.sources[owner].checkpoint.specs[source_name].shape
            filled = self._fill(group, listed, [source_name] * len(listed), shape, may_tie=may_tie)
            if filled is not None:
                yield filled

    def _blocks(self, part: RecipePart) -> Iterator[Group]:
        """Groups for tensors with one block per layer, which were joined in the first slice's
        models."""
        [module] = part.modules
        first = self._listed(part, 0)
        for key, owner in self._keys(entry.source for entry in first).items():
            architecture = self.sources[owner].architecture
            source_name = architecture.names[key]
            place = self._placed(architecture.places[source_name])
            if place.layer_axis is None or place.module != module:
                continue
            name, shape = (
                self.shape.names.get(key, source_name),
                self.sources[owner].checkpoint.specs[source_name].shape,
            )
            alike = []
            for i, piece in enumerate(part.slices or []):
                entries = [
                    replace(entry, source=there.source)
                    for entry, there in zip(self._listed(part, i), first, strict=True)
                ]
                start, stop = piece.sources[0].layer_range
                for offset in range(stop - start):
                    group = self._group(
                        part, i, name, place, None, position_in(offset, stop - start)
                    )
                    group = replace(group, base=self._group(part, 0, name, place, None, 0.0).base)
                    alike.append(self._fill(group, entries, [source_name] * len(entries), shape))
            filled = [group for group in alike if group is not None]
            if filled:
                yield replace(filled[0], alike=tuple(filled[1:]))

    def _in_order(self, part: RecipePart, listed: Sequence[Entry]) -> bool:
        """Whether the stack has all of the models' layers, in their order."""
        [module] = part.modules
        order = [{layer for _, layer in made_of} for made_of in self.layers[module]]
        depths = {self._stack_of(part, entry.source, module).depth for entry in listed}
        return depths == {len(order)} and order == [{n} for n in range(len(order))]

    def _group(
        self, part: RecipePart, i: int, name: str, place: Place, layer: int | None, position: float
    ) -> Group:
        piece = (part.slices or [])[i]
        base = piece.base_model or self.recipe.base_model
        levels = (((*part.path, "slices", i, "parameters"), piece.parameters), *part.levels)
        index = self.index[base.text] if base is not None else None
        return Group(name, place, layer, position, (), index, levels)

    # -- modules that the recipe does not name ------------------------------------------------

    def _rest(self) -> Iterator[Group]:
        """Groups for modules that ``modules:`` does not name: copies of the donor's."""
        if self.recipe.modules is None:
            return
        named = {module for part in self._parts() for module in part.modules}
        self.omissions.taken = [name for name in self.shape.modules if name not in named]
        for name, place in self.shape.places.items():
            if place.module in self.omissions.taken:
                entry = Entry(self.donor, name, ("modules",), {})
                yield Group(name, place, place.layer, 0.0, (entry,), None, (), taken=True)
