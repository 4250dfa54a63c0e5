"""What can go wrong, as sentences with an address, and the exit code of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 600
"""Most characters of a message; names from files may have millions."""


class MerganserError(Exception):
    """Anything that Merganser says no to. Its text is one line that tells what, where, what to do."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text as one printable line, the middle of a long one left out: what files hold may end up in
    it, and neither breaks the line nor steers the terminal."""
    if len(text) > LONGEST:
        text = f"{text[: 2 * LONGEST // 3]} … {text[-LONGEST // 3 + 3 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


class RecipeError(MerganserError):
    """The recipe (or a command's options) asks for something that cannot be."""

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
    """The output folder holds something already, and nobody said that it may go."""

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
