"""The base class of sinks, and two sinks that store nothing."""

from __future__ import annotations


class Sink:
    """The base class of sinks: a sink receives the tensors of one merge from :func:`merganser.run`.

    A subclass defines :meth:`write`. The other methods do nothing by default.

    Attributes:
        wants_digests: whether the engine should compute digests of what it writes.
    """

    wants_digests = False

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Receive bytes ``start`` to ``start + len(data)`` of the tensor ``name``.

        The engine calls this once for each range, in any order and from any thread. It reuses the
        buffer, so a sink copies what it needs later.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what write() does")

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """Return writable memory for ``length`` bytes of a tensor, which saves a copy; None to refuse.

        The engine fills the memory and calls :meth:`commit`. After None it calls :meth:`write`.
        """
        return None

    def commit(self, name: str, start: int, length: int) -> None:
        """Receive the bytes that the engine has written into the memory of :meth:`reserve`."""

    def close(self) -> None:
        """Finish; the engine calls this after the last write."""

    def abort(self) -> None:
        """Release resources; the engine calls this after a failed merge."""


class NullSink(Sink):
    """A sink that discards the output, for benchmarks of the engine."""

    def write(self, name: str, start: int, data: memoryview) -> None:
        """Do nothing."""


class DigestSink(NullSink):
    """A sink that discards the output, while the engine computes digests to compare with a merge on disk."""

    wants_digests = True
