"""Align vocabularies: build the output's tokenizer, and give every input one row per output token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from merganser import hub, suggestions
from merganser.architecture import Place, lends_embedding, vocabulary_size
from merganser.checkpoints import read_config, read_json
from merganser.checkpoints.computed.vocabulary_rows import (
    FILL,
    MEAN,
    ZERO,
    Donor,
    GatheredTensor,
    RowMap,
    gathered,
)
from merganser.errors import InputError
from merganser.planning.inputs import Inputs, Opener
from merganser.planning.plan_data import OpenSource, TokenizerEdit
from merganser.planning.vocabulary_tensors import vocabulary_tensors
from merganser.recipe import ModelReference, key_name
from merganser.recipe.schema import ModelTokenSource, Tokenizer, TokenRule, ZeroTokenSource
from merganser.tokenizer.editing import map_token_ids
from merganser.tokenizer.vocabulary import (
    PLAIN,
    OutputTokenizer,
    Vocabulary,
    extended,
    fingerprint,
    has_tokenizer,
    kept,
    read_vocabulary,
    union,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Aligned:
    """The aligned inputs, and the output's tokenizer and number of rows.

    Attributes:
        sources: the inputs, with one row per token of the output.
        tokenizer: the output's tokenizer.
        rows: number of rows of the output's embeddings.
    """

    sources: tuple[OpenSource, ...]
    tokenizer: TokenizerEdit
    rows: int | None


@dataclass(frozen=True, slots=True)
class TokenizedModel:
    """A model with its tokenizer and its tensors with one row per token.

    Attributes:
        source: the model.
        vocabulary: its tokenizer's vocabulary.
        tensors: its tensors with one row per token.
        rows: number of rows of these tensors; None if it has none.
    """

    source: OpenSource
    vocabulary: Vocabulary
    tensors: tuple[str, ...]
    rows: int | None


class Aligner:
    """Aligns the vocabularies of a recipe's models.

    Args:
        inputs: the models.
        opener: opens models that are not inputs.
    """

    def __init__(self, inputs: Inputs, opener: Opener) -> None:
        self.parsed = parsed = opener.parsed
        self.sources = inputs.sources
        self.index: Mapping[str, int] = inputs.index
        self.base = inputs.base
        self.donor = inputs.donor
        self.open_source = opener.open
        self.warn = opener.warnings
        recipe = parsed.recipe
        legacy = recipe.tokenizer_source
        self.key = "tokenizer" if recipe.tokenizer is not None else "tokenizer_source"
        self.wanted = recipe.tokenizer or Tokenizer(source=legacy or "union")
        self.rules: Mapping[str, TokenRule] = self.wanted.tokens or {}
        self.read: dict[str, Vocabulary] = {}

    def align(self) -> Aligned:
        """The aligned inputs, with the output's tokenizer and number of rows.

        Raises:
            RecipeError: when a rule cannot be applied.
            InputError: when a model's tokenizer is missing or corrupt.
        """
        models = self._models()
        start, output = self._output(models)
        rows, keeps = self._rows(output, start)
        donors = [*models, *self._more_donors()]
        maps = self._maps(donors, output, rows, start if keeps else None)
        sources = tuple(self._wrapped(i, donors, maps[i]) for i in range(len(self.sources)))
        moved = self._moved_ids(models[self.donor].vocabulary, output, start)
        more = tuple(model.source for model in donors[len(models) :])
        edit = TokenizerEdit(output, moved, more)
        return Aligned(sources, edit, rows)

    # -- the tokenizer ------------------------------------------------------------------------

    def _models(self) -> list[TokenizedModel]:
        """The inputs with their vocabularies; an input without a tokenizer uses the donor's."""
        first = self._model(self.sources[self.donor], None)
        models = []
        for i, source in enumerate(self.sources):
            models.append(first if i == self.donor else self._model(source, first))
        return models

    def _model(self, source: OpenSource, donor: TokenizedModel | None) -> TokenizedModel:
        tensors = vocabulary_tensors(source)
        specs = source.checkpoint.specs
        rows = specs[tensors[0]].shape[0] if tensors else None
        folder, label = source.checkpoint.path, source.reference.text
        if donor is not None and not has_tokenizer(folder) and rows == donor.rows:
            self.warn(
                (self.key,),
                f"{label} has no tokenizer; that of {donor.source.reference} is assumed",
            )
            return TokenizedModel(source, donor.vocabulary, tensors, rows)
        if folder is None:
            raise InputError(f"{label}: has no tokenizer, and {self.key} needs it")
        return TokenizedModel(source, self._vocabulary(folder, label), tensors, rows)

    def _vocabulary(self, folder: FilePath, label: str) -> Vocabulary:
        """A model's vocabulary; models with equal tokenizers share one."""
        mark = fingerprint(folder)
        if mark not in self.read:
            self.read[mark] = read_vocabulary(folder, label)
        return replace(self.read[mark], label=label, folder=folder)

    def _output(self, models: Sequence[TokenizedModel]) -> tuple[TokenizedModel, OutputTokenizer]:
        """The model from whose tokenizer the output's is built, and the output's tokenizer."""
        given = self.wanted.source
        start = models[self.donor]
        if isinstance(given, ModelReference):
            start = (
                models[self.index[given.text]] if given.text in self.index else self._outside(given)
            )
        output = kept(start.vocabulary, start.rows)
        if output.dropped:
            self.warn(
                (self.key,),
                f"{_some(output.dropped)} of {start.source.reference} have no row in its embedding, "
                "and are left out of its tokenizer",
            )
        if given == "union":
            order = [start, *(model for model in models if model is not start)]
            output = union(output, [(model.vocabulary, model.rows) for model in order])
            if output.conflicts:
                self.warn(
                    (self.key,),
                    f"{_some(output.conflicts)} are set differently by the models; "
                    "the first one's settings are used",
                )
        missing = {token: PLAIN for token in self.rules if token not in output.tokens}
        return start, extended(output, missing) if missing else output

    def _outside(self, reference: ModelReference) -> TokenizedModel:
        """A model that provides its tokenizer only."""
        with self.parsed.document.addressed(
            (self.key, "source") if self.key == "tokenizer" else (self.key,)
        ):
            try:
                folder = hub.resolve(
                    reference.path, reference.revision, self.parsed.folder, weights=False
                )
            except InputError as error:
                words = ("base", "union", *(source.reference.text for source in self.sources))
                slip = suggestions.nearest(reference.text, words)
                if slip is None:
                    raise
                message = (
                    f"{self.key}: there is no model {reference.text!r}; did you mean {slip!r}?"
                )
                raise self.parsed.error(message, (self.key,)) from error
        config = read_config(folder)
        vocabulary = self._vocabulary(folder, reference.text)
        source = self.sources[self.donor]
        return TokenizedModel(
            replace(source, reference=reference), vocabulary, (), vocabulary_size(config)
        )

    def _rows(self, output: OutputTokenizer, start: TokenizedModel) -> tuple[int, bool]:
        """The number of output rows, and whether they include the start's padding (rows without a
        token). Padding stays only with an unchanged tokenizer and no ``pad_to_multiple_of``."""
        multiple = self.wanted.pad_to_multiple_of
        if multiple:
            return -(-output.size // multiple) * multiple, False
        if output.changed or start.rows is None:
            return output.size, False
        return start.rows, True

    # -- the rows -----------------------------------------------------------------------------

    def _more_donors(self) -> list[TokenizedModel]:
        """Models that token rules refer to and that are not merged."""
        donors: dict[str, TokenizedModel] = {}
        for token, rule in self.rules.items():
            reference = _donor_of(rule)
            if reference is not None and reference.text not in {*self.index, *donors}:
                source = self.open_source(reference, (self.key, "tokens", token, "source"))
                donors[reference.text] = self._model(source, None)
        self.index = {**self.index, **{t: len(self.index) + i for i, t in enumerate(donors)}}
        return list(donors.values())

    def _maps(
        self,
        donors: Sequence[TokenizedModel],
        output: OutputTokenizer,
        rows: int,
        padded: TokenizedModel | None,
    ) -> list[RowMap]:
        """The row map of each input."""
        merged = len(self.sources)
        ids = np.fromiter(output.tokens.values(), np.int64, len(output.tokens))
        row_of = np.full((len(donors), rows), -1, np.int32)
        for i, model in enumerate(donors):
            tokens = model.vocabulary.tokens
            same = tokens is output.tokens
            places = ids if same else map(tokens.get, output.tokens, repeat(-1))
            rows_of_ids = np.fromiter(places, np.int32, len(ids))
            rows_of_ids[rows_of_ids >= (model.rows or 0)] = -1
            row_of[i, ids] = rows_of_ids
        unnamed = np.ones(rows, bool)
        unnamed[ids] = False
        if padded is not None:
            for i, model in enumerate(donors):
                if model.vocabulary.tokens == padded.vocabulary.tokens:
                    here = np.flatnonzero(unnamed[: model.rows or 0])
                    row_of[i, here] = here
        forced = np.zeros(rows, bool)
        forced[[output.tokens[token] for token, rule in self.rules.items() if rule.force]] = True
        origin, row, means = _defaults(row_of[:merged], self.base, forced)
        origin[unnamed & (origin == ZERO)] = FILL
        ruled = set()
        for token, rule in self.rules.items():
            if rule.source is not None:
                place = output.tokens[token]
                origin[place], row[place] = self._ruled(donors, token, rule)
                ruled.add(place)
        owned = (row_of[:merged] >= 0).any(axis=0)
        lost = set(np.flatnonzero((origin == ZERO) & ~owned).tolist()) - ruled
        if lost and any(model.rows is not None for model in donors[:merged]):
            names = [token for token, number in output.tokens.items() if number in lost]
            self.warn(
                (self.key,),
                f"no model has {_some(names)}: the embedding has zeros there until it is trained",
            )
        maps = []
        for i in range(merged):
            mine = (row_of[i] >= 0) & ~forced
            maps.append(
                RowMap(np.where(mine, np.int32(i), origin), np.where(mine, row_of[i], row), means)
            )
        return maps

    def _ruled(
        self, donors: Sequence[TokenizedModel], token: str, rule: TokenRule
    ) -> tuple[int, int]:
        """The origin (index of a donor, or ZERO) and the row there that a rule assigns to a token.

        Raises:
            RecipeError: when the donor has no such token or row.
        """
        if isinstance(rule.source, ZeroTokenSource):
            return ZERO, 0
        reference = _donor_of(rule)
        assert reference is not None
        index = self.index[reference.text]
        model, path = donors[index], (self.key, "tokens", token, "source")
        if isinstance(rule.source, ModelTokenSource) and rule.source.token_id is not None:
            number = rule.source.token_id
        else:
            named = rule.source.token if isinstance(rule.source, ModelTokenSource) else token
            assert named is not None
            token_id = model.vocabulary.tokens.get(named)
            if token_id is None:
                raise self.parsed.error(
                    f"{key_name(path)}: {reference} has no token {named!r}", path
                )
            number = token_id
        if not 0 <= number < (model.rows or 0):
            raise self.parsed.error(
                f"{key_name(path)}: the embedding of {reference} has no row {number} "
                f"(it has {model.rows or 0})",
                path,
            )
        return index, number

    def _wrapped(self, index: int, donors: Sequence[TokenizedModel], rows: RowMap) -> OpenSource:
        """An input whose tensors with one row per token have the output's rows."""
        model = donors[index]
        source = model.source
        if model.rows is None or rows.is_identity(index, model.rows):
            return source
        places = dict(source.architecture.places)
        wanted = {name: places[name] for name in model.tensors}
        for other in donors[: len(self.sources)]:
            for name in other.tensors:
                place = other.source.architecture.places[name]
                if _lends_head(source, name, place) and name not in wanted:
                    wanted[name] = places[name] = place
        tensors = {
            name: GatheredTensor([_counterpart(d, name, place) for d in donors], index, rows)
            for name, place in wanted.items()
        }
        return replace(
            source,
            checkpoint=gathered(source.checkpoint, tensors),
            architecture=replace(source.architecture, places=places),
        )

    # -- the ids in configs -------------------------------------------------------------------

    def _moved_ids(
        self, donor: Vocabulary, output: OutputTokenizer, start: TokenizedModel
    ) -> Mapping[tuple[str, int], int | None]:
        """New ids of the tokens that the donor's configs name, by key and old id.

        A token that the output lacks is replaced by the token with the same role in the
        tokenizer.
        """
        moved: dict[tuple[str, int], int | None] = {}
        if donor is output.start and not output.dropped:
            return moved
        names = {number: token for token, number in donor.tokens.items()}
        roles = start.vocabulary.roles

        @cache  # config.json and generation_config.json name the same tokens
        def new_id(key: str, number: int) -> int | None:
            if number not in names:
                return number
            changed = output.tokens.get(names[number])
            if changed is None:
                role = key.removesuffix("_token_id")
                changed = output.tokens.get(roles.get(role, ""))
                self.warn(
                    (self.key,),
                    f"{key} was {names[number]!r}, which the tokenizer lacks; it is "
                    + (f"{roles[role]!r} now" if changed is not None else "left out"),
                )
            if changed != number:
                moved[key, number] = changed
            return changed

        source = self.sources[self.donor].checkpoint
        map_token_ids(dict(source.config), new_id)
        generation = source.path / "generation_config.json" if source.path is not None else None
        if generation is not None and generation.is_file():
            map_token_ids(read_json(generation), new_id)
        return moved


def truncated(sources: Sequence[OpenSource]) -> tuple[tuple[OpenSource, ...], int | None]:
    """The sources with their vocabularies cut to the shortest, and its number of rows (None if no
    source has a vocabulary)."""
    names = [vocabulary_tensors(source) for source in sources]
    sizes = [
        source.checkpoint.specs[matrices[0]].shape[0] if matrices else None
        for source, matrices in zip(sources, names, strict=True)
    ]
    known = [size for size in sizes if size is not None]
    if not known:
        return tuple(sources), None
    least = min(known)
    first = RowMap(
        np.zeros(least, np.int32), np.arange(least, dtype=np.int32), np.zeros((0, 1), np.int32)
    )
    cut = []
    for source, matrices, size in zip(sources, names, sizes, strict=True):
        if size is not None and size > least:
            tensors = {
                name: GatheredTensor([Donor(source.checkpoint, name)], 0, first)
                for name in matrices
            }
            source = replace(source, checkpoint=gathered(source.checkpoint, tensors))
        cut.append(source)
    return tuple(cut), least


def _defaults(row_in_model: Array, base: int | None, forced: Array) -> tuple[Array, Array, Array]:
    """Default rows for models that lack a token: the only owner's row, else the base's, else the
    mean of all owners' rows; zeros if no model has it.

    Args:
        row_in_model: int32 [models, rows], for each output row the row in each model; -1 if it has none.
        base: index of the base model, or None.
        forced: bool [rows], rows that all models take.

    Returns:
        int32 [rows], the origin of each output row: index of a model, MEAN or ZERO. int32 [rows], the
        row there; for MEAN the index in the third array. int32 [m, models], the rows to average.
    """
    has = row_in_model >= 0
    owners = has.sum(axis=0)
    origin = np.full(row_in_model.shape[1], ZERO, np.int32)
    row = np.zeros(row_in_model.shape[1], np.int32)
    one = np.where(owners == 1, has.argmax(axis=0), -1)
    if base is not None:
        one = np.where((owners > 1) & has[base], base, one)
    picked = np.flatnonzero(one >= 0)
    origin[picked] = one[picked]
    row[picked] = row_in_model[one[picked], picked]
    shared = np.flatnonzero((owners > 1) & ((owners < len(row_in_model)) | forced) & (one < 0))
    origin[shared] = MEAN
    row[shared] = np.arange(len(shared))
    return origin, row, np.ascontiguousarray(row_in_model[:, shared].T)


def _donor_of(rule: TokenRule) -> ModelReference | None:
    """The model that a rule takes a token from."""
    source = rule.source
    return (
        source.model
        if isinstance(source, ModelTokenSource)
        else (source if isinstance(source, ModelReference) else None)
    )


def _lends_head(source: OpenSource, name: str, place: Place) -> bool:
    """Whether a model's embedding serves as a head that other models have. If so, tokens of
    other models need one row for the embedding and one for the head."""
    architecture = source.architecture
    has_none = architecture.key(name) not in architecture.names
    head = place.role == "head" and place.vocabulary
    return head and has_none and lends_embedding(source.checkpoint.config)


def _counterpart(donor: TokenizedModel, name: str, place: Place) -> Donor | None:
    """A donor's counterpart of another model's tensor: the tensor of that name, or the embedding
    that serves as the head."""
    source = donor.source
    tensor = source.architecture.names.get(source.architecture.key(name))
    if tensor is None and _lends_head(source, name, place):
        places = source.architecture.places
        tensor = next((each for each in donor.tensors if places[each].role == "embedding"), None)
    return (
        Donor(source.checkpoint, tensor) if tensor in donor.tensors and tensor is not None else None
    )


def _some(tokens: Iterable[str]) -> str:
    """Tokens for messages: the first three, and the number of the others."""
    shown_first = sorted(tokens)
    shown = ", ".join(repr(token) for token in shown_first[:3])
    many = f" and {len(shown_first) - 3} more" if len(shown_first) > 3 else ""
    return f"token{'s' if len(shown_first) > 1 else ''} {shown}{many}"
