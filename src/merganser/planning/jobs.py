"""From a group of tensors to a job: its inputs in order, its numbers, its dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.errors import InputError
from merganser.methods import Combination, Consensus, Method, Parameter
from merganser.planning.layout import Entry, Group, Path
from merganser.planning.plans import Arithmetic, Read, Source, TensorJob
from merganser.recipe import ParsedRecipe, Setting, key_name
from merganser.tensors import BY_NAME, FLOAT32, FLOAT64, DType, TensorSpec


class JobMaker:
    """Makes jobs of groups, for one recipe."""

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

    def job(self, group: Group) -> TensorJob:
        """Settle one group.

        Raises:
            RecipeError: when parameters are missing or wrong, or the method takes other inputs.
            InputError: when the inputs do not fit each other.
        """
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
            in_torch = self.method.form == "tensor"
            work = asked if in_torch and not self.method.casts_up else upcast
            needed = out != asked or any(spec.dtype != asked for spec in specs)
            cast = asked if needed or in_torch else None
        based = self.method.base != "none" and entries[0].source == group.base
        combination, consensus = None, None
        if based and len(entries) == 1 and not self.method.combination:
            combination = Combination((1.0,))  # no model changes anything in the base
        elif self.method.gram is None and self.method.form != "tensor":
            made = self._made(group, numbers)
            combination = made if isinstance(made, Combination) else None
            consensus = made if isinstance(made, Consensus) else None
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
            consensus,
            based,
        )

    def _base_first(self, group: Group) -> tuple[Entry, ...]:
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

    def _numbers(self, group: Group, entries: Sequence[Entry]) -> dict[str, Any]:
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
        group: Group,
        name: str,
        levels: Sequence[tuple[Path, Mapping[str, Setting]]],
        entry: Entry | None,
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

    def _made(self, group: Group, numbers: Mapping[str, Any]) -> Combination | Consensus:
        """What the method makes of its numbers alone."""
        try:
            made: Combination | Consensus = self.method.function(**numbers)
        except ValueError as error:
            raise self.parsed.error(
                f"{self.method.name}, tensor {group.name!r}: {error}", ("parameters",)
            ) from None
        found = made.coefficients if isinstance(made, Combination) else made.weights or ()
        if not all(math.isfinite(c) for c in found):
            raise self.parsed.error(
                f"{self.method.name}: the weights of tensor {group.name!r} give no finite number",
                ("parameters",),
            )
        return made


def _promote(dtypes: Sequence[DType]) -> DType:
    """The dtype that loses nothing of any input: bfloat16 with float16 is float32, as in torch."""
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    return FLOAT64 if FLOAT64 in distinct else FLOAT32
