"""Read plans from JSON and check them against their inputs.

Whatever the file omits is computed again. The plan's digest, which covers everything that
determines the output's bytes, must match.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merganser import methods, recipe
from merganser.architecture import infer, without_layers
from merganser.checkpoints import Checkpoint, Stamp
from merganser.checkpoints.locator_json import read_table
from merganser.checkpoints.locators import Locator
from merganser.checkpoints.readers import Readers
from merganser.errors import InputError, RecipeError, reraise_os_errors
from merganser.methods import Combination, Method, Origin
from merganser.planning.digest import plan_digest
from merganser.planning.jobs import combined, dtypes_of
from merganser.planning.plan_data import (
    OpenSource,
    Plan,
    Read,
    Shard,
    Source,
    TensorJob,
    TokenizerEdit,
)
from merganser.planning.plan_json import FORMAT
from merganser.planning.plan_schema import InputEntry, PlanFile, RecipeEntry, TensorEntry
from merganser.planning.shards import shard_of
from merganser.recipe import ModelReference, ParsedRecipe
from merganser.recipe.document import Document, parse_document
from merganser.tensors import BY_NAME, TensorSpec
from merganser.tokenizer.vocabulary import AddedToken, OutputTokenizer, fingerprint, read_vocabulary

MAX_BYTES = 1 << 30
"""Maximum size of a plan's file; a mixture of 384 experts takes some 200 MB."""


def load_plan(
    source: str | Path | Mapping[str, Any],
    *,
    root: str | Path | None = None,
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> Plan:
    """Read a plan from its JSON, which :func:`merganser.planning.describe` returns, and check that its
    inputs are unchanged.

    Args:
        source: the file, or its content as a mapping.
        root: the folder that contains the inputs now; None for their recorded paths. Below ``root``
            files must have the same names, sizes and headers; their times do not matter.
        checkpoints: checkpoints in memory, by their names in the recipe.

    Returns:
        The plan, for :func:`merganser.merge` or :func:`merganser.run`.

    Raises:
        RecipeError: when it is not a plan, has another version, or was edited.
        InputError: when an input is missing or changed.
    """
    name = "the plan" if isinstance(source, Mapping) else str(source)
    data = dict(source) if isinstance(source, Mapping) else _read_json(Path(source))
    version = data.get("merganser_plan")
    if version != FORMAT:
        raise RecipeError(
            f"{name}: is not a plan"
            if version is None
            else f"{name}: is a plan of version {str(version)[:20]}, and this Merganser reads version "
            f"{FORMAT}; plan again"
        )
    try:
        file = PlanFile.model_validate(data)
        with reraise_os_errors(InputError, "read", name), Readers(checkpoints) as readers:
            return _Loader(
                file, readers, Path(root).absolute() if root is not None else None
            ).plan()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = recipe.key_name(tuple(first["loc"]))
        raise RecipeError(f"{name}: {place}: {first['msg'][:120]}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RecipeError(f"{name}: is not a valid plan ({reason})") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{file}: is too large for a plan")
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise RecipeError(f"{file}: is not a plan (it is not valid JSON)") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{file}: is not a plan")
    return data


class _Loader:
    """Rebuilds a plan from its file and its inputs."""

    def __init__(self, file: PlanFile, readers: Readers, root: Path | None) -> None:
        self.file = file
        self.readers = readers
        self.root = root or Path(file.root)
        self.moved = root is not None
        self.parsed = _parsed(file.recipe, self.root)
        self.locators = read_table(file.locators, self._path)
        self.method = self._method()

    def plan(self) -> Plan:
        file = self.file
        sources = tuple(self._source(entry) for entry in file.models)
        if all(source.bare for source in sources):
            sources = tuple(
                replace(item, architecture=without_layers(item.architecture)) for item in sources
            )
        places = {source.reference.text: i for i, source in enumerate(sources)}
        base = next((i for i, entry in enumerate(file.models) if entry.base), None)
        [donor] = [i for i, entry in enumerate(file.models) if entry.donor]
        jobs = tuple(self._job(entry, sources, places, base) for entry in file.tensors)
        shards = tuple(self._shards(jobs))
        layers = {
            module: tuple(
                tuple((places[item.model], item.layer) for item in made_of) for made_of in layers
            )
            for module, layers in file.layers.items()
        }
        _check_layers(layers, sources)
        tokenizer = self._tokenizer(sources)
        digest = plan_digest(
            sources,
            file.arithmetic,
            file.rounding,
            file.seed,
            jobs,
            shards,
            tokenizer,
            self.method,
            file.chat_template,
        )
        if digest != file.digest:
            raise ValueError("it was changed after it was written: its digest does not match")
        return Plan(
            self.parsed,
            file.method,
            self.method.origin,
            tuple(source.closed() for source in sources),
            base,
            donor,
            jobs,
            shards,
            BY_NAME[file.dtype],
            file.arithmetic,
            file.rounding,
            file.seed,
            file.weights,
            file.tensor_names,
            layers,
            file.tied,
            file.tie_word_embeddings,
            tuple(file.warnings),
            digest,
            tokenizer,
            file.vocabulary,
            file.chat_template,
        )

    def _path(self, text: object) -> Path:
        """A path from the file, below the root."""
        if not isinstance(text, str):
            raise TypeError("a path is a text")
        path = Path(text)
        if path.is_absolute() or ".." in path.parts or "\0" in text:
            raise ValueError(f"{text[:80]!r} is not below the root")
        return self.root / path

    def _method(self) -> Method:
        name, code = self.file.method, self.file.code
        method = methods.get(name, self.file.arithmetic)
        if method is None:
            raise RecipeError(
                f"the plan's merge method {name[:80]!r} is not registered; load the file "
                "of merge methods that has it"
            )
        planned = None if code is None else Origin(**code.model_dump())
        digest = None if method.origin is None else method.origin.digest
        if digest != (None if planned is None else planned.digest):
            raise RecipeError(
                f"the merge method {name!r} is not the one that was planned with; plan again"
            )
        return method

    def _source(self, entry: InputEntry) -> OpenSource:
        if entry.locator is None:
            raise InputError(
                f"{entry.reference}: was not merged yet when this was planned; plan again"
            )
        if not 0 <= entry.locator < len(self.locators):
            raise ValueError(f"locator {entry.locator} is not there")
        locator: Locator = self.locators[entry.locator]
        reference = ModelReference(**entry.names.model_dump())
        checkpoint = self.readers.at(locator)
        stamps = {file.absolute(): stamp for file, stamp in checkpoint.stamps.items()}
        stated = {self._path(file): Stamp(*stamp) for file, stamp in entry.files.items()}
        for file, stamp in stated.items():
            current = stamps.get(file)
            if current is None:
                raise InputError(f"{file}: existed when this was planned, and does not now")
            if current.size != stamp.size or (current != stamp and not self.moved):
                raise InputError(
                    f"{file}: changed since this was planned; plan again"
                    + ("" if current.size != stamp.size else ", or give the root of the copies")
                )
        if stamps.keys() != stated.keys() or checkpoint.header_digest != entry.header_digest:
            raise InputError(f"{reference}: its headers changed since this was planned; plan again")
        config = dict(checkpoint.config)
        if reference.architecture is not None:
            config["architectures"] = [reference.architecture]
        architecture = infer(checkpoint.specs, config, self.parsed.recipe.modules or ())
        return OpenSource(
            reference,
            checkpoint,
            architecture,
            entry.published,
            self._path(entry.adapter) if entry.adapter is not None else None,
            entry.published_adapter,
        )

    def _job(
        self,
        entry: TensorEntry,
        sources: Sequence[Source],
        places: Mapping[str, int],
        base: int | None,
    ) -> TensorJob:
        reads = tuple(Read(places[item.model], item.tensor) for item in entry.inputs)
        specs = [sources[read.source].checkpoint.specs[read.name] for read in reads]
        spec = TensorSpec(BY_NAME[entry.dtype], tuple(entry.shape))
        if not reads or any(item.shape != spec.shape for item in specs):
            raise ValueError(f"tensor {entry.name[:80]!r} is of another shape than its inputs")
        if entry.method not in (self.method.name, "copy", "passthrough"):
            raise ValueError(f"tensor {entry.name[:80]!r} is merged by {entry.method[:40]!r}")
        if entry.method == "copy" and any(item.dtype != spec.dtype for item in specs):
            raise ValueError(
                f"tensor {entry.name[:80]!r} would be copied, but the input has another dtype than the plan says"
            )
        if entry.based and (base is None or reads[0].source != base or self.method.base == "none"):
            raise ValueError(f"tensor {entry.name[:80]!r} starts from no base")
        numbers = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.numbers.items()
        }
        taken = entry.method == "passthrough" and not numbers
        copied = entry.method == "copy"
        if not taken and not copied:
            self._check_numbers(entry.name, numbers, len(reads) - entry.based)
        combination, consensus = (
            (None if copied else Combination((1.0,)), None)
            if copied or taken
            else combined(self.method, numbers, len(reads), entry.based)
        )
        work, cast = BY_NAME[entry.computed_in], entry.cast and BY_NAME[entry.cast]
        if not copied and not taken:
            written = self.parsed.recipe
            dtypes = dtypes_of(
                self.method, self.file.arithmetic, specs, written.dtype, written.out_dtype
            )
            if dtypes != (spec.dtype, work, cast):
                raise ValueError(f"tensor {entry.name[:80]!r} is computed in another dtype")
        elif work.name not in ("float32", "float64") or cast is not None:
            raise ValueError(f"tensor {entry.name[:80]!r} is computed in another dtype")
        return TensorJob(
            entry.name,
            spec,
            reads,
            entry.method,
            numbers,
            combination,
            work,
            cast or None,
            entry.layer,
            entry.role,
            consensus,
            entry.based,
        )

    def _check_numbers(self, name: str, numbers: Mapping[str, Any], models: int) -> None:
        known = {parameter.argument: parameter for parameter in self.method.parameters}
        if known.keys() != numbers.keys():
            raise ValueError(f"tensor {name[:80]!r} has other parameters than {self.method.name}")
        for argument, value in numbers.items():
            parameter = known[argument]
            values = value if parameter.per_model else (value,)
            if not isinstance(values, tuple) or (parameter.per_model and len(values) != models):
                raise ValueError(f"tensor {name[:80]!r}: {argument} is not one number a model")
            for number in values:
                if number is not parameter.default and parameter.convert(number) != number:
                    raise ValueError(f"tensor {name[:80]!r}: {argument} is {str(number)[:40]}")
        if self.method.check is not None:
            self.method.check(**numbers)

    def _shards(self, jobs: Sequence[TensorJob]) -> Iterator[Shard]:
        """The output files; headers and offsets follow from their tensors."""
        homes = {Path(shard.file).parent.as_posix() for shard in self.file.shards} - {"."}
        waiting: dict[str, list[TensorJob]] = {}
        for job in jobs:
            home = job.name.rpartition("/")[0]
            waiting.setdefault(home if home in homes else "", []).append(job)
        for entry in self.file.shards:
            home = Path(entry.file).parent.as_posix().removeprefix(".")
            queue = waiting.get(home, [])
            run, waiting[home] = queue[: entry.tensors], queue[entry.tensors :]
            shard = shard_of(entry.file, run, f"{home}/" if home else "")
            if shard.size != entry.size or len(run) != entry.tensors:
                raise ValueError(f"{entry.file[:80]!r} is of another size")
            yield shard
        if any(waiting.values()):
            raise ValueError("some tensors are in no file")

    def _tokenizer(self, sources: Sequence[Source]) -> TokenizerEdit | None:
        entry, edit = self.file.tokenizer, self.file.tokenizer_edit
        if entry is None or edit is None:
            return None
        donors = tuple(self._source(item) for item in edit.donors)
        every = (*sources, *donors)
        owner = None if edit.model is None else every[edit.model]
        folder = self._path(edit.folder) if owner is None else owner.checkpoint.path
        if folder is None or not folder.is_dir():
            raise InputError(f"{entry.from_}: its tokenizer is not there")
        if fingerprint(folder) != edit.files:
            raise InputError(f"{folder}: its tokenizer changed since this was planned; plan again")
        start = read_vocabulary(folder, entry.from_)
        dropped = frozenset(entry.left_out)
        tokens = {token: n for token, n in start.tokens.items() if token not in dropped}
        new = tuple(
            AddedToken(content, number, tuple(flags))
            for (content, number), flags in zip(entry.added.items(), edit.flags, strict=True)
        )
        tokens |= {item.content: item.id for item in new}
        if len(tokens) != entry.tokens or len(set(tokens.values())) != len(tokens):
            raise ValueError("its tokenizer has other tokens")
        output = OutputTokenizer(start, tokens, new, dropped, tuple(edit.conflicts))
        moved = {(key, old): into for key, old, into in edit.moved}
        return TokenizerEdit(output, moved, tuple(item.closed() for item in donors))


def _check_layers(
    layers: Mapping[str, Sequence[Sequence[tuple[int, int]]]], sources: Sequence[Source]
) -> None:
    for made_of in layers.values():
        for source, layer in (layer_of for each_layer in made_of for layer_of in each_layer):
            depths = [m.depth for m in sources[source].architecture.modules.values()]
            if not 0 <= layer < max(depths, default=0):
                raise ValueError(f"{sources[source].reference} has no layer {layer}")


def _parsed(entry: RecipeEntry, root: Path) -> ParsedRecipe:
    """The recipe, with the places of its references."""
    document = (
        parse_document(entry.text, entry.file) if entry.text is not None else Document(entry.data)
    )
    folder = None if entry.folder is None else root / entry.folder
    parsed = recipe.validate(document, folder, entry.strictness)
    given = [ModelReference(**reference.model_dump()) for reference in entry.references]
    parsed = parsed.with_references(lambda _: given.pop(0))
    if given:
        raise ValueError("its recipe has other references")
    results = {name: Path(path) for name, path in entry.results.items()}
    return replace(parsed, results=results)
