"""Write ``docs/methods.md`` from the registry; with ``--check`` only tell whether it is up to date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from merganser import methods
from merganser.methods import Method, Parameter

TARGET = Path(__file__).parent / "methods.md"

HEADER = """# Merge methods

Written by `make docs` from the methods' own signatures; `merganser methods NAME` prints the same.
A value that is not valid is an error, with file and line; a valid one that is not usual is a warning.
Weights that a method divides by their sum are judged by the quotients.
"""


def page() -> str:
    """The whole page."""
    found = [method for name in methods.names() if (method := methods.get(name)) is not None]
    return "\n".join([HEADER, *(section(method) for method in found)])


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
        f"## `{method.name}`\n\n{inspect.getdoc(method.function)}\n\n"
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
    text = page()
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET.name} is not up to date; run: make docs")


if __name__ == "__main__":
    main()
