"""What a server costs: over the engine in process, with many points, with clients that leave, and in memory.

    python bench/serving.py overhead [--layers 8 --hidden 512]   # 32 requests at once, in process and over HTTP
    python bench/serving.py loop                                 # the event loop's part of 32 requests, without sockets
    python bench/serving.py soak                                 # 1,000 requests over nine points at random
    python bench/serving.py gone                                 # 200 clients that go away
    python bench/serving.py memory                               # one model, and nine points of two
    python bench/serving.py slider [--models DIR --dtype bfloat16]  # a slider moves: plan, swap, first token

Models are random, of Qwen2's shape. The server is a process of its own; its processor time is compared, which
other programs on the machine change little. One line of JSON for each result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

AT_ONCE = 32
POINTS = [f"m_w0.{n}" for n in range(1, 10)]
SWEEP = """
name: m_w{{ w }}
sweep: {w: {from: 0.1, to: 0.9, step: 0.1}}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
"""


def make_model(folder: Path, seed: int, layers: int, hidden: int, vocabulary: int) -> None:
    """A random model whose answers do not end by themselves."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        max_position_embeddings=32768, initializer_range=0.08, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    folder.mkdir()
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    tensors = Qwen2ForCausalLM(config).state_dict()
    kept = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"<{i}>" for i in range(len(letters), vocabulary))]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def make_study(folder: Path, layers: int, hidden: int, vocabulary: int) -> Path:
    """A sweep of nine points over two models."""
    for seed, name in enumerate("ab"):
        make_model(folder / name, seed, layers, hidden, vocabulary)
    file = folder / "sweep.yml"
    file.write_text(SWEEP)
    return file


@contextmanager
def serving(*arguments: object, what: str = "serve") -> Iterator[tuple[str, int]]:
    """A server or a studio in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "merganser", what, *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if " at http" not in line:
        sys.exit(line + process.stderr.read())
    try:
        yield line.split(" at ")[1].split(";")[0].rstrip("/"), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        print(json.dumps({"what": "exit", "code": code}))


def processor_seconds(pid: int | None = None) -> float:
    """Processor time of a process, of this one if None."""
    fields = Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, int]:
    """MB of a process's memory that no file backs, now and the most of all."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    return {name: int(facts[name][0]) // 1024 for name in ("RssAnon", "VmHWM")}


class Client:
    """A connection that asks one question after the other."""

    def __init__(self, url: str) -> None:
        self.host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
        self.port = int(port)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str = "/v1/completions", **asked: Any) -> tuple[int, Any]:
        """Status and body of an answer."""
        reader, _writer = await self.send(path, **asked)
        status = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, json.loads(await reader.readexactly(length))

    async def send(
        self, path: str = "/v1/completions", **asked: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a question."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, self.port)
        body = json.dumps(asked).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nX-Merganser: studio\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.streams[1].write(head.encode() + body)
        await self.streams[1].drain()
        return self.streams

    def close(self) -> None:
        """Leave at once."""
        if self.streams is not None:
            self.streams[1].transport.abort()
            self.streams = None


def questions(count: int, seed: int = 0) -> list[str]:
    """Prompts of 16 to 64 letters, each a token."""
    chance = random.Random(seed)
    return [
        "".join(chance.choice("abcdefghijklmnop") for _ in range(chance.randrange(16, 65)))
        for _ in range(count)
    ]


def show(**facts: Any) -> None:
    """Print a result."""
    print(json.dumps(facts), flush=True)


# -- what is measured ------------------------------------------------------------------------------


class InProcess:
    """The engine of the server, in this process."""

    def __init__(self, folder: Path) -> None:
        from merganser.serving.names import Catalogue
        from merganser.serving.transformers_engine import TransformersEngine
        from merganser.study.live_model import LiveModel

        [self.served] = Catalogue([str(folder)]).models.values()
        self.engine = TransformersEngine(LiveModel())

    async def round(self, tokens: int) -> tuple[float, list[str]]:
        """Processor seconds, and the texts."""
        from merganser.evaluation.generation import Sampling
        from merganser.serving.generation import Wanted

        began = processor_seconds()
        rows = [self.codec.encode(text) for text in questions(AT_ONCE)]
        wanted = [Wanted(row, Sampling(max_tokens=tokens)) for row in rows]
        found = [""] * AT_ONCE
        async with aclosing(self.engine.generate(self.served, wanted)) as parts:
            async for index, part in parts:
                found[index] = part.text
        return processor_seconds() - began, found

    async def begin(self) -> None:
        """Load the model."""
        self.codec = (await self.engine.become(self.served)).codec


class Static:
    """Static batches of transformers, in this process."""

    def __init__(self, folder: Path) -> None:
        from merganser.planning.model_argument import find
        from merganser.study.live_model import LiveModel

        self.live = LiveModel(batch_size=AT_ONCE)
        self.live.become(find(str(folder))[1], report=False)

    async def round(self, tokens: int) -> tuple[float, list[str]]:
        """Processor seconds, and the texts."""
        from merganser.evaluation.generation import Request, Sampling

        began = processor_seconds()
        requests = [Request(text) for text in questions(AT_ONCE)]
        found = dict(self.live.backend(requests, Sampling(max_tokens=tokens)))
        return processor_seconds() - began, [found[i].text for i in range(AT_ONCE)]


class OverHttp:
    """The server, in its own process; a stream's events are read, and its text is not compared."""

    def __init__(self, url: str, pid: int, *, stream: bool) -> None:
        self.clients = [Client(url) for _ in range(AT_ONCE)]
        self.pid = pid
        self.stream = stream

    async def round(self, tokens: int) -> tuple[float, list[str]]:
        """Processor seconds, and the texts."""
        for client in self.clients:  # the server closes those that were idle for long
            client.close()
        began = processor_seconds(self.pid)
        pairs = zip(self.clients, questions(AT_ONCE), strict=True)
        texts = await asyncio.gather(*(self.one(client, text, tokens) for client, text in pairs))
        return processor_seconds(self.pid) - began, texts

    async def one(self, client: Client, text: str, tokens: int) -> str:
        """One answer."""
        asked = {"model": "one", "prompt": text, "temperature": 0, "max_tokens": tokens}
        if not self.stream:
            body = (await client.ask(**asked))[1]
            return str(body["choices"][0]["text"])
        reader, _ = await client.send(stream=True, **asked)
        await reader.readuntil(b"[DONE]\n\n")
        return ""


def overhead(folder: Path, options: argparse.Namespace) -> None:
    """Compare the engine in process with the server, in turns."""
    make_model(folder / "one", 0, options.layers, options.hidden, options.vocabulary)
    parameters = (folder / "one" / "model.safetensors").stat().st_size // 2

    async def run(url: str, pid: int) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
        engine = InProcess(folder / "one")
        await engine.begin()
        ways: dict[str, Any] = {
            "static batches": Static(folder / "one"),
            "engine": engine,
            "server": OverHttp(url, pid, stream=False),
            "server, streams": OverHttp(url, pid, stream=True),
        }
        ways = {way: measured for way, measured in ways.items() if way not in options.without}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        texts: dict[str, list[str]] = {}
        for number in range(options.rounds + 1):
            for way, measured in ways.items():
                spent, texts[way] = await measured.round(options.tokens)
                if number:
                    seconds[way].append(spent)
        await engine.engine.close()
        return seconds, texts

    with serving(folder / "one") as (url, pid):
        seconds, texts = asyncio.run(run(url, pid))
    middle = {way: statistics.median(each) for way, each in seconds.items()}
    unlike = {
        way: sum(a != b for a, b in zip(texts["engine"], texts[way], strict=True))
        for way in ("server", "static batches")
        if way in texts
    }
    show(
        what="overhead", parameters=parameters, at_once=AT_ONCE, tokens=options.tokens,
        rounds=options.rounds, cpu_seconds={way: round(value, 3) for way, value in middle.items()},
        over_engine={way: round(value / middle["engine"] - 1, 4) for way, value in middle.items()},
        texts_unlike_engine=unlike,
    )  # fmt: skip


def loop(folder: Path, options: argparse.Namespace) -> None:
    """The processor time of the event loop for a request: all that is the server's, without its sockets."""
    from merganser.serving.app import make_app
    from merganser.serving.limits import Limits
    from merganser.serving.names import Catalogue
    from merganser.serving.service import Service
    from merganser.serving.transformers_engine import TransformersEngine
    from merganser.study.live_model import LiveModel

    make_model(folder / "one", 0, 1, 64, 512)
    catalogue = Catalogue([str(folder / "one")])
    service = Service(catalogue, TransformersEngine(LiveModel()), Limits())
    app: Any = make_app(service)

    async def one(text: str, *, stream: bool) -> int:
        asked = {"model": "one", "prompt": text, "temperature": 0, "max_tokens": options.tokens}
        bodies = [json.dumps(asked | {"stream": stream}).encode()]
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
                 "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
                 "server": ("localhost", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
        parts = 0

        async def receive() -> dict[str, Any]:
            if not bodies:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        async def send(_message: Any) -> None:
            nonlocal parts
            parts += 1

        await app(scope, receive, send)
        return parts

    async def run() -> None:
        await service.warm_up()
        for stream in (False, True):
            spent, parts = [], 0
            for _ in range(options.rounds + 1):
                began = time.thread_time()
                asked = (one(text, stream=stream) for text in questions(AT_ONCE))
                parts = sum(await asyncio.gather(*asked))
                spent.append(1000 * (time.thread_time() - began) / AT_ONCE)
            show(
                what="loop", stream=stream, at_once=AT_ONCE, tokens=options.tokens, parts=parts,
                cpu_ms_of_a_request=round(statistics.median(spent[1:]), 2), load=round(os.getloadavg()[0], 1),
            )  # fmt: skip
        await service.close()

    asyncio.run(run())


def soak(folder: Path, options: argparse.Namespace) -> None:
    """Ask nine points at random, and compare each answer with the point's own."""
    study = make_study(folder, options.layers, options.hidden, options.vocabulary)
    from merganser.evaluation.generation import Request, Sampling
    from merganser.planning.model_argument import find
    from merganser.study.live_model import LiveModel

    prompts = questions(20)
    wanted: dict[tuple[str, str], str] = {}
    live = LiveModel()
    for name in POINTS:
        live.become(find(f"{study}#{name}")[1], report=False)
        answers = live.backend([Request(p) for p in prompts], Sampling(max_tokens=options.tokens))
        wanted |= {(name, prompts[i]): answer.text for i, answer in answers}
    live.close()
    chance = random.Random(1)
    asked = [(chance.choice(POINTS), chance.choice(prompts)) for _ in range(options.requests)]

    async def run(url: str) -> list[tuple[bool, float]]:
        places = asyncio.Semaphore(options.clients)
        idle = [Client(url) for _ in range(options.clients)]

        async def one(name: str, prompt: str) -> tuple[bool, float]:
            async with places:
                client = idle.pop()
                began = time.perf_counter()
                status, body = await client.ask(
                    model=name, prompt=prompt, temperature=0, max_tokens=options.tokens
                )
                seconds = time.perf_counter() - began
                idle.append(client)
                if status != 200:
                    raise SystemExit(str(body))
                return body["choices"][0]["text"] == wanted[name, prompt], seconds

        return await asyncio.gather(*(one(*each) for each in asked))

    with serving(study, "--turn", options.turn, "--longest-turn", options.longest) as (url, pid):
        began = time.perf_counter()
        found = asyncio.run(run(url))
        seconds = time.perf_counter() - began
        figures = metrics(url)
        waits = sorted(value for _, value in found)
        show(
            what="soak", requests=len(found), points=len(POINTS), clients=options.clients,
            wrong=sum(not good for good, _ in found), lost=options.requests - len(found),
            unlike_texts=len(set(wanted.values())), seconds=round(seconds, 1),
            swaps=int(figures["merganser_swap_seconds_count"]),
            swap_ms=round(1000 * figures["merganser_swap_seconds_sum"] / figures["merganser_swap_seconds_count"], 1),
            turn=options.turn, longest_turn=options.longest,
            answer_p50=round(waits[len(waits) // 2], 2), answer_p99=round(waits[len(waits) * 99 // 100], 2),
            answer_max=round(waits[-1], 2), cpu_seconds=round(processor_seconds(pid), 1),
        )  # fmt: skip


def metrics(url: str) -> dict[str, float]:
    """A server's figures."""
    import urllib.request

    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(v) for name, v in (x.rsplit(" ", 1) for x in lines if x[:1] != "#")}


def gone(folder: Path, options: argparse.Namespace) -> None:
    """Ask for long answers, leave in the middle, and see what is left."""
    study = make_study(folder, options.layers, options.hidden, options.vocabulary)
    chance = random.Random(2)
    prompts = questions(20)

    async def run(url: str) -> None:
        async def one(number: int) -> None:
            client = Client(url)
            await asyncio.sleep(chance.random())
            reader, _ = await client.send(
                model=POINTS[number % 9], prompt=chance.choice(prompts), max_tokens=20_000,
                stream=number % 2 == 0,
            )  # fmt: skip
            if number % 4 == 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.readline(), 3 * chance.random())
            else:
                await asyncio.sleep(3 * chance.random())
            client.close()

        await asyncio.gather(*map(one, range(200)))

    with serving(study, "--turn", 0.2, "--longest-turn", 0.5) as (url, pid):
        asyncio.run(run(url))
        began = time.perf_counter()
        while (figures := metrics(url))["merganser_running"] + figures["merganser_held"]:
            time.sleep(0.02)
            if time.perf_counter() - began > 60:
                break
        until = time.perf_counter() - began
        idle = processor_seconds(pid)
        time.sleep(2)
        figures = metrics(url)
        show(
            what="gone", clients=200, running=figures["merganser_running"],
            held=figures["merganser_held"],
            waiting=sum(v for k, v in figures.items() if k.startswith("merganser_waiting{")),
            seconds_until_nothing_ran=round(until, 2),
            cpu_in_two_idle_seconds=round(processor_seconds(pid) - idle, 2),
        )  # fmt: skip


def in_memory(folder: Path, options: argparse.Namespace) -> None:
    """Compare a server of one model with one of nine points."""
    if options.models is None:
        study = make_study(folder, options.layers, options.hidden, options.vocabulary)
    else:
        for name in "ab":
            (folder / name).symlink_to(options.models / name)
        study = folder / "sweep.yml"
        study.write_text(SWEEP)
    size = (folder / "a" / "model.safetensors").stat().st_size // 2**20

    async def visit(url: str, names: list[str]) -> None:
        client = Client(url)
        for name in names * 2:
            await client.ask(model=name, prompt="w1", max_tokens=4, temperature=0)

    for what, given, names in (
        ("one model", [folder / "a"], ["a"]),
        ("nine points", [study], POINTS),
    ):
        with serving(*given, "--dtype", options.dtype) as (url, pid):
            asyncio.run(visit(url, names))
            show(what=what, bfloat16_mb=size, dtype=options.dtype, mb=memory(pid))


BLEND = """merge_method: linear
models:
- {{model: a, parameters: {{weight: {}}}}}
- {{model: b, parameters: {{weight: {}}}}}
"""


def copy_seconds(size: int) -> tuple[float, float]:
    """Seconds, and processor seconds, to copy that many bytes in memory with all threads."""
    part = min(size, 2**29)
    source, target = (torch.full((part,), n, dtype=torch.uint8) for n in range(2))
    target.copy_(source)
    began, spent = time.perf_counter(), processor_seconds()
    for _ in range(3):
        target.copy_(source)
    scale = size / part / 3
    return scale * (time.perf_counter() - began), scale * (processor_seconds() - spent)


def slider(folder: Path, options: argparse.Namespace) -> None:
    """Move a slider: what the studio's page asks, until the first word; and the same blend asked again."""
    home = options.models
    if home is None:
        home = folder
        for seed, name in enumerate("ab"):
            make_model(folder / name, seed, options.layers, options.hidden, options.vocabulary)
    weights = [file for file in (home / "a").rglob("*") if file.suffix in (".safetensors", ".pt")]
    size = sum(file.stat().st_size for file in weights)
    [prompt] = questions(1)

    async def first_word(client: Client, model: str) -> float:
        began = time.perf_counter()
        asked = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 2}
        reader, _ = await client.send(stream=True, **asked)
        await reader.readuntil(b'"text":')
        seconds = time.perf_counter() - began
        await reader.readuntil(b"[DONE]\n\n")
        await reader.readuntil(b"0\r\n\r\n")
        return seconds

    async def run(url: str, pid: int) -> list[dict[str, float]]:
        client = Client(url)
        found = []
        for number in range(options.rounds + 2):
            weight = 0.5 + 0.01 * number
            text = BLEND.format(round(1 - weight, 2), weight)
            before, spent = metrics(url), processor_seconds(pid)
            began = time.perf_counter()
            status, body = await client.ask("/studio/blend", text=text, live=True)
            planned = time.perf_counter() - began
            if status != 200 or body["error"]:
                raise SystemExit(str(body))
            waited = await first_word(client, body["model"])
            cpu = processor_seconds(pid) - spent
            swap = metrics(url)["merganser_swap_seconds_sum"] - before["merganser_swap_seconds_sum"]
            spent = processor_seconds(pid)
            again = await first_word(client, body["model"])
            cpu_again = processor_seconds(pid) - spent
            if number > 1:  # the first loads the model
                found.append({"plan": planned, "swap": swap, "first_token": planned + waited,
                              "prompt_alone": again, "cpu": cpu, "cpu_of_prompt_alone": cpu_again})  # fmt: skip
        return found

    with serving(home, "--dtype", options.dtype, what="studio") as (url, pid):
        rounds = asyncio.run(run(url + "/v1", pid))
        used = memory(pid)
    wall, cpu = copy_seconds(size)
    figures = {
        f"{key}_ms": round(1000 * statistics.median(r[key] for r in rounds), 1) for key in rounds[0]
    }
    show(
        what="slider", model_mb=size // 2**20, dtype=options.dtype, rounds=len(rounds), **figures,
        most_first_token_ms=round(1000 * max(r["first_token"] for r in rounds), 1),
        copy_of_model_ms=round(1000 * wall, 1), copy_of_model_cpu_ms=round(1000 * cpu, 1),
        load=round(os.getloadavg()[0], 1), mb=used,
    )  # fmt: skip


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ways = {
        "overhead": overhead,
        "loop": loop,
        "soak": soak,
        "gone": gone,
        "memory": in_memory,
        "slider": slider,
    }
    parser.add_argument("what", choices=ways)
    for name, value in {
        "layers": 8, "hidden": 512, "vocabulary": 8192, "tokens": 64, "rounds": 5,
        "requests": 1000, "clients": 64,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--models", type=Path, help="Folder with the models a and b, for slider and memory."
    )
    parser.add_argument("--dtype", default="auto", help="What the server computes in.")
    parser.add_argument("--turn", type=float, default=2.0)
    parser.add_argument("--longest", type=float, default=20.0)
    parser.add_argument("--without", nargs="*", default=[], help="Ways of overhead to leave out.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ways[options.what](Path(folder), options)


if __name__ == "__main__":
    main()
