"""What a sink is, and the two that store nothing."""

from __future__ import annotations


class Sink:
    """The base class of sinks: a sink receives the tensors of one merge from :func:`merganser.run`.

    A subclass defines :meth:`write`. The other methods do nothing by default.

    Attributes:
        wants_digests: whether the engine should compute digests of what it writes.
    """

    wants_digests = False

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Receive bytes of a tensor, from byte ``start`` on.

        The engine calls this once for each range, in any order and from any thread. It reuses the
        buffer, so a sink copies what it needs later.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what write() does")

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """Return memory for these bytes, to save a copy; the engine calls :meth:`commit` once it is filled.

        If this returns None, the engine calls :meth:`write`.
        """
        return None

    def commit(self, name: str, start: int, length: int) -> None:
        """Receive the bytes that the engine has written into reserved memory."""

    def close(self) -> None:
        """Finish; the engine calls this after the last write."""

    def abort(self) -> None:
        """Release resources; the engine calls this after a failed merge."""


class NullSink(Sink):
    """Discard the output, to measure the engine alone."""

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Do nothing."""


class DigestSink(NullSink):
    """Keep only the engine's digests, to compare a merge with one on disk."""

    wants_digests = True
