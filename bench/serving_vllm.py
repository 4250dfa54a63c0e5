"""What the front costs over vLLM's own server called directly, and what a swap of weights takes.

    .venv-vllm/bin/python bench/serving_vllm.py overhead [--layers 8 --hidden 512]
    .venv-vllm/bin/python bench/serving_vllm.py swaps

Both ways ask the same vLLM process in turns, 32 requests at once: through ``merganser serve --engine vllm``,
and through vLLM's Unix socket. Processor time is that of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serving
from serving import AT_ONCE, Client, make_model, make_study, processor_seconds, questions, show


class Direct(Client):
    """A connection to vLLM's Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("http://localhost:0")
        self.path = path

    async def send(
        self, path: str = "/v1/completions", **asked: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a question."""
        if self.streams is None:
            self.streams = await asyncio.open_unix_connection(self.path)
        return await super().send(path, **asked)


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def socket_of(pids: list[int]) -> str:
    """The Unix socket that a vLLM server of the processes listens on."""
    for pid in pids:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"--uds" in words:
            return words[words.index(b"--uds") + 1].decode()
    raise SystemExit("there is no vLLM server")


@contextmanager
def served(*models: object) -> Iterator[tuple[str, list[int]]]:
    """A server with vLLM: its address, and its processes."""
    option = ("--engine-option", "max_model_len=512", "--turn", "0")
    with serving.serving(*models, "--engine", "vllm", *option) as (url, pid):
        yield url, family(pid)


def overhead(folder: Path, options: argparse.Namespace) -> None:
    """Compare vLLM's server called directly with the front, in turns."""
    make_model(folder / "one", 0, options.layers, options.hidden, options.vocabulary)

    async def one(client: Client, text: str, stream: bool, model: str) -> str:
        asked = {"model": model, "prompt": text, "temperature": 0, "max_tokens": options.tokens}
        asked["ignore_eos"] = True
        if not stream:
            return str((await client.ask(**asked))[1]["choices"][0]["text"])
        reader, _ = await client.send(stream=True, **asked)
        await reader.readuntil(b"[DONE]\n\n")
        return ""

    async def run(url: str, pids: list[int]) -> dict[str, list[tuple[float, float, float]]]:
        path = socket_of(pids)
        found: dict[str, list[tuple[float, float, float]]] = {}
        texts: dict[str, list[str]] = {}
        for number in range(options.rounds + 1):
            for way in ("direct", "front", "direct, streams", "front, streams"):
                direct, stream = way.startswith("direct"), way.endswith("streams")
                clients = [Direct(path) if direct else Client(url) for _ in range(AT_ONCE)]
                model = "merganser" if direct else "one"
                before, front = sum(map(processor_seconds, pids)), processor_seconds(pids[0])
                began = time.perf_counter()
                pairs = zip(clients, questions(AT_ONCE), strict=True)
                texts[way] = await asyncio.gather(*(one(c, t, stream, model) for c, t in pairs))
                seconds = time.perf_counter() - began
                spent = sum(map(processor_seconds, pids)) - before
                for client in clients:
                    client.close()
                if number:
                    own = processor_seconds(pids[0]) - front
                    found.setdefault(way, []).append((spent, seconds, own))
        if texts["direct"] != texts["front"]:
            raise SystemExit("the answers differ")
        return found

    with served(folder / "one") as (url, pids):
        found = asyncio.run(run(url, pids))
    middle = {
        way: [round(statistics.median(each), 3) for each in zip(*values, strict=True)]
        for way, values in found.items()
    }
    show(
        what="overhead", layers=options.layers, hidden=options.hidden, at_once=AT_ONCE,
        tokens=options.tokens, rounds=options.rounds,
        **{way: dict(zip(("cpu", "wall", "front"), each, strict=True)) for way, each in middle.items()},
    )  # fmt: skip


def swaps(folder: Path, options: argparse.Namespace) -> None:
    """Ask nine points in turn: every request needs a swap."""
    study = make_study(folder, options.layers, options.hidden, options.vocabulary)

    async def run(url: str) -> None:
        client = Client(url)
        for number in range(options.rounds * 9):
            name = serving.POINTS[number % 9]
            status, body = await client.ask(model=name, prompt="abc", temperature=0, max_tokens=1)
            if status != 200:
                raise SystemExit(json.dumps(body))

    with served(study) as (url, _):
        asyncio.run(run(url))
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as reply:
            text = reply.read().decode()
    number, total = (
        float(re.findall(rf"^merganser_swap_seconds_{key} (\S+)", text, re.MULTILINE)[0])
        for key in ("count", "sum")
    )
    size = (folder / "a" / "model.safetensors").stat().st_size
    show(
        what="swaps",
        model_mb=size // 10**6,
        swaps=int(number),
        mean_seconds=round(total / number, 3),
    )


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["overhead", "swaps"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"overhead": overhead, "swaps": swaps}[options.what](Path(folder), options)


if __name__ == "__main__":
    main()
