"""Recipe and headers in, plan out: every decision of a merge, before a byte of weights is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from merganser import hub, methods, recipe
from merganser.architecture import Architecture, Place, infer, ties_embeddings
from merganser.checkpoints import Checkpoint, open_checkpoint
from merganser.errors import InputError, RecipeError
from merganser.methods import Combination, Method, Parameter
from merganser.recipe import ModelReference, ParsedRecipe, Recipe, Setting, Strictness, key_name
from merganser.tensors import BY_NAME, FLOAT32, FLOAT64, DType, TensorSpec, parse_size

FORMAT = 1
"""Raised when the same recipe and inputs would give another plan, or other bytes."""

ALIGNMENT = 4096
"""Shard headers are padded so that the data begins on such a boundary, for direct I/O."""

CELL = 65536
"""Elements over which sums are formed, and bytes over which digests are: part of both their
definitions, so that neither depends on how a tensor is cut into tiles."""

TILE = 16 * CELL
"""Elements that are read and merged at once: large enough that Python has little to do between."""

OVERHEAD = 210 * 2**20
"""Resident bytes of Python and the libraries, by measurement."""

Rounding = Literal["nearest", "stochastic"]
Arithmetic = Literal["exact", "mergekit", "mergekit-0.1.4"]
Path = tuple[str | int, ...]
Config = str | os.PathLike[str] | Mapping[str, Any] | Recipe | ParsedRecipe


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor of an input: which of the plan's sources, and its name there."""

    source: int
    name: str


@dataclass(frozen=True, slots=True)
class TensorJob:
    """How one output tensor is made.

    Attributes:
        name: of the output.
        spec: dtype and shape of the output.
        reads: the inputs; the base first, if the method has one.
        method: its name; ``copy`` for tensors that are taken as they are, bit for bit.
        numbers: the method's parameters by their Python names, settled for this tensor.
        combination: the coefficients, if they are known before reading.
        work: the dtype that is computed in.
        cast: the dtype that inputs are rounded to first (MergeKit's arithmetic), or None.
        layer: the output layer that it lies in, or None.
        role: embedding, head, attention, mlp, norm or other.
    """

    name: str
    spec: TensorSpec
    reads: tuple[Read, ...]
    method: str
    numbers: Mapping[str, Any]
    combination: Combination | None
    work: DType
    cast: DType | None
    layer: int | None
    role: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file, exact to the byte.

    Attributes:
        file: its name.
        header: everything before the data, padding included.
        offsets: where each tensor begins in the file.
        size: of the whole file, in bytes.
    """

    file: str
    header: bytes = field(repr=False)
    offsets: Mapping[str, int]
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """An input of the plan.

    Attributes:
        reference: how the recipe names it.
        checkpoint: its headers, and the way to its weights.
        architecture: what its tensors are.
        published: whether it is a model on the Hub rather than a local one.
    """

    reference: ModelReference
    checkpoint: Checkpoint
    architecture: Architecture
    published: bool


@dataclass(frozen=True)
class Plan:
    """A merge, decided.

    Attributes:
        recipe: what it was made from.
        method: the recipe's merge method, in its variant for the arithmetic.
        sources: the inputs in the recipe's order.
        base: index of the base model among them, or None.
        donor: index of the model whose config and tokenizer the output takes.
        jobs: the output tensors, in the order of the output files.
        shards: the output files.
        dtype: the dtype of the output's merged tensors.
        arithmetic, rounding, seed: how numbers are computed.
        layers: for layer stacks, what each output layer is made of, as (source, layer) pairs;
            None where whole models are merged.
        tied: whether the output has no head of its own.
        warnings: what the user should know before the merge.
        digest: of all that decides the output's bytes.
    """

    recipe: ParsedRecipe
    method: Method
    sources: tuple[Source, ...]
    base: int | None
    donor: int
    jobs: tuple[TensorJob, ...]
    shards: tuple[Shard, ...]
    dtype: DType
    arithmetic: Arithmetic
    rounding: Rounding
    seed: int
    layers: tuple[tuple[tuple[int, int], ...], ...] | None
    tied: bool
    warnings: tuple[str, ...]
    digest: str

    @property
    def output_bytes(self) -> int:
        """Size of all output files together."""
        return sum(shard.size for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes of weights that are read, each once."""
        reads = {read for job in self.jobs for read in job.reads}
        return sum(self.sources[r.source].checkpoint.specs[r.name].nbytes for r in reads)

    @property
    def parameters(self) -> int:
        """Number of elements of all output tensors together."""
        return sum(job.spec.numel for job in self.jobs)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One input of one output tensor, and the settings that come with it, nearest first."""

    source: int
    name: str
    path: Path
    parameters: Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class _Group:
    """One output tensor before its numbers are settled."""

    name: str
    place: Place
    layer: int | None
    position: float
    entries: tuple[_Entry, ...]
    base: int | None
    parameters: tuple[tuple[Path, Mapping[str, Setting]], ...]


def plan(
    config: Config,
    *,
    arithmetic: Arithmetic | None = None,
    rounding: Rounding | None = None,
    seed: int | None = None,
    shard_size: int | str = "5GB",
    strictness: Strictness = "normal",
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> Plan:
    """Decide a merge from the recipe and the checkpoints' headers, without reading weights.

    Args:
        config: a recipe: a file, a mapping, or one that was loaded.
        arithmetic, rounding, seed: replace what the recipe says.
        shard_size: greatest size of an output file; a larger tensor has one of its own.
        strictness: what becomes of keys that have no meaning; see :func:`merganser.recipe.load`.
        checkpoints: open checkpoints by the text of their references; others are opened.

    Raises:
        RecipeError: when the recipe cannot be what its author meant; with file, line and key.
        InputError: when a checkpoint is missing, corrupt, or does not fit the others.
    """
    try:
        size = parse_size(shard_size)
    except ValueError as error:
        raise RecipeError(f"shard size: {error}") from None
    parsed = recipe.load(config, strictness)
    return _Planner(
        parsed,
        checkpoints or {},
        arithmetic or parsed.recipe.arithmetic or "exact",
        rounding or parsed.recipe.rounding or "nearest",
        seed if seed is not None else parsed.recipe.seed or 0,
    ).plan(size)


class _Planner:
    """The steps of :func:`build` over what they share: the recipe, its sources and its warnings."""

    def __init__(
        self,
        parsed: ParsedRecipe,
        checkpoints: Mapping[str, Checkpoint],
        arithmetic: Arithmetic,
        rounding: Rounding,
        seed: int,
    ) -> None:
        self.parsed = parsed
        self.recipe = parsed.recipe
        self.arithmetic: Arithmetic = arithmetic
        self.rounding: Rounding = rounding
        self.seed = seed
        self.warnings = list(parsed.warnings)
        self.missing_tied: set[str] = set()
        self._refuse_unsupported()
        self.method = self._find_method()
        self._check_parameter_names()
        self.references = self._references()
        self.sources = tuple(
            self._open(r, path, checkpoints) for r, path in self.references.values()
        )
        self.index = {text: i for i, text in enumerate(self.references)}
        base = self.recipe.base_model
        self.base = self.index[base.text] if base is not None else None
        self.donor = self.base if self.base is not None else 0
        self._refuse_other_tokenizers()

    # -- what the recipe says -----------------------------------------------------------------

    def _refuse_unsupported(self) -> None:
        recipe, error = self.recipe, self.parsed.error
        if recipe.modules is not None:
            raise error("modules: is not supported yet", ("modules",))
        if recipe.tokenizer is not None and (
            recipe.tokenizer.tokens or recipe.tokenizer.pad_to_multiple_of
        ):
            raise error("tokenizer: with tokens or padding is not supported yet", ("tokenizer",))
        if recipe.chat_template is not None:
            raise error("chat_template: is not supported yet", ("chat_template",))

    def _find_method(self) -> Method:
        name = self.recipe.merge_method
        method = methods.get(name, self.arithmetic)
        if method is None:
            known = methods.names()
            hint = _nearest(name, known) or f"known are {', '.join(known)}"
            raise self.parsed.error(
                f"merge_method: there is no method {name!r}; {hint}", ("merge_method",)
            )
        if (
            self.arithmetic == "mergekit-0.1.4"
            and method.arithmetic != self.arithmetic
            and name != "passthrough"
        ):
            raise self.parsed.error(
                f"merge_method: {name} is not supported in the arithmetic of MergeKit 0.1.4 yet; linear is",
                ("merge_method",),
            )
        return method

    def _check_parameter_names(self) -> None:
        """Every parameter must be one of the method's, where the method looks for it."""
        known = [parameter.name for parameter in self.method.parameters]
        for path, parameters, per_model in self._parameter_blocks():
            for name in parameters:
                here = (*path, name)
                parameter = self.method.parameter(name)
                where = f"the method {self.method.name}"
                if name in self.method.ignored:
                    self._warn(here, f"has no effect in {self.method.name}, as in MergeKit")
                elif parameter is None:
                    self.warnings.append(self.parsed.oddity(name, here, known, where))
                elif per_model and not parameter.per_model:
                    self._warn(
                        here,
                        f"{name} is one number for all models; under a model it is ignored, "
                        "as MergeKit does: put it under the recipe's own parameters",
                    )

    def _parameter_blocks(self) -> Iterator[tuple[Path, Mapping[str, Setting], bool]]:
        yield ("parameters",), self.recipe.parameters, False
        for i, model in enumerate(self.recipe.models or []):
            yield ("models", i, "parameters"), model.parameters, True
        for i, piece in enumerate(self.recipe.slices or []):
            yield ("slices", i, "parameters"), piece.parameters, False
            for j, source in enumerate(piece.sources):
                yield ("slices", i, "sources", j, "parameters"), source.parameters, True

    def _warn(self, path: Path, message: str) -> None:
        address = self.parsed.document.address(path)
        text = f"{key_name(path)}: {message}"
        if self.parsed.strictness == "strict":
            raise self.parsed.error(text, path)
        self.warnings.append(f"{address}: {text}" if address else text)

    def _references(self) -> dict[str, tuple[ModelReference, Path]]:
        """All models in the order of the recipe; an unlisted base comes last, as in MergeKit."""
        found: dict[str, tuple[ModelReference, Path]] = {}
        for i, model in enumerate(self.recipe.models or []):
            path: Path = ("models", i, "model")
            if model.model.text in found:
                raise self.parsed.error(f"{key_name(path)}: {model.model} is listed twice", path)
            found[model.model.text] = model.model, path
        for i, piece in enumerate(self.recipe.slices or []):
            for j, source in enumerate(piece.sources):
                found.setdefault(
                    source.model.text, (source.model, ("slices", i, "sources", j, "model"))
                )
            if piece.base_model is not None:
                found.setdefault(
                    piece.base_model.text, (piece.base_model, ("slices", i, "base_model"))
                )
        if self.recipe.base_model is not None:
            base = self.recipe.base_model
            found.setdefault(base.text, (base, ("base_model",)))
        return found

    def _open(
        self, reference: ModelReference, path: Path, given: Mapping[str, Checkpoint]
    ) -> Source:
        if reference.adapter is not None:
            raise self.parsed.error(
                f"{key_name(path)}: adapters ({reference}) are not supported yet", path
            )
        checkpoint = given.get(reference.text)
        published = False
        if checkpoint is None:
            published = hub.local_folder(reference.path, self.parsed.folder) is None
            folder = hub.resolve(reference.path, reference.revision, self.parsed.folder)
            checkpoint = open_checkpoint(folder, reference.text)
        if "quantization_config" in checkpoint.config:
            raise InputError(f"{reference}: its weights are quantised, which is not supported yet")
        config = dict(checkpoint.config)
        if reference.architecture is not None:
            config["architectures"] = [reference.architecture]
        return Source(reference, checkpoint, infer(checkpoint.specs, config), published)

    def _refuse_other_tokenizers(self) -> None:
        """Where all tokenizers are the same, any choice among them is the donor's."""
        for key in ("tokenizer_source", "tokenizer"):
            if getattr(self.recipe, key) is None:
                continue
            found = [_tokenizer(source.checkpoint) for source in self.sources]
            given = (
                self.recipe.tokenizer.source
                if self.recipe.tokenizer
                else self.recipe.tokenizer_source
            )
            elsewhere = isinstance(given, ModelReference) and given.text not in self.index
            if None in found or len(set(found)) > 1 or elsewhere:
                raise self.parsed.error(
                    f"{key}: the models' tokenizers differ, and aligning them is not supported yet",
                    (key,),
                )

    # -- from models or slices to groups of tensors -------------------------------------------

    def _whole_models(self) -> Iterator[_Group]:
        listed = [
            _Entry(self.index[model.model.text], "", ("models", i, "parameters"), model.parameters)
            for i, model in enumerate(self.recipe.models or [])
        ]
        if self.base is not None and self.base not in [entry.source for entry in listed]:
            listed.append(_Entry(self.base, "", ("base_model",), {}))
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
                yield _Group(name, place, place.layer, position, entries, self.base, levels)

    def _present(self, name: str, place: Place, listed: Sequence[_Entry]) -> tuple[_Entry, ...]:
        """The inputs that have a tensor; a model without a head of its own lends its embedding."""
        tied = [self._lent(entry.source, name, place) for entry in listed]
        if None not in tied:
            self.missing_tied.add(name)  # a second copy of the embedding, as verl writes it
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
            entries.append(_Entry(entry.source, actual, entry.path, entry.parameters))
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

    def _slices(self) -> Iterator[_Group]:
        """Layer stacks: what comes before the layers from the first slice's models, what comes
        after from the last slice's."""
        slices = self.recipe.slices or []
        self.layers: list[tuple[tuple[int, int], ...]] = []
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

    def _outside_layers(self, i: int, *, after: bool) -> Iterator[_Group]:
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
    ) -> _Group:
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
            entries.append(_Entry(index, name, path, source.parameters))
        base = piece.base_model or self.recipe.base_model
        levels = (
            (("slices", i, "parameters"), piece.parameters),
            (("parameters",), self.recipe.parameters),
        )
        return _Group(
            output,
            place,
            layer,
            position,
            tuple(entries),
            self.index[base.text] if base is not None else None,
            levels,
        )

    # -- from groups to jobs ------------------------------------------------------------------

    def _job(self, group: _Group) -> TensorJob:
        entries = self._base_first(group)
        specs = [self.sources[e.source].checkpoint.specs[e.name] for e in entries]
        for entry, spec in zip(entries, specs, strict=True):
            if spec.shape != specs[0].shape:
                hint = (
                    "; their vocabularies differ"
                    if group.place.role in ("embedding", "head")
                    else ""
                )
                raise InputError(
                    f"{self.sources[entry.source].reference}: tensor {entry.name!r} is {list(spec.shape)}, but "
                    f"{list(specs[0].shape)} in {self.sources[entries[0].source].reference}{hint}"
                )
            if spec.dtype.floating and not spec.dtype.mergeable:
                raise InputError(
                    f"{self.sources[entry.source].reference}: tensor {entry.name!r} is "
                    f"{spec.dtype}, which is not supported yet"
                )
        reads = tuple(Read(entry.source, entry.name) for entry in entries)
        if not all(spec.dtype.floating for spec in specs):
            return TensorJob(
                group.name,
                specs[0],
                reads,
                "copy",
                {},
                None,
                FLOAT32,
                None,
                group.layer,
                group.place.role,
            )
        numbers = self._numbers(group, entries)
        promoted = _promote([spec.natural for spec in specs])
        given = self.recipe.dtype
        asked = BY_NAME[given] if given else promoted
        out = BY_NAME[self.recipe.out_dtype] if self.recipe.out_dtype else asked
        if self.arithmetic == "exact":
            wide = out in (FLOAT32, FLOAT64) or any(spec.dtype == FLOAT64 for spec in specs)
            work, cast = FLOAT64 if wide else FLOAT32, None
        else:
            upcast = FLOAT64 if asked == FLOAT64 else FLOAT32
            work = upcast if self.method.casts_up or self.method.combination else asked
            needed = out != asked or any(spec.dtype != asked for spec in specs)
            cast = asked if needed or not self.method.combination else None
        combination = self._combination(group, numbers)
        name = self.method.name
        identity = combination is not None and combination == Combination((1.0,))
        if identity and specs[0].dtype == out and cast is None:
            name = "copy"
        return TensorJob(
            group.name,
            TensorSpec(out, specs[0].shape),
            reads,
            name,
            numbers,
            combination,
            work,
            cast,
            group.layer,
            group.place.role,
        )

    def _base_first(self, group: _Group) -> tuple[_Entry, ...]:
        """Check the number of inputs, and put the base first where the method has one."""
        method, entries = self.method, group.entries
        least, most = method.models
        if method.base == "none":
            models = len(entries)
        else:
            of_base = [e for e in entries if e.source == group.base]
            if not of_base and method.base == "required":
                path = ("base_model",) if self.recipe.base_model else ("merge_method",)
                raise self.parsed.error(
                    f"{method.name} works on differences to a base model: "
                    + (
                        "list base_model among each slice's sources"
                        if group.base is not None
                        else "give base_model"
                    ),
                    path,
                )
            entries = (*of_base, *(e for e in entries if e.source != group.base))
            models = len(entries) - len(of_base)
        if models < least or (most is not None and models > most):
            wanted = (
                f"{least}"
                if most == least
                else f"at least {least}"
                if most is None
                else f"{least} to {most}"
            )
            beside = " beside the base" if method.base != "none" else ""
            raise self.parsed.error(
                f"{method.name} takes {wanted} model{'s' if wanted != '1' else ''}{beside}, not {models}",
                ("slices",) if self.recipe.slices else ("models",),
            )
        return entries

    def _numbers(self, group: _Group, entries: Sequence[_Entry]) -> dict[str, Any]:
        """Settle the method's parameters for one tensor: gradients, filters, precedence, types."""
        numbers: dict[str, Any] = {}
        models = [e for e in entries if self.method.base == "none" or e.source != group.base]
        for parameter in self.method.parameters:
            if parameter.per_model:
                numbers[parameter.argument] = tuple(
                    self._value(
                        parameter,
                        group,
                        entry.name,
                        ((entry.path, entry.parameters), *group.parameters),
                        entry,
                    )
                    for entry in models
                )
            else:
                numbers[parameter.argument] = self._value(
                    parameter, group, group.name, group.parameters, None
                )
        return numbers

    def _value(
        self,
        parameter: Parameter,
        group: _Group,
        name: str,
        levels: Sequence[tuple[Path, Mapping[str, Setting]]],
        entry: _Entry | None,
    ) -> Any:
        for path, parameters in levels:
            setting = parameters.get(parameter.name)
            if setting is None:
                continue
            value = setting.at(name, group.position)
            if value is None:
                continue
            try:
                return parameter.convert(value)
            except ValueError as error:
                here = (*path, parameter.name)
                raise self.parsed.error(f"{key_name(here)}: {error}", here) from None
        if parameter.required:
            whose = f" of {self.sources[entry.source].reference}" if entry else ""
            path = entry.path if entry else ("merge_method",)
            raise self.parsed.error(
                f"{self.method.name} needs the parameter {parameter.name!r}{whose}, and nothing gives it "
                f"for tensor {name!r}",
                path,
            )
        return parameter.default

    def _combination(self, group: _Group, numbers: Mapping[str, Any]) -> Combination | None:
        if not self.method.combination or self.method.wants_gram:
            return None
        try:
            combination: Combination = self.method.function(**numbers)
        except ValueError as error:
            raise self.parsed.error(
                f"{self.method.name}, tensor {group.name!r}: {error}", ("parameters",)
            ) from None
        if not all(math.isfinite(c) for c in combination.coefficients):
            raise self.parsed.error(
                f"{self.method.name}: the weights of tensor {group.name!r} give no finite number",
                ("parameters",),
            )
        return combination

    # -- the whole ----------------------------------------------------------------------------

    def plan(self, shard_size: int) -> Plan:
        groups = self._slices() if self.recipe.slices is not None else self._whole_models()
        jobs = [self._job(group) for group in groups]
        if not jobs:
            raise InputError("the models hold no tensors to merge")
        doubled = [name for name, count in _counts(job.name for job in jobs).items() if count > 1]
        if doubled:
            raise InputError(f"two inputs give the output tensor {doubled[0]!r}")
        self._report_idle_filters(jobs)
        for name in sorted(self.missing_tied):
            self.warnings.append(f"{name} is left out: every model ties it to its embedding")
        floats = [job.spec for job in jobs if job.method != "copy" or job.spec.dtype.floating]
        dtype = _commonest(floats) if floats else jobs[0].spec.dtype
        layers = tuple(self.layers) if self.recipe.slices is not None else None
        embeddings = {job.spec.shape for job in jobs if job.role == "embedding"}
        tied = not any(job.role == "head" and job.spec.shape in embeddings for job in jobs)
        shards = tuple(_shards(jobs, shard_size))
        return Plan(
            self.parsed,
            self.method,
            self.sources,
            self.base,
            self.donor,
            tuple(jobs),
            shards,
            dtype,
            self.arithmetic,
            self.rounding,
            self.seed,
            layers,
            tied,
            tuple(self.warnings),
            self._digest(jobs, shards),
        )

    def _report_idle_filters(self, jobs: Sequence[TensorJob]) -> None:
        names = {job.name for job in jobs} | {read.name for job in jobs for read in job.reads}
        for path, parameters, _ in self._parameter_blocks():
            for name, setting in parameters.items():
                for rule in setting.rules:
                    known = self.method.parameter(name) is not None
                    if known and rule.filter and not any(rule.matches(tensor) for tensor in names):
                        self._warn((*path, name), f"the filter {rule.filter!r} matches no tensor")

    def _digest(self, jobs: Sequence[TensorJob], shards: Sequence[Shard]) -> str:
        facts = {
            "format": FORMAT,
            "inputs": [[s.reference.text, s.checkpoint.header_digest] for s in self.sources],
            "arithmetic": self.arithmetic,
            "rounding": self.rounding,
            "seed": self.seed if self.rounding == "stochastic" else 0,
            "jobs": [
                [
                    job.name,
                    job.spec.dtype.name,
                    job.spec.shape,
                    [[r.source, r.name] for r in job.reads],
                    job.method,
                    job.numbers,
                    job.cast and job.cast.name,
                ]
                for job in jobs
            ],
            "shards": [hashlib.sha256(shard.header).hexdigest() for shard in shards],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def default_threads(plans: Sequence[Plan]) -> int:
    """As many threads as pay off: some wait for the disk while others compute; but of many small
    tensors Python has the most work, which only one thread at a time can do."""
    jobs = sum(len(plan.jobs) for plan in plans)
    if sum(plan.parameters for plan in plans) < jobs * CELL // 4:
        return 1
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    )
    return min(32, 2 * cores)


def memory_needed(plan: Plan) -> int:
    """Estimate of the resident memory that running a plan takes, in bytes."""
    return OVERHEAD + default_threads([plan]) * buffer_bytes([plan], TILE)


def buffer_bytes(plans: Sequence[Plan], tile: int) -> int:
    """What one thread's buffers take when plans run together, by their widest jobs."""
    most = 0
    for plan in plans:
        whole = not plan.method.combination and not plan.method.elementwise
        for job in plan.jobs:
            elements = (
                job.spec.numel if whole and job.method != "copy" else min(tile, job.spec.numel)
            )
            reads = sum(
                plan.sources[r.source].checkpoint.specs[r.name].dtype.itemsize for r in job.reads
            )
            in_torch = job.method != "copy" and (job.combination is None or job.cast is not None)
            numbers = 4 * job.work.itemsize * len(job.reads) if in_torch else 0
            most = max(most, elements * (reads + numbers + len(plans) * job.spec.dtype.itemsize))
    return most


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data for JSON."""
    return {
        "method": plan.method.name,
        "arithmetic": plan.arithmetic,
        "rounding": plan.rounding,
        "seed": plan.seed,
        "dtype": plan.dtype.name,
        "digest": plan.digest,
        "parameters": plan.parameters,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "models": [
            {
                "reference": s.reference.text,
                "base": i == plan.base,
                "donor": i == plan.donor,
                "tensors": len(s.checkpoint.specs),
                "layers": s.architecture.depth,
                "header_digest": s.checkpoint.header_digest,
            }
            for i, s in enumerate(plan.sources)
        ],
        "layers": None
        if plan.layers is None
        else [
            [
                {"model": plan.sources[source].reference.text, "layer": layer}
                for source, layer in sources
            ]
            for sources in plan.layers
        ],
        "shards": [
            {"file": s.file, "size": s.size, "tensors": len(s.offsets)} for s in plan.shards
        ],
        "tensors": [
            {
                "name": job.name,
                "role": job.role,
                "layer": job.layer,
                "dtype": job.spec.dtype.name,
                "shape": list(job.spec.shape),
                "method": job.method,
                "numbers": dict(job.numbers),
                "inputs": [
                    {"model": plan.sources[r.source].reference.text, "tensor": r.name}
                    for r in job.reads
                ],
            }
            for job in plan.jobs
        ],
        "warnings": list(plan.warnings),
    }


def _tokenizer(checkpoint: Checkpoint) -> bytes | None:
    """A tokenizer's contents, to be compared; None if there is none in one file."""
    file = checkpoint.path / "tokenizer.json" if checkpoint.path is not None else None
    return file.read_bytes() if file is not None and file.is_file() else None


def _position(layer: int | None, depth: int) -> float:
    """Where a layer lies in the depth of its slice; MergeKit puts a single layer at the end."""
    if layer is None:
        return 0.0
    return layer / (depth - 1) if depth > 1 else 1.0


def _promote(dtypes: Sequence[DType]) -> DType:
    """The dtype that loses nothing of any input: bfloat16 with float16 is float32, as in torch."""
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    return FLOAT64 if FLOAT64 in distinct else FLOAT32


def _commonest(specs: Sequence[TensorSpec]) -> DType:
    sizes: dict[DType, int] = {}
    for spec in specs:
        sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _counts(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _nearest(name: str, known: Sequence[str]) -> str | None:
    found = recipe.nearest(name, known, cutoff=0.6)
    return f"did you mean {found!r}?" if found else None


def _shards(jobs: Sequence[TensorJob], limit: int) -> Iterator[Shard]:
    """Deal the tensors out to files, in order; file names and headers are final."""
    runs: list[list[TensorJob]] = [[]]
    size = 0
    for job in jobs:
        if runs[-1] and 0 < limit < size + job.spec.nbytes:
            runs.append([])
            size = 0
        runs[-1].append(job)
        size += job.spec.nbytes
    for i, run in enumerate(runs, 1):
        file = (
            "model.safetensors"
            if len(runs) == 1
            else f"model-{i:05d}-of-{len(runs):05d}.safetensors"
        )
        yield _shard(file, run)


def _shard(file: str, jobs: Sequence[TensorJob]) -> Shard:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    begins = {}
    for job in jobs:
        begins[job.name] = position
        end = position + job.spec.nbytes
        entries[job.name] = {
            "dtype": job.spec.dtype.tag,
            "shape": list(job.spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(
        file, header, {n: len(header) + b for n, b in begins.items()}, len(header) + position
    )
