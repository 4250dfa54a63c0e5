"""Sinks take the output of a merge: a safetensors folder, a live model, a state dict, or nothing.

The engine hands a sink finished ranges of output tensors, in any order and from any thread.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from merganser import system
from merganser.errors import MerganserError, ResourceError
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

WINDOW = 8 * 2**20
"""Size of a write in bytes, and its alignment in the file."""


UNOPENED, CLOSED = -1, -2


class Extents(Protocol):
    """Layout of an output file; a plan's shard is one."""

    @property
    def file(self) -> str:
        """Name of the file."""

    @property
    def header(self) -> bytes:
        """Bytes before the data."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """First byte of each tensor in the file."""

    @property
    def size(self) -> int:
        """Size of the file in bytes."""


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


class SafetensorsSink(Sink):
    """Safetensors files with final names, headers and offsets.

    Bytes are collected in aligned windows. A full window is written to the disk, past the page cache
    where the file system allows it, so that the page cache is left to the inputs.
    """

    wants_digests = True

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Extents],
        on_file: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare the files; each is created when its first byte arrives.

        Args:
            folder: the folder of the files.
            shards: the layout of each file.
            on_file: called with the name of each complete and synced file, from any thread.
        """
        self._files = [_ShardFile(folder, shard, on_file) for shard in shards]
        self._places = {
            name: (file, offset)
            for file, shard in zip(self._files, shards, strict=True)
            for name, offset in shard.offsets.items()
        }

    def write(self, name: str, start: int, data: memoryview) -> None:
        """See :class:`Sink`."""
        file, offset = self._places[name]
        file.write(offset + start, data)

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """See :class:`Sink`. There is memory if the range is inside one window."""
        file, offset = self._places[name]
        return file.reserve(offset + start, length)

    def commit(self, name: str, start: int, length: int) -> None:
        """See :class:`Sink`."""
        file, offset = self._places[name]
        file.commit(offset + start, length)

    def close(self) -> None:
        """Check that every file is complete."""
        for file in self._files:
            file.close()

    def abort(self) -> None:
        """Close the files, complete or not."""
        for file in self._files:
            file.abort()


@dataclass(slots=True)
class _Window:
    buffer: mmap.mmap
    missing: int


class _ShardFile:
    """One output file. It is open only between its first and last byte, since a merge may have many."""

    def __init__(self, folder: Path, shard: Extents, on_file: Callable[[str], None]) -> None:
        self.path = folder / shard.file
        self._name = shard.file
        self._on_file = on_file
        self.size = shard.size
        self._header = shard.header
        self._remaining = shard.size
        self._windows: dict[int, _Window] = {}
        self._spare: list[mmap.mmap] = []
        self._lock = threading.RLock()
        self._descriptor = UNOPENED
        self._direct = False

    def write(self, position: int, data: memoryview) -> None:
        """Copy bytes into their windows; ranges never overlap, so copying needs no lock."""
        while len(data):
            part = data[: WINDOW - position % WINDOW]
            view = self.reserve(position, len(part))
            assert view is not None
            view[:] = part
            self.commit(position, len(part))
            position += len(part)
            data = data[len(part) :]

    def reserve(self, position: int, length: int) -> memoryview | None:
        """The memory of a range; None for a range that crosses windows."""
        index, within = divmod(position, WINDOW)
        if within + length > WINDOW:
            return None
        with self._lock:
            if self._descriptor == UNOPENED:
                self._open()
            window = self._windows.get(index)
            if window is None:
                buffer = self._spare.pop() if self._spare else system.buffer(WINDOW)
                window = _Window(buffer, min(WINDOW, self.size - index * WINDOW))
                self._windows[index] = window
        return memoryview(window.buffer)[within : within + length]

    def commit(self, position: int, length: int) -> None:
        """Count a filled range; the last range of a window writes the window to the disk."""
        index = position // WINDOW
        with self._lock:
            window = self._windows[index]
            window.missing -= length
            full = window.missing == 0
            if full:
                del self._windows[index]
        if full:  # and no other thread has it any more
            self._flush(index, window.buffer)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.OPEN_FLAGS
        try:
            if "/" in self._name:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._descriptor = os.open(self.path, flags | system.DIRECT, 0o666)
                self._direct = bool(system.DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # Some file systems create the file and then refuse direct I/O.
                self._descriptor = os.open(self.path, flags & ~os.O_EXCL, 0o666)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self.write(0, memoryview(self._header))

    def _flush(self, index: int, buffer: mmap.mmap) -> None:
        begin = index * WINDOW
        length = min(WINDOW, self.size - begin)
        padded = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE if self._direct else length
        view = memoryview(buffer)[:padded]
        position = begin
        try:
            while len(view):
                count = system.write_at(self._descriptor, view, position)
                if count == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view, position = view[count:], position + count
        except OSError as error:
            if (
                error.errno == errno.EINVAL and self._direct
            ):  # direct I/O is refused at this address
                self._direct = False
                system.write_through_cache(self._descriptor)
                return self._flush(index, buffer)
            raise _cannot_write(self.path, error) from None
        with self._lock:
            self._spare.append(buffer)
            self._remaining -= length
            done = self._remaining == 0
        if done:
            self._finish()
        return None

    def _finish(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
            os.close(self._descriptor)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self._descriptor = CLOSED
        self._spare.clear()
        self._on_file(self._name)

    def close(self) -> None:
        if self._descriptor == UNOPENED:  # no tensor of this file has any bytes
            with self._lock:
                self._open()
        if self._remaining:
            raise MerganserError(f"{self.path}: {self._remaining} bytes were never written")

    def abort(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = CLOSED


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    hint = "; free some space and merge again" if error.errno == errno.ENOSPC else ""
    return ResourceError(f"{path}: cannot be written ({error.strerror}){hint}")


class StateDictSink(Sink):
    """Tensors in memory, under their output names.

    Attributes:
        tensors: the state dict, complete after the merge.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:

        self.tensors: dict[str, torch.Tensor] = {name: _empty(spec) for name, spec in specs.items()}
        self._bytes = {name: _bytes_of(tensor) for name, tensor in self.tensors.items()}

    def write(self, name: str, start: int, data: memoryview) -> None:
        """See :class:`Sink`."""
        self._bytes[name][start : start + len(data)] = data

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """See :class:`Sink`."""
        memory: memoryview = self._bytes[name][start : start + length]
        return memory


class StreamSink(Sink):
    """Hands each tensor on once all of it is there, in an order of its own.

    The engine waits while tensors of more than ``ahead`` bytes have not been taken. Memory is bounded
    by that, by one tensor more, and by the tensors that the engine works on.

    Args:
        specs: all tensors.
        ahead: bytes of tensors that may wait to be taken.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], ahead: int = 32 * 2**20) -> None:
        self._specs = specs
        self._ahead = ahead
        self._left = {name: spec.nbytes for name, spec in specs.items()}
        self._open: dict[str, tuple[torch.Tensor, Any]] = {}
        self._complete: deque[tuple[str, torch.Tensor]] = deque()
        self._waiting = 0
        self._stopped = False
        self._changed = threading.Condition()

    def write(self, name: str, start: int, data: memoryview) -> None:
        """See :class:`Sink`."""
        self.reserve(name, start, len(data))[:] = data
        self.commit(name, start, len(data))

    def reserve(self, name: str, start: int, length: int) -> memoryview:
        """See :class:`Sink`."""
        with self._changed:
            if name not in self._open:
                tensor = _empty(self._specs[name])
                self._open[name] = tensor, _bytes_of(tensor)
            found: memoryview = self._open[name][1][start : start + length]
            return found

    def commit(self, name: str, start: int, length: int) -> None:
        """See :class:`Sink`.

        Raises:
            MerganserError: nobody takes the tensors any more.
        """
        with self._changed:
            self._left[name] -= length
            if self._left[name]:
                return
            size = self._specs[name].nbytes
            while self._waiting and self._waiting + size > self._ahead and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise MerganserError(
                    "the reader of the merge stopped; its tensors are not read any more"
                )
            self._complete.append((name, self._open.pop(name)[0]))
            self._waiting += size
            self._changed.notify_all()

    def take(self) -> tuple[str, torch.Tensor] | None:
        """The next tensor, waiting for it; None once the sink is closed or stopped and all are taken."""
        with self._changed:
            while not self._complete and not self._stopped:
                self._changed.wait(0.2)  # in steps, so that Ctrl-C is heard
            if not self._complete:
                return None
            name, tensor = self._complete.popleft()
            self._waiting -= self._specs[name].nbytes
            self._changed.notify_all()
            return name, tensor

    def close(self) -> None:
        """See :class:`Sink`. Tensors without elements are never written."""
        with self._changed:
            empty = [name for name, spec in self._specs.items() if not spec.nbytes]
            self._complete += [(name, _empty(self._specs[name])) for name in empty]
            self._stopped = True
            self._changed.notify_all()

    def abort(self) -> None:
        """See :class:`Sink`."""
        self.stop()

    def stop(self) -> None:
        """Take no more: the engine's next tensor fails."""
        with self._changed:
            self._stopped = True
            self._complete.clear()
            self._changed.notify_all()


class ModuleSink(StateDictSink):
    """The parameters of a live model on the CPU, changed in place.

    Raises:
        MerganserError: when the model lacks a tensor of the merge, or has it in another dtype or shape.
    """

    def __init__(self, module: torch.nn.Module, specs: Mapping[str, TensorSpec]) -> None:
        own: dict[str, torch.Tensor] = dict(module.state_dict(keep_vars=False))
        self.tensors = {}
        for name, spec in specs.items():
            tensor = own.get(name)
            if tensor is None:
                raise MerganserError(f"the live model has no tensor {name!r}")
            kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            if kind != str(spec) or tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise MerganserError(
                    f"the live model's tensor {name!r} is {kind} on {tensor.device}, "
                    f"but the merge's is {spec}; it must have that dtype and shape, be contiguous and on the CPU"
                )
            self.tensors[name] = tensor
        self._bytes = {name: _bytes_of(tensor) for name, tensor in self.tensors.items()}


class LiveSink(Sink):
    """The tensors of a live model on any device, in any dtype; each range is converted on arrival.

    Raises:
        MerganserError: when a tensor of the model has another shape than the merge's, or is not
            contiguous.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor | None], specs: Mapping[str, TensorSpec]
    ) -> None:
        import torch

        self._flat: dict[str, torch.Tensor | None] = {}
        self._dtypes = {name: getattr(torch, spec.dtype.name) for name, spec in specs.items()}
        for name, spec in specs.items():
            tensor = tensors[name]
            if tensor is not None and (
                tuple(tensor.shape) != spec.shape or not tensor.is_contiguous()
            ):
                raise MerganserError(
                    f"the live model's tensor {name!r} is {list(tensor.shape)}, the merge's {spec}"
                )
            self._flat[name] = None if tensor is None else tensor.detach().view(-1)

    def write(self, name: str, start: int, data: memoryview) -> None:
        """See :class:`Sink`. Tensors that the model lacks are discarded."""
        import torch

        flat, dtype = self._flat[name], self._dtypes[name]
        if flat is None or not len(data):
            return
        numbers = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
        first = start // dtype.itemsize
        flat[first : first + len(numbers)].copy_(numbers)


def _empty(spec: TensorSpec) -> torch.Tensor:
    import torch

    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.name))


def _bytes_of(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
