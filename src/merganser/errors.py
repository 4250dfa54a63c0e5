"""Errors: one line each, with the file, key or line at fault, and an exit code a kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 600
"""Most characters of a message; names from files may have millions."""


class MerganserError(Exception):
    """The base class of Merganser's errors. The message is one line: what is wrong, where, what to do.

    Subclasses: ``RecipeError`` (the recipe or an option is wrong), ``InputError`` (a checkpoint is
    missing, damaged, or does not fit), ``ResourceError`` (disk or memory), ``OutputExistsError`` (the
    output folder is in use). They are in ``merganser.errors``.

    ``details`` are further lines, such as the traceback of a user's function; usually empty.
    """

    exit_code = 1
    details = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Make a text one printable line of at most ``LONGEST`` characters.

    A message may quote a file: line breaks and control characters are escaped, so that they neither
    break the line nor steer the terminal.
    """
    if len(text) > LONGEST:
        text = f"{text[: 2 * LONGEST // 3]} … {text[-LONGEST // 3 + 3 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


class RecipeError(MerganserError):
    """The recipe, or a command's options, are invalid."""

    exit_code = 2

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        address = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(f"{address}: {message}" if address else message)
        self.file = file
        self.line = line


class InputError(MerganserError):
    """A checkpoint is missing, corrupt, or does not fit the others."""

    exit_code = 3


class ResourceError(MerganserError):
    """Not enough disk or memory, or the output cannot be written."""

    exit_code = 4


class OutputExistsError(MerganserError):
    """The output folder is not empty, and ``force`` is off."""

    exit_code = 2


@contextmanager
def reraise_os_errors(kind: type[MerganserError], action: str, path: object) -> Iterator[None]:
    """Re-raise OSError as a MerganserError: ``FILE: cannot be read (Permission denied)``.

    Args:
        kind: InputError for what is read, ResourceError for what is written.
        action: what failed: ``read``, ``written``.
        path: named where the system does not say which file it was.

    Raises:
        MerganserError: of that kind, for an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise kind(
            f"{error.filename or path}: cannot be {action} ({error.strerror or error})"
        ) from None
