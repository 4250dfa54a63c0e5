"""Turn a group of tensors into a job: ordered inputs, parameters, dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from merganser.errors import InputError
from merganser.methods import Combination, Method, Parameter, SparseDeltas
from merganser.methods.checks import check_coefficients, check_sparse_deltas, fault
from merganser.planning.groups import Entry, Group
from merganser.planning.parameter_checks import Oddities
from merganser.planning.plan_data import Arithmetic, Read, Source, TensorJob
from merganser.recipe import ParsedRecipe, Setting, key_name
from merganser.recipe.document import KeyPath
from merganser.tensors import BY_NAME, FLOAT32, FLOAT64, DType, TensorSpec


class JobMaker:
    """Makes jobs from groups, for one recipe."""

    def __init__(
        self,
        parsed: ParsedRecipe,
        method: Method,
        sources: Sequence[Source],
        arithmetic: Arithmetic,
    ) -> None:
        self.parsed = parsed
        self.recipe = parsed.recipe
        self.method = method
        self.sources = sources
        self.arithmetic = arithmetic
        self.oddities = Oddities(method)
        self.alone: dict[str, int] = {}

    def job(self, group: Group) -> TensorJob:
        """Make one group's job.

        Raises:
            RecipeError: when parameters are missing or wrong, or the method takes another number of
                inputs.
            InputError: when the inputs' shapes or dtypes do not fit.
        """
        if group.taken:
            return self._taken(group, group.entries[0])
        base, models = self._sides(group)
        if group.partial and (alone := self._alone(group, base, models)) is not None:
            self.alone[group.name] = alone.source
            return self._taken(group, alone)
        self._check_inputs(group, base, models)
        entries = (*([base] if base is not None else []), *models)
        specs = [self.sources[e.source].checkpoint.specs[e.name] for e in entries]
        for entry, spec in zip(entries, specs, strict=True):
            if spec.shape != specs[0].shape:
                hint = (
                    "; their vocabularies differ: write tokenizer_source: union (or base, or one of "
                    "the models) to align them by their tokens"
                    if group.place.vocabulary
                    and spec.shape[1:] == specs[0].shape[1:]
                    and not (self.recipe.tokenizer or self.recipe.tokenizer_source)
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
        if group.place.role == "buffer":
            return self._copy(group, specs[0], reads[:1] if specs[0].dtype.floating else reads)
        numbers, paths = self._numbers(group, models)
        for other in group.alike:
            if self._numbers(other, self._sides(other)[1])[0] != numbers:
                raise self.parsed.error(
                    f"slices: the tensor {group.name!r} of "
                    f"{self.sources[entries[0].source].reference} has a block for each layer and is merged as "
                    "one tensor, so its parameters must be the same in all slices; set them for it "
                    "with a filter",
                    ("slices",),
                )
        if models:
            if self.method.check is not None:
                self._accepted(self.method.check, group, numbers)
            self.oddities.judge(group.name, numbers, paths)
        out, work, cast = dtypes_of(
            self.method, self.arithmetic, specs, self.recipe.dtype, self.recipe.out_dtype
        )
        based = self.method.base != "none" and entries[0].source == group.base
        combination, consensus = self._combined(group, numbers, len(entries), based)
        name = self.method.name
        identity = combination is not None and combination == Combination((1.0,))
        if identity and specs[0].dtype == out and cast is None:
            name, combination = "copy", None
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
            consensus,
            based,
        )

    def _copy(self, group: Group, spec: TensorSpec, reads: tuple[Read, ...]) -> TensorJob:
        """A bitwise copy of the first input."""
        role = group.place.role
        return TensorJob(
            group.name, spec, reads, "copy", {}, None, FLOAT32, None, group.layer, role
        )

    def _taken(self, group: Group, entry: Entry) -> TensorJob:
        """A copy of one input, converted only if the recipe asks for another dtype."""
        spec = self.sources[entry.source].checkpoint.specs[entry.name]
        reads = (Read(entry.source, entry.name),)
        named = self.recipe.out_dtype or self.recipe.dtype
        out = BY_NAME[named] if named else spec.natural
        if group.place.role == "buffer" or out == spec.dtype:
            return self._copy(group, spec, reads)
        wide = FLOAT64 if FLOAT64 in (out, spec.dtype) else FLOAT32
        return TensorJob(
            group.name,
            TensorSpec(out, spec.shape),
            reads,
            "passthrough",
            {},
            Combination((1.0,)),
            wide,
            None,
            group.layer,
            group.place.role,
        )

    def _sides(self, group: Group) -> tuple[Entry | None, tuple[Entry, ...]]:
        """The base, if the method has one, and the models. If a slice lists the base twice (one
        model at two ranges of layers), its first entry is the base and its second a model."""
        base = next((e for e in group.entries if e.source == group.base), None)
        if base is None or self.method.base == "none":
            return None, group.entries
        return base, tuple(entry for entry in group.entries if entry is not base)

    def _alone(self, group: Group, base: Entry | None, models: Sequence[Entry]) -> Entry | None:
        """The input to copy if too few models have the tensor for the method (the base's, if the base
        has it); None to merge.

        Raises:
            InputError: when the method requires a base, and the base lacks the tensor.
        """
        if self.method.base == "required" and base is None and group.base is not None:
            lacking, present = self.sources[group.base], self.sources[models[0].source]
            raise InputError(
                f"{lacking.reference}: has no tensor {group.name!r}, which {present.reference} has, "
                f"and {self.method.name} works on differences to it; tensor_names='intersection' "
                "leaves such tensors out"
            )
        few = len(models) < max(1, self.method.models[0])
        return (base or models[0]) if few else None

    def _check_inputs(self, group: Group, base: Entry | None, models: Sequence[Entry]) -> None:
        """Raise if the method does not take this number of inputs."""
        method = self.method
        least, most = method.models
        if method.base == "required" and base is None:
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
        if group.partial and len(models) >= least:
            return
        if len(models) < least or (most is not None and len(models) > most):
            wanted = (
                f"{least}"
                if most == least
                else f"at least {least}"
                if most is None
                else f"{least} to {most}"
            )
            without_base = " (not counting the base)" if method.base != "none" else ""
            raise self.parsed.error(
                f"{method.name} takes {wanted} model{'s' if wanted != '1' else ''}{without_base}, "
                f"not {len(models)}",
                group.entries[0].path[:-2] if group.entries else (),
            )

    def _numbers(
        self, group: Group, models: Sequence[Entry]
    ) -> tuple[dict[str, Any], dict[str, list[KeyPath | None]]]:
        """Resolve the method's parameters for one tensor: gradients, filters, precedence, types.

        Returns:
            The values, and their places in the recipe; None for a default.
        """
        numbers: dict[str, Any] = {}
        paths: dict[str, list[KeyPath | None]] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                values = [
                    self._value(
                        parameter,
                        group,
                        entry.name,
                        ((entry.path, entry.parameters), *group.parameters),
                        entry,
                    )
                    for entry in models
                ]
                numbers[parameter.argument] = tuple(value for value, _ in values)
            else:
                values = [self._value(parameter, group, group.name, group.parameters, None)]
                numbers[parameter.argument] = values[0][0]
            paths[parameter.argument] = [path for _, path in values]
        return numbers, paths

    def _value(
        self,
        parameter: Parameter,
        group: Group,
        name: str,
        levels: Sequence[tuple[KeyPath, Mapping[str, Setting]]],
        entry: Entry | None,
    ) -> tuple[Any, KeyPath | None]:
        """A parameter's value for one tensor, and its place in the recipe; None for a default."""
        for path, parameters in levels:
            setting = parameters.get(parameter.name)
            if setting is None:
                continue
            value = setting.at(name, group.position)
            if value is None:
                continue
            here = (*path, parameter.name)
            try:
                return parameter.convert(value), here
            except ValueError as error:
                raise self.parsed.error(f"{key_name(here)}: {error}", here) from None
        if parameter.required:
            whose = f" of {self.sources[entry.source].reference}" if entry else ""
            at = entry.path if entry else ("merge_method",)
            raise self.parsed.error(
                f"{self.method.name} needs the parameter {parameter.name!r}{whose}, and nothing gives it "
                f"for tensor {name!r}",
                at,
            )
        return parameter.default, None

    def _combined(
        self, group: Group, numbers: Mapping[str, Any], inputs: int, based: bool
    ) -> tuple[Combination | None, SparseDeltas | None]:
        """:func:`combined` for a group; errors name the place in the recipe."""

        def call(**numbers: Any) -> tuple[Combination | None, SparseDeltas | None]:
            return combined(self.method, numbers, inputs, based)

        combination, sparse = self._accepted(call, group, numbers)
        weights = () if combination is None else combination.coefficients
        weights = weights if sparse is None else sparse.weights or ()
        if not all(math.isfinite(c) for c in weights):
            raise self.parsed.error(
                f"{self.method.name}: the weights of tensor {group.name!r} give no finite number",
                ("parameters",),
            )
        return combination, sparse

    def _accepted(
        self, function: Callable[..., Any], group: Group, numbers: Mapping[str, Any]
    ) -> Any:
        """Call a function of the method; an exception in it becomes a RecipeError."""
        try:
            return function(**numbers)
        except Exception as error:
            message = fault(self.method, error)
            if message is None:
                raise
            raise self.parsed.error(
                f"{self.method.name}, tensor {group.name!r}: {message}", ("parameters",)
            ) from error


def dtypes_of(
    method: Method,
    arithmetic: Arithmetic,
    specs: Sequence[TensorSpec],
    dtype: str | None,
    out_dtype: str | None,
) -> tuple[DType, DType, DType | None]:
    """The dtypes of a merged tensor: output, computation, and the dtype to which inputs are rounded
    first, or None.

    Args:
        method, arithmetic: the merge method, and the arithmetic of the merge.
        specs: the inputs' specs.
        dtype, out_dtype: the recipe's settings.
    """
    asked = BY_NAME[dtype] if dtype else _promote([spec.natural for spec in specs])
    made_in = _promote([asked, FLOAT32]) if method.widens else asked
    out = BY_NAME[out_dtype] if out_dtype else made_in
    if arithmetic == "exact":
        wide = out in (FLOAT32, FLOAT64) or any(spec.dtype == FLOAT64 for spec in specs)
        return out, FLOAT64 if wide else FLOAT32, None
    upcast = FLOAT64 if asked == FLOAT64 else FLOAT32
    in_torch = method.form == "tensor"
    needed = out != asked or any(spec.dtype != asked for spec in specs)
    return (
        out,
        asked if in_torch and not method.casts_up else upcast,
        (asked if needed or in_torch else None),
    )


def combined(
    method: Method, numbers: Mapping[str, Any], inputs: int, based: bool
) -> tuple[Combination | None, SparseDeltas | None]:
    """The coefficients, or the rule for sparse deltas, that a method derives from its parameters alone.

    Both are None for a method that needs the weights.

    Args:
        method: the method.
        numbers: its parameters.
        inputs: number of inputs, including the base.
        based: whether the first input is the base.

    Raises:
        ValueError: when the method rejects the parameters, or its result does not fit the inputs.
    """
    if based and inputs == 1 and not method.combination:
        return Combination((1.0,)), None  # the models add nothing to the base
    if method.gram is not None or method.form == "tensor":
        return None, None
    result = method.function(**numbers)
    if method.combination:
        check_coefficients(method, result, inputs)
        return result, None
    check_sparse_deltas(result, inputs - based)
    return None, result


def _promote(dtypes: Sequence[DType]) -> DType:
    """The dtype that represents all inputs exactly: float32 for bfloat16 with float16, as in
    torch."""
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    return FLOAT64 if FLOAT64 in distinct else FLOAT32
