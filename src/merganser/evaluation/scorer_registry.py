"""Scorers by name: how they are declared, and how tasks refer to them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from merganser import suggestions
from merganser.errors import RecipeError
from merganser.evaluation.statistics import Direction

Function = TypeVar("Function", bound=Callable[..., Any])

Identify = Callable[[Mapping[str, Any], Path | None], Mapping[str, Any]]
"""Checks a scorer's parameters, and returns plain data on which its scores depend. It is called with all
parameters, and the folder that relative paths start at."""

BESIDE = "beside"
"""Name of the parameter that receives the folder that relative paths start at."""

_MARK = "__merganser_scorer__"

_HOME = __name__.rpartition(".")[0]
"""The package of Merganser's scorers."""

BUILT_IN = ("scorers", "reward_model", "llm_judge", "code_scorer")
"""Modules of that package that declare scorers."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A scorer's result for one sample.

    Attributes:
        score: the score; None if the scorer failed on the sample.
        note: the reason of the failure, or a detail such as the error of a program.
        reply: the reply of an LLM judge.
        transient: whether another attempt may succeed; the next run does not reuse such a judgement.
    """

    score: float | None
    note: str = ""
    reply: str | None = None
    transient: bool = False


@dataclass(frozen=True, slots=True)
class Scorer:
    """A scorer of completions.

    Attributes:
        name: its name in tasks and results.
        function: ``(sample, problem, **parameters)`` to a number. With ``group``, ``(samples, problem,
            **parameters)`` to one number per sample; with ``batch``, ``(samples, problems,
            **parameters)``. It may be ``async``.
        better: ``max`` if larger scores are better, else ``min``.
        group: whether it scores all samples of a problem together.
        check: called with ``(problem, **parameters)`` before any completion is generated; raises an
            error for an unsuitable problem.
        parameters: values of the function's parameters.
        batch: whether it scores samples of many problems at once.
        streams: whether a batch function yields ``(index, judgement)`` in any order.
        plain: whether the function takes texts and records instead of samples and problems.
        runs_code: whether it runs programs that models write.
        identify: see :data:`Identify`; None for a cheap scorer, whose scores are not stored.
        identity: the result of ``identify``, part of the key of stored scores.
        reference: the name that tasks use.
        beside: the folder that relative paths start at.
        timeout: time limit in seconds per sample; None for no limit.
        concurrency: number of simultaneous calls of an ``async`` function.
    """

    name: str
    function: Callable[..., Any]
    better: Direction = "max"
    group: bool = False
    check: Callable[..., None] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    batch: bool = False
    streams: bool = False
    plain: bool = False
    runs_code: bool = False
    identify: Identify | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    beside: Path | None = None
    timeout: float | None = None
    concurrency: int = 16

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of Merganser's scorers."""
        return self.name in _DECLARED and self.function is _DECLARED[self.name].function

    @property
    def keywords(self) -> Mapping[str, Any]:
        """The keyword arguments of the function."""
        if BESIDE in inspect.signature(self.function).parameters and not self.plain:
            return {**self.parameters, BESIDE: self.beside}
        return self.parameters

    @property
    def is_async(self) -> bool:
        """Whether its function is ``async``."""
        call = getattr(type(self.function), "__call__", None)  # noqa: B004 (of a class's instance)
        return any(map(inspect.iscoroutinefunction, (self.function, call)))


_DECLARED: dict[str, Scorer] = {}


def scorer(
    name: str,
    *,
    better: Direction = "max",
    group: bool = False,
    check: Callable[..., None] | None = None,
    batch: bool = False,
    streams: bool = False,
    runs_code: bool = False,
    identify: Identify | None = None,
) -> Callable[[Function], Function]:
    """Declare a function as a scorer; see :class:`Scorer`. The function is returned unchanged."""

    def declare(function: Function) -> Function:
        declared = Scorer(
            name,
            function,
            better,
            group,
            check,
            batch=batch,
            streams=streams,
            runs_code=runs_code,
            identify=identify,
        )
        setattr(function, _MARK, declared)
        if function.__module__ in [f"{_HOME}.{module}" for module in BUILT_IN]:
            _DECLARED[name] = declared
        return function

    return declare


def _built_in() -> Mapping[str, Scorer]:
    for module in BUILT_IN:
        importlib.import_module(f"{_HOME}.{module}")
    return _DECLARED


def names() -> list[str]:
    """Sorted names of Merganser's scorers."""
    return sorted(_built_in())


def get(
    reference: str,
    parameters: Mapping[str, Any] | None = None,
    beside: Path | None = None,
    *,
    batch: bool | None = None,
    timeout: float | None = None,
    concurrency: int | None = None,
) -> Scorer:
    """Return a scorer.

    Args:
        reference: a name, ``module:function`` or ``file.py:function``; modules and files are run.
        parameters: values of the function's parameters.
        beside: the folder to search for files first.
        batch: whether an undeclared function scores samples in batches.
        timeout: time limit in seconds per sample; None for no limit.
        concurrency: number of simultaneous calls of an ``async`` function.

    Raises:
        RecipeError: when there is no such scorer, or a parameter is unknown, missing or of a wrong type.
    """
    if reference in _built_in():
        chosen = _DECLARED[reference]
    elif ":" in reference:
        chosen = _imported(reference, beside)
    else:
        hint = suggestions.suggest(reference, names())
        custom = ", and your own as module:function or file.py:function"
        raise RecipeError(
            f"there is no scorer {reference!r}; {hint}{'' if hint.endswith('?') else custom}"
        )
    if batch is not None:
        if not chosen.plain and batch != chosen.batch:
            raise RecipeError(
                f"scorer {chosen.name}: its declaration says whether it takes batches"
            )
        chosen = replace(chosen, batch=batch)
    if concurrency is not None and not chosen.is_async:
        raise RecipeError(f"scorer {chosen.name}: concurrency is for an async function")
    given = dict(parameters or {})
    if timeout is not None and "timeout" in _declared_parameters(chosen):
        given["timeout"], timeout = timeout, None
    elif timeout is not None and chosen.identify is not None:
        raise RecipeError(f"scorer {chosen.name}: has no timeout")
    settled = replace(
        chosen,
        parameters=_settled(chosen, given),
        reference=reference,
        beside=beside,
        timeout=timeout,
        concurrency=concurrency or chosen.concurrency,
    )
    if settled.identify is None:
        return settled
    defaults = {n: p.default for n, p in _declared_parameters(settled).items()}
    try:
        identity = settled.identify({**defaults, **settled.parameters}, beside)
    except RecipeError as error:
        raise RecipeError(f"scorer {settled.name}: {error}") from None
    return replace(settled, identity=identity)


def _imported(reference: str, beside: Path | None) -> Scorer:
    place, _, name = reference.rpartition(":")
    folders = [folder for folder in (beside, Path()) if folder is not None]
    try:
        module = _run_file(reference, place, folders) if place.endswith(".py") else None
        if module is None and not _is_installed(place):
            module = _run_file(reference, f"{place.replace('.', '/')}.py", folders)
        module = module or importlib.import_module(place)
    except RecipeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise RecipeError(
            f"scorer {reference}: cannot be loaded ({type(error).__name__}: {reason})"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"scorer {reference}: there is no function {name!r} in it")
    declared = getattr(function, _MARK, None)
    return declared if isinstance(declared, Scorer) else Scorer(name, function, plain=True)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its package is missing, or it is not a module's name
        return False


def _run_file(reference: str, name: str, folders: Sequence[Path]) -> ModuleType:
    """Execute the Python file ``name`` from the first folder that contains it, as a module."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise RecipeError(
            f"scorer {reference}: cannot be loaded: no such file {name} in {' or '.join(map(_named, folders))}"
            + ("" if reference.partition(":")[0].endswith(".py") else ", and no installed module")
        )
    spec = importlib.util.spec_from_file_location(f"merganser_scorers_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints search for their module there
    spec.loader.exec_module(module)
    return module


def _named(folder: Path) -> str:
    return "the current folder" if folder == Path() else str(folder)


def _declared_parameters(scorer: Scorer) -> dict[str, inspect.Parameter]:
    """The parameters that tasks may set: without samples, problems, and the folder of relative paths."""
    known = list(inspect.signature(scorer.function).parameters.values())[2:]
    return {each.name: each for each in known if each.name != BESIDE}


def _settled(scorer: Scorer, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parameters to the types in the function's signature."""
    declared = _declared_parameters(scorer)
    if any(each.kind is each.VAR_KEYWORD for each in declared.values()):
        return dict(parameters)
    try:
        hints = typing.get_type_hints(scorer.function)
    except Exception:  # ignore annotations that cannot be read
        hints = {}
    settled: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in declared:
            has = ", ".join(declared) or "none"
            raise RecipeError(f"scorer {scorer.name}: has no parameter {name!r}; it has {has}")
        try:
            settled[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise RecipeError(f"scorer {scorer.name}: {name}: {problem}, not {value!r}") from None
    for name, each in declared.items():
        if each.default is each.empty and name not in settled:
            raise RecipeError(f"scorer {scorer.name}: needs the parameter {name!r}")
    return settled
