"""Messages of Python functions in the words of the command line."""

from __future__ import annotations

import re

import click

_OPTION = re.compile(r"(?<![\w#/.-])(\w+)=(True|'[\w.-]+'|\d+)(?![\w.-])")
_METHODS = re.compile(r"(?<![\w#/.-])load_methods\('([^']+)'\)")


def in_flags(message: str, command: click.Command) -> str:
    """A message that names arguments of Python functions, with the command's flags in their place.

    ``force=True`` becomes ``--force``, ``tensor_names='union'`` becomes ``--tensor-union (-u)``.
    What is no option of the command stays as it is.
    """
    options = [each for each in command.params if isinstance(each, click.Option)]

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip("'")
        for option in options:
            if option.name != name:
                continue
            long = next((each for each in option.opts if each.startswith("--")), option.opts[0])
            if not option.is_flag:
                return f"{long} {value}"
            if value in ("True", str(option.flag_value)):
                short = [each for each in option.opts if len(each) == 2]
                return f"{long} ({short[0]})" if short else long
        return match[0]

    return _METHODS.sub(r"--methods \1", _OPTION.sub(flag, message))
