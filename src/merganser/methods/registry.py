"""The registered merge methods."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from merganser.errors import RecipeError
from merganser.methods.forms import Vectors
from merganser.methods.parameters import Parameter
from merganser.methods.signature import BaseUse, Form, Signature, keyword_only, read_signature

Function = TypeVar("Function", bound=Callable[..., Any])

Caution = Callable[..., str | None]

PACKAGE = "merganser.methods"
FILE_PREFIX = "merganser_methods_"
"""Prefix of the names of modules that are loaded from a file."""

FAMILIES: tuple[str, ...] = (
    "combination",
    "trajectories",
    "sparse_deltas",
    "selection",
    "mergekit.combination",
    "mergekit.sparse_deltas",
    "mergekit.selection",
)
"""Modules of this package with built-in methods."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a method that is not built in.

    Attributes:
        source: its file, or the name of its module if there is no file.
        digest: SHA-256 of the file, or of the function's source; None if neither can be read.
        package: its installed package as ``name==version``, or None.
    """

    source: str
    digest: str | None
    package: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.source).name


@dataclass(frozen=True, slots=True)
class Method:
    """A registered merge method.

    Attributes:
        name: in recipes.
        function: the registered function.
        title: its name in cards and tables.
        summary: the first line of its docstring.
        paper: arXiv number or URL of its source, or None.
        base: whether it merges task vectors, the differences to a base model; with ``none``, a
            recipe's base is an ordinary input.
        models: smallest and largest number of inputs, without the base unless ``base`` is ``none``.
        form: its return type: a combination, sparse deltas, or a tensor.
        gram: the vectors whose Gram matrix it needs: its inputs, their task vectors, or None.
        vectors: the vectors of a tensor (all of it, rows, columns), as a function of the parameters.
        measure: counts facts in tiles for a method with ``facts``; see :func:`merge_method`.
        elementwise: whether it takes tiles of a tensor.
        symmetric: whether the order of (model, parameters) pairs does not matter.
        idempotent: whether merging copies of one tensor gives that tensor.
        arithmetic: the arithmetic for which this function is a variant.
        casts_up: whether MergeKit computes it in float32 whatever the dtype of its inputs.
        widens: whether MergeKit's result is float32 whatever the dtype of its inputs.
        draws: whether it takes random generators.
        check: raises ValueError for invalid parameters, before any tensor is read.
        parameters: its parameters in recipes.
        cautions: functions of the parameters that return a warning about their values together, or None.
        ignored: parameters that MergeKit accepts here, without effect.
        origin: its source; None for a built-in method.
        fused: the compiled step of the engine that computes the same bits, or None.
    """

    name: str
    function: Callable[..., Any]
    title: str
    summary: str
    paper: str | None
    base: BaseUse
    models: tuple[int, int | None]
    form: Form
    gram: Literal["inputs", "changes"] | None
    vectors: Callable[..., Vectors]
    measure: Callable[..., Any] | None
    elementwise: bool
    symmetric: bool
    idempotent: bool
    arithmetic: str
    casts_up: bool
    parameters: tuple[Parameter, ...]
    ignored: tuple[str, ...]
    widens: bool = False
    draws: bool = False
    check: Callable[..., None] | None = None
    cautions: tuple[Caution, ...] = ()
    origin: Origin | None = None
    fused: str | None = None

    @property
    def combination(self) -> bool:
        """Whether it returns coefficients rather than a tensor."""
        return self.form == "combination"

    @property
    def whole(self) -> bool:
        """Whether it needs complete tensors in memory."""
        return self.form == "tensor" and not self.elementwise and self.fused is None

    @property
    def cost(self) -> str:
        """Its cost in words: memory, and passes over the inputs."""
        passes = "one pass"
        if self.gram:
            passes = "two passes: inner products first"
        elif self.form == "consensus":
            passes = "one pass; more if deltas are selected or rescaled"
        elif self.measure:
            passes = "two passes: counts first"
        elif self.form == "tensor" and self.fused and not self.elementwise:
            passes = "three passes: divergences of rows and quartiles first"
        return f"{'whole tensors' if self.whole else 'in tiles'}, {passes}"

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name in recipes, or None."""
        return next((p for p in self.parameters if p.name == name), None)


_registry: dict[tuple[str, str], Method] = {}


def merge_method(
    name: str,
    *,
    title: str | None = None,
    paper: str | None = None,
    base: BaseUse | None = None,
    models: tuple[int, int | None] = (1, None),
    elementwise: bool = False,
    symmetric: bool = True,
    idempotent: bool = False,
    ignored: tuple[str, ...] = (),
    vectors: Callable[..., Vectors] = lambda **_: "tensor",
    measure: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    cautions: tuple[Caution, ...] = (),
    replace: bool = False,
    fused: str | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a merge method and return it unchanged.

    See :class:`Method` for the arguments and :mod:`merganser.methods` for the signature.

    Args:
        name: in recipes.
        base: for a combination, whether its first coefficient is the base's. The other forms declare
            it in their signature: ``base: Tensor`` requires a base, ``base: Tensor | None`` allows
            one, and sparse deltas require one.
        elementwise: whether each element of the result depends on that element of the inputs only,
            so that the method can take tiles. Other methods get complete tensors.
        measure: takes the method's arguments except ``facts``, tile by tile, and returns a float64
            tensor of counts; ``facts`` is their sum over the tensor.
        replace: replace a method that already has this name.
        fused: the name of a compiled step with the same bits, see ``docs/adding.md``; only for
            built-in methods.

    Raises:
        TypeError: when the signature is not a method's, or contradicts the arguments.
        ValueError: when another method has the name.
    """

    def register(function: Function) -> Function:
        signature = read_signature(function)
        _check_claims(function, signature, elementwise=elementwise, measure=measure)
        method = Method(
            name,
            function,
            title or name,
            (inspect.getdoc(function) or "").split("\n")[0],
            paper,
            _base(function, signature, base),
            models,
            signature.form,
            signature.gram,
            vectors,
            measure,
            elementwise,
            symmetric,
            idempotent,
            "exact",
            False,
            signature.parameters,
            ignored,
            draws=signature.draws,
            check=check,
            cautions=cautions,
            origin=_origin(function),
            fused=fused,
        )
        if not replace:
            _check_name(method)
        for key in [key for key in _registry if key[0] == name]:
            del _registry[key]  # with the variants of a replaced method
        _registry[name, "exact"] = method
        return function

    return register


def variant_of(
    exact: Callable[..., Any],
    arithmetic: str = "mergekit",
    *,
    elementwise: bool = False,
    casts_up: bool = False,
    widens: bool = False,
    measure: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as a method's variant for another arithmetic, and return it unchanged.

    The variant has the method's parameters under the same names, without their annotations; it
    inherits everything that is not an argument here. See :class:`Method` for the arguments.

    Raises:
        TypeError: when its parameters differ from the method's.
    """
    method = next(m for m in _registry.values() if m.function is exact)

    def register(function: Function) -> Function:
        signature = read_signature(function)
        _check_claims(function, signature, elementwise=elementwise, measure=measure)
        _base(function, signature, method.base)
        keywords = {p.name for p in keyword_only(function)}
        if keywords != {p.argument for p in method.parameters}:
            raise TypeError(f"{function.__name__}: a variant has the parameters of {method.name}")
        _registry[method.name, arithmetic] = replace(
            method,
            function=function,
            form=signature.form,
            gram=signature.gram,
            measure=measure,
            elementwise=elementwise,
            arithmetic=arithmetic,
            casts_up=casts_up,
            widens=widens,
            draws=signature.draws,
            check=check or method.check,
            origin=_origin(function),
            fused=None,
        )
        return function

    return register


def get(name: str, arithmetic: str = "exact") -> Method | None:
    """The method with this name, or its variant for the arithmetic if it has one; None if unknown."""
    for family in FAMILIES:  # import only as many as needed: reading signatures takes time
        if (name, "exact") not in _registry or arithmetic != "exact":
            importlib.import_module(f"{PACKAGE}.{family}")
    if (name, "exact") not in _registry:
        _load_entry_points()
    return _registry.get((name, arithmetic)) or _registry.get((name, "exact"))


def names() -> list[str]:
    """Sorted names of all methods, including those of installed packages."""
    _load_families()
    _load_entry_points()
    return sorted({name for name, _ in _registry})


def registered() -> list[Method]:
    """All methods and their variants."""
    names()
    return list(_registry.values())


def describe(method: Method) -> dict[str, Any]:
    """A method as plain data for JSON."""
    described = {
        "name": method.name,
        "title": method.title,
        "summary": method.summary,
        "description": inspect.getdoc(method.function) or "",
        "paper": method.paper,
        "base": method.base,
        "models": list(method.models),
        "cost": method.cost,
        "parameters": [
            {
                "name": p.name,
                "type": p.type.__name__,
                "per_model": p.per_model,
                "required": p.required,
                "default": p.default,
                "range": [p.range.low, p.range.high] if p.range else None,
                "valid": _finite(p.range.least, p.range.most) if p.range else None,
                "choices": list(p.choices),
            }
            for p in method.parameters
        ],
    }
    if method.origin is not None:
        described |= {"source": method.origin.source, "sha256": method.origin.digest}
    return described


def _finite(*ends: float) -> list[float | None]:
    """Numbers for JSON: None for infinity."""
    return [end if math.isfinite(end) else None for end in ends]


def load_file(path: str | Path) -> None:
    """Run a Python file that registers merge methods, so that recipes can use them.

    Args:
        path: a file that ends with ``.py``. It runs with all rights of this process.

    Raises:
        RecipeError: when there is no such file, or it raises an exception.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such Python file with merge methods")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"{FILE_PREFIX}{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: not a Python file (a file of merge methods ends with .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"{path}: cannot be loaded ({type(error).__name__}: {reason})") from error


def loaded_files() -> list[Path]:
    """The files that :func:`load_file` has run in this process."""
    modules = [module for name, module in sys.modules.items() if name.startswith(FILE_PREFIX)]
    return [Path(module.__file__).resolve() for module in modules if module.__file__]


def _check_claims(
    function: Callable[..., Any],
    signature: Signature,
    *,
    elementwise: bool,
    measure: Callable[..., Any] | None,
) -> None:
    """Check that the decorator's arguments agree with the signature."""
    name = function.__name__
    if signature.draws and elementwise:  # every tile would get the same draws
        raise TypeError(f"{name}: a method with generators is elementwise=False")
    if elementwise and signature.form != "tensor":
        raise TypeError(f"{name}: only a method that returns a tensor is elementwise")
    if signature.facts and measure is None:
        raise TypeError(
            f"{name}: a method with facts needs measure=, the function that counts them"
        )
    if measure is not None and not signature.facts:
        raise TypeError(f"{name}: measure= is for a method with a parameter facts")


def _base(function: Callable[..., Any], signature: Signature, declared: BaseUse | None) -> BaseUse:
    """Return whether a method has a base: from its signature or, for a combination, as declared."""
    if signature.base is None:
        return declared or ("optional" if signature.gram == "changes" else "none")
    if declared is not None and declared != signature.base:
        says = {
            "none": "has no parameter base",
            "optional": "has a parameter base that may be None",
            "required": "has a parameter base that is never None",
        }[signature.base]
        if signature.form == "consensus":
            says = "returns SparseDeltas, which are added to a base"
        raise TypeError(
            f"{function.__name__}: declared with base={declared!r}, but {says}; "
            "omit base=, since the signature declares it"
        )
    return signature.base


def _check_name(method: Method) -> None:
    """Check that no other method has the name. The same function may be defined again."""
    if method.origin is not None:
        _load_families()
    taken = _registry.get((method.name, "exact"))
    if taken is None:
        return
    same = method.origin is not None and taken.origin is not None
    if same and _identity(method) == _identity(taken):
        return
    whose = "Merganser's own" if taken.origin is None else f"from {taken.origin.source}"
    raise ValueError(
        f"there is a method {method.name!r} already, {whose}: choose another name, or say "
        f"@merge_method({method.name!r}, replace=True)"
    )


def _identity(method: Method) -> tuple[str, str]:
    assert method.origin is not None
    return method.origin.source, method.function.__qualname__


def _origin(function: Callable[..., Any]) -> Origin | None:
    """The source of a function; None for one of this package."""
    function = inspect.unwrap(function)
    module = getattr(function, "__module__", "")
    if module.startswith(f"{PACKAGE}."):
        return None
    file = getattr(function, "__globals__", {}).get("__file__")
    digest = None
    with suppress(OSError, TypeError):  # a function typed at a prompt has neither file nor source
        code = Path(file).read_bytes() if file else inspect.getsource(function).encode()
        digest = hashlib.sha256(code).hexdigest()
    return Origin(file or module, digest, _package(module))


def _package(module: str) -> str | None:
    """The installed package of a module, as ``name==version``, or None."""
    if module == "__main__" or module.startswith(FILE_PREFIX):
        return None
    from importlib.metadata import version

    installed = _installed_packages().get(module.partition(".")[0])
    return f"{installed[0]}=={version(installed[0])}" if installed else None


@functools.cache
def _installed_packages() -> Mapping[str, list[str]]:
    """The packages of each top-level module. Python reads all packages' metadata, in over a second."""
    from importlib.metadata import packages_distributions

    return packages_distributions()


def _load_families() -> None:
    for family in FAMILIES:
        importlib.import_module(f"{PACKAGE}.{family}")


def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=PACKAGE):
        try:
            entry.load()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            package = entry.dist.name if entry.dist else entry.value
            raise RecipeError(
                f"the installed package {package}: its merge methods cannot be loaded "
                f"({type(error).__name__}: {reason})"
            ) from error
