"""Models through vLLM's own server: each point's own answers, whatever clients and processes do."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from lora_experts import SWEEP as LORAS
from lora_experts import write_experts, write_sweep
from merganser.evaluation.engines import VllmOptions
from merganser.evaluation.generation import Completion, Prompt, Sampling
from merganser.serving import vllm_engine
from merganser.serving.forwarding import Forwarding
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.server import Address
from merganser.serving.vllm_server import ServerProcess
from served_study import Alone, Running, start
from vllm_models import CALL, make_caller, make_models, name_all_tokens

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),  # vLLM's own
]

SWEEP = """
name: m_w{{ w }}
sweep: {w: [0.2, 0.4, 0.6, 0.8]}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: float32
"""

GREEDY = Sampling(max_tokens=10)
QUESTIONS = ["what is 1 + 2 =", "what is 4 + 4 =", "7 7 7"]

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models, and four points between them."""
    folder = make_models(tmp_path_factory.mktemp("vllm"), "qwen2", "float32")
    name_all_tokens(folder)
    file = folder / "sweep.yml"
    file.write_text(SWEEP.lstrip("\n"))
    return file


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone()


def serving(
    models: list[str], replicas: int = 1, *, length: int = 2048, **arguments: Any
) -> tuple[Running, Forwarding]:
    """A server in a thread, which has started vLLM."""
    options = VllmOptions(max_model_len=length, max_num_seqs=32, arguments=arguments)
    notes: list[str] = []
    service = vllm_engine.make(
        Catalogue(models),
        options,
        Limits(turn=0.1),
        replicas=replicas,
        device="auto",
        dtype="float32",
        threads=1,
        batch_size=32,
        on_note=notes.append,
    )
    running = start(service, Address(port=0), seconds=600)
    assert len(notes) == (service.family is not None)
    return running, service


@pytest.fixture(scope="module")
def server(study: Path) -> Iterator[tuple[Running, Forwarding]]:
    running, service = serving([str(study)])
    yield running, service
    running.stop()


@pytest.fixture(scope="module")
def client(server: tuple[Running, Forwarding]) -> Iterator[OpenAI]:
    with OpenAI(base_url=server[0].url, api_key="none", max_retries=0, timeout=300) as made:
        yield made


def chat(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def words(text: str | None) -> str:
    """A text without spaces: vLLM writes none between the words of a tokenizer without a decoder."""
    return (text or "").replace(" ", "")


def settle(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_each_point_says_what_transformers_says(
    client: OpenAI, server: tuple[Running, Forwarding], alone: Alone
) -> None:
    """Conversations and texts, complete and streamed, of points, experts, and one between."""
    catalogue = server[1].catalogue
    different = set()
    for name in ("m_w0.2", "a", "m_w0.8", "sweep#w=0.33", "b", "m_w0.2"):
        plan = catalogue.find(name).plan
        for question in QUESTIONS:
            wanted = alone.answers(plan, [chat(question), question], GREEDY)
            asked: dict[str, Any] = {"model": name, "temperature": 0, "max_tokens": 10}
            found = client.chat.completions.create(messages=chat(question), **asked)
            assert words(found.choices[0].message.content) == words(wanted[0].text)
            assert (found.model, found.system_fingerprint) == (name, plan.digest)
            assert found.usage is not None
            assert found.usage.completion_tokens == wanted[0].tokens
            assert found.choices[0].finish_reason == wanted[0].finish
            text = client.completions.create(prompt=question, **asked)
            assert words(text.choices[0].text) == words(wanted[1].text)
            chunks = client.completions.create(prompt=question, stream=True, **asked)
            assert "".join(c.choices[0].text for c in chunks) == text.choices[0].text
            different.add(wanted[0].text)
    assert len(different) > 5
    effective = client.models.retrieve("m_w0.2").model_dump()["effective"]
    assert list(effective.values()) == pytest.approx([0.8, 0.2], abs=1e-3)


def test_what_only_vllm_has_passes_through(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "a", "prompt": "1 + 2", "max_tokens": 6}
    found = client.completions.create(
        **asked, n=3, logprobs=2, seed=5, extra_body={"top_k": 1, "min_tokens": 6}
    )
    assert len({choice.text for choice in found.choices}) == 1  # of the likeliest token only
    scores = found.choices[0].logprobs
    assert scores is not None
    assert len(scores.token_logprobs or ()) == 6
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(**asked, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.completions.create(model="a", prompt="1 " * 2100)


def test_mixed_requests_get_each_point_s_own_answers(
    client: OpenAI, server: tuple[Running, Forwarding], alone: Alone
) -> None:
    """120 at once, a third of them streamed, some by clients that go away."""
    chance = random.Random(1)
    running, service = server
    names = ["m_w0.2", "m_w0.4", "m_w0.6", "m_w0.8", "sweep#w=0.5", "a"]
    wanted = {
        (name, question): words(answer.text)
        for name in names
        for question, answer in zip(
            QUESTIONS,
            alone.answers(service.catalogue.find(name).plan, [chat(q) for q in QUESTIONS], GREEDY),
            strict=True,
        )
    }

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        name, question = chance.choice(names), chance.choice(QUESTIONS)
        asked: dict[str, Any] = {
            "model": name, "messages": chat(question), "temperature": 0, "max_tokens": 10,
        }  # fmt: skip
        if number % 10 == 9:
            long = asked | {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01 * (number % 7)):
                    await client.chat.completions.create(**long)
            return
        if number % 3:
            found = await client.chat.completions.create(**asked)
            text, digest = found.choices[0].message.content, found.system_fingerprint
        else:
            text = ""
            async for chunk in await client.chat.completions.create(**asked, stream=True):
                text += chunk.choices[0].delta.content or ""
                digest = chunk.system_fingerprint
        assert words(text) == wanted[name, question]
        assert digest == service.catalogue.find(name).plan.digest

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=running.url, api_key="none", max_retries=0, timeout=300
        ) as client:
            await asyncio.gather(*(ask(client, number) for number in range(120)))

    asyncio.run(all_of_them())
    settle(lambda: service.fleet.state.running == 0)
    url = running.url.removesuffix("/v1")

    def still_running() -> bool:
        text = httpx.get(f"{url}/replicas/0/metrics").text
        [line] = [
            line for line in text.splitlines() if line.startswith("vllm:num_requests_running")
        ]
        return float(line.split()[-1]) > 0

    settle(lambda: not still_running(), 20)  # vLLM has dropped what nobody waits for


@pytest.mark.parametrize("which", ["server", "engine"])
def test_killed_it_is_started_again(
    which: str, client: OpenAI, server: tuple[Running, Forwarding], alone: Alone
) -> None:
    running, service = server
    url = running.url.removesuffix("/v1")
    [replica] = service.fleet.replicas
    process = replica._server
    assert isinstance(process, ServerProcess)
    pid = process.process.pid if which == "server" else engine_of(process.process.pid)
    before = replica.restarts
    wanted = alone.answer(service.catalogue.models["b"].plan, chat(QUESTIONS[0]), GREEDY)
    stream = client.completions.create(
        model="a", prompt="1", stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="ask again"):
        for _ in stream:
            pass
    settle(lambda: replica.restarts == before + 1)
    settle(lambda: httpx.get(f"{url}/health").status_code == 200)
    found = client.chat.completions.create(
        model="b", messages=chat(QUESTIONS[0]), temperature=0, max_tokens=10
    )
    assert words(found.choices[0].message.content) == words(wanted.text)


def engine_of(pid: int) -> int:
    """The process of the engine's core, which a server starts."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(None, 1) for line in listed.splitlines()]
    return next(int(number) for number, text in lines if "EngineCore" in text)


@contextmanager
def process(*models: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``merganser serve`` in a process of its own, and its address."""
    command = [sys.executable, "-m", "merganser", "serve", *map(str, models), "--port", "0"]
    command += ["--engine", "vllm", "--engine-option", "max_model_len=256", "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            assert line.startswith("serving "), line
            yield running, line.split()[4].rstrip(";")
        finally:
            running.kill()


def test_sigterm_lets_a_stream_end_and_then_all_processes(study: Path) -> None:
    with process(study) as (running, url):
        children = descendants(running.pid)
        assert len(children) >= 2
        with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
            stream = client.completions.create(
                model="a", prompt="1", max_tokens=240, stream=True, extra_body={"ignore_eos": True}
            )
            finishes = []
            for number, chunk in enumerate(stream):
                finishes += [c.finish_reason for c in chunk.choices if c.finish_reason]
                if number == 0:
                    running.send_signal(signal.SIGTERM)
        assert finishes == ["length"]
        assert running.wait(120) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()
    settle(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 20)


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its in pairs if its == parent]
    return found[1:]


def test_tool_calls_are_parsed(tmp_path: Path, study: Path) -> None:
    """By vLLM, of a model that makes one, and in a stream; another model of the study answers in text."""
    make_models(tmp_path, "qwen2", "float32")
    make_caller(tmp_path / "a", ["<tool_call>", CALL, "</tool_call>"])
    make_caller(tmp_path / "b", ["+", "2"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    running, _ = serving(
        [str(tmp_path / "a"), str(tmp_path / "b")],
        enable_auto_tool_choice=True,
        tool_call_parser="hermes",
    )
    with OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=300) as client:
        asked: dict[str, Any] = {
            "messages": chat("1"), "tools": [TOOL], "tool_choice": "auto", "temperature": 0,
        }  # fmt: skip
        [choice] = client.chat.completions.create(model="a", **asked).choices
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
        [choice] = client.chat.completions.create(model="b", **asked).choices
        assert words(choice.message.content) == "+2"
        assert not choice.message.tool_calls
        parts = [
            part
            for chunk in client.chat.completions.create(model="a", stream=True, **asked)
            for part in chunk.choices[0].delta.tool_calls or ()
            if part.function
        ]
        arguments = "".join(part.function.arguments or "" for part in parts if part.function)
        assert json.loads(arguments) == {"a": 1}
    running.stop()


def test_lora_experts_are_served_all_at_once(tmp_path: Path, alone: Alone) -> None:
    """In one batch, with points between the grid's: as transformers says with merged weights."""
    make_models(tmp_path, "qwen2", "float32")
    name_all_tokens(tmp_path)
    (tmp_path / "a").rename(tmp_path / "base")
    write_experts(tmp_path / "base", scale=0.05)
    running, service = serving([str(write_sweep(tmp_path, LORAS))])
    names = [*service.catalogue.models, "loras#w=0.3", "loras#w=0.62"]
    wanted: dict[str, list[Completion]] = {}
    prompts: list[Prompt] = [chat(question) for question in QUESTIONS]
    for name in names:
        plan = service.catalogue.find(name).plan
        wanted[name] = alone.answers(plan, prompts, GREEDY)
    assert len({answer.text for answers in wanted.values() for answer in answers}) > 8

    async def ask(client: openai.AsyncOpenAI, name: str) -> None:
        for question, answer in zip(QUESTIONS, wanted[name], strict=True):
            found = await client.chat.completions.create(
                model=name, messages=chat(question), temperature=0, max_tokens=10
            )
            assert words(found.choices[0].message.content) == words(answer.text)
            assert found.system_fingerprint == service.catalogue.find(name).plan.digest

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=running.url, api_key="none", max_retries=0, timeout=300
        ) as client:
            await asyncio.gather(*(ask(client, name) for name in names * 2))

    asyncio.run(all_of_them())
    assert service.gate.swaps == 1
    running.stop()


def test_two_replicas_share_the_points(study: Path, alone: Alone) -> None:
    running, service = serving([str(study)], replicas=2)
    with OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=300) as client:
        for name in ("m_w0.2", "m_w0.6", "m_w0.2", "m_w0.6"):
            wanted = alone.answer(service.catalogue.models[name].plan, chat(QUESTIONS[0]), GREEDY)
            found = client.chat.completions.create(
                model=name, messages=chat(QUESTIONS[0]), temperature=0, max_tokens=10
            )
            assert words(found.choices[0].message.content) == words(wanted.text)
    assert {point.name for point in service.gate.loaded if point} == {"m_w0.2", "m_w0.6"}
    assert service.gate.swaps <= 3  # the first model, and one more for each point
    servers = [replica._server for replica in service.fleet.replicas]
    one, other = (
        os.sched_getaffinity(server.process.pid)
        for server in servers
        if isinstance(server, ServerProcess)
    )
    assert not one & other
    running.stop()
