"""Translate arguments in the library's messages to command-line flags."""

from __future__ import annotations

import re

import click

_OPTION = re.compile(r"(?<![\w#/.-])(\w+)=(True|'[\w.-]+'|\d+)(?![\w.-])")
_METHODS = re.compile(r"(?<![\w#/.-])load_methods\('([^']+)'\)")


def in_flags(message: str, command: click.Command) -> str:
    """A message in which the command's flags replace the arguments of Python functions.

    ``force=True`` becomes ``--force``, ``tensor_names='union'`` becomes ``--tensor-union (-u)``.
    Arguments that the command has no option for stay.
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
