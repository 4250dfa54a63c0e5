"""Send tensors from the merging process to vLLM's worker processes, over a local socket."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = 5.0
"""Time limit in seconds for connecting to a listener whose queue is full."""

END = b""
"""The header after the last tensor."""


class Feed:
    """Sends each tensor to every worker, after all workers have connected; holds one tensor at a time.

    Args:
        tensors: the tensors to send.
        workers: number of workers.

    Attributes:
        address: the arguments of :func:`receive`: the socket's address, and the key as hexadecimal.
        failure: the exception that ended the feed, or None.
    """

    def __init__(self, tensors: Iterable[tuple[str, torch.Tensor]], workers: int) -> None:
        self._key = os.urandom(32)
        self._listener = Listener(family="AF_UNIX", authkey=self._key)
        self._tensors = tensors
        self._workers = workers
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self.address: tuple[str, str] = (str(self._listener.address), self._key.hex())
        self.failure: BaseException | None = None

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # Failed workers never connect. Closing a listener does not interrupt its accept(); a
            # connection that is closed before authentication does.
            with suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
                knock.settimeout(PATIENCE)
                knock.connect(self.address[0])
        self._listener.close()
        self._thread.join()

    def _work(self) -> None:
        connections: list[Any] = []
        try:
            connections += [self._listener.accept() for _ in range(self._workers)]
            for name, tensor in self._tensors:
                header, data = _packed(name, tensor)
                for connection in connections:
                    connection.send_bytes(header)
                    if data:
                        connection.send_bytes(data)
            for connection in connections:
                connection.send_bytes(END)
        except BaseException as error:
            self.failure = error
        finally:
            for connection in connections:
                connection.close()


def receive(address: str, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and tensors of a feed, on the CPU.

    Raises:
        EOFError: the feed ended before its last tensor.
    """
    import torch

    with Client(address, authkey=bytes.fromhex(key)) as connection:
        while (header := connection.recv_bytes()) != END:
            facts = json.loads(header)
            tensor = torch.empty(facts["shape"], dtype=getattr(torch, facts["dtype"]))
            if tensor.numel():
                connection.recv_bytes_into(tensor.reshape(-1).view(torch.uint8).numpy().data)
            yield facts["name"], tensor


def _packed(name: str, tensor: torch.Tensor) -> tuple[bytes, Any]:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    header = json.dumps({"name": name, "dtype": dtype, "shape": list(tensor.shape)}).encode()
    return header, tensor.reshape(-1).view(torch.uint8).numpy().data
