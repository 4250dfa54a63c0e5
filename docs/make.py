"""Write ``docs/methods.md`` from the registry and ``docs/architecture.svg`` from the imports.

With ``--check`` nothing is written; the exit code says whether both are up to date.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import architecture_picture

from merganser import methods
from merganser.methods import Method, Parameter

TARGET = Path(__file__).parent / "methods.md"

HEADER = TARGET.with_suffix(".head.md")
"""The page up to the list: which method to take, written by hand."""


def page() -> str:
    """The page of methods."""
    header = HEADER.read_text(encoding="utf-8")
    missing = [name for name in methods.names() if f"`{name}`" not in header]
    if missing:
        sys.exit(f"{HEADER.name}: the table does not say when to take {', '.join(missing)}")
    registered = [method for name in methods.names() if (method := methods.get(name)) is not None]
    return "\n".join([header, *(section(method) for method in registered)])


def section(method: Method) -> str:
    """One method: what it does, what it takes, its parameters."""
    least, most = method.models
    count = (
        str(least)
        if least == most
        else f"{least} or more"
        if most is None
        else f"{least} to {most}"
    )
    base = {
        "none": "no base (a `base_model` in the recipe is an input like the others)",
        "optional": "a base if one is given",
        "required": "a base model",
    }[method.base]
    rows = "".join(row(parameter) for parameter in method.parameters)
    return (
        f"### `{method.name}`\n\n{inspect.getdoc(method.function)}\n\n"
        f"Takes {count} model{'' if count == '1' else 's'} and {base}. "
        f"{method.cost[0].upper()}{method.cost[1:]}.\n\n"
        f"| parameter | type | default | usual values | valid values |\n|---|---|---|---|---|\n{rows}"
    )


def row(parameter: Parameter) -> str:
    """One parameter's line of the table."""
    default = "must be given" if parameter.required else f"`{str(parameter.default).lower()}`"
    usual, valid = (
        (parameter.range.usual_text, parameter.range.valid_text) if parameter.range else ("", "")
    )
    return f"| `{parameter.name}` | {parameter.kind} | {default} | {usual} | {valid} |\n"


def main() -> None:
    """Write, or check."""
    for target, text in (
        (TARGET, page()),
        (architecture_picture.TARGET, architecture_picture.draw()),
    ):
        if "--check" not in sys.argv:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            sys.exit(f"{target.name} is not up to date; run: make docs")


if __name__ == "__main__":
    main()
