"""Sinks of tensors in memory: a state dict, a stream, a live model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from merganser.errors import MerganserError
from merganser.sinks.protocol import Sink
from merganser.tensors import TensorSpec

if TYPE_CHECKING:
    import torch


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
    """A stream of complete tensors, in the order in which they become complete.

    The engine writes; another thread calls :meth:`take`. The engine waits while the complete tensors that
    nobody has taken exceed ``ahead`` bytes. Memory holds these, and the tensors that are still incomplete.

    Args:
        specs: dtype and shape of every tensor.
        ahead: maximum total size, in bytes, of complete tensors that wait for :meth:`take`; a single
            larger tensor is accepted if no other waits.
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
            MerganserError: when :meth:`stop` has been called.
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
        """Wait for the next tensor; return its name and the tensor, or None at the end or after a stop."""
        with self._changed:
            while not self._complete and not self._stopped:
                self._changed.wait(0.2)  # with a timeout, so that Ctrl-C works
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
        """Discard waiting tensors, and let the engine's next :meth:`commit` of a complete tensor fail."""
        with self._changed:
            self._stopped = True
            self._complete.clear()
            self._changed.notify_all()


class ModuleSink(StateDictSink):
    """The parameters of a live model on the CPU, changed in place.

    Raises:
        MerganserError: when the model lacks a tensor of the merge, or its tensor has another dtype or
            shape, is not contiguous, or is not on the CPU.
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
    """The tensors of a live model on any device and in any dtype; each written range is converted to it.

    Raises:
        MerganserError: when a tensor of the model has another shape than the merge's, or is not
            contiguous.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor | None], specs: Mapping[str, TensorSpec]
    ) -> None:
        import torch

        self._flat: dict[str, torch.Tensor | None] = {}
        self._bytes: dict[str, Any] = {}
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
            if (
                tensor is not None
                and tensor.device.type == "cpu"
                and tensor.dtype == self._dtypes[name]
            ):
                self._bytes[name] = _bytes_of(tensor)

    def reserve(self, name: str, start: int, length: int) -> memoryview | None:
        """See :class:`Sink`. The engine writes into tensors on the CPU that need no conversion."""
        own = self._bytes.get(name)
        return None if own is None else own[start : start + length]

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
