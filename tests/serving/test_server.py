"""The process that serves: how it starts, stops, and comes back; and long prompts through it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openai import OpenAI

from checkpoints_on_disk import config, make_model, write_json
from merganser import cli
from merganser.errors import ResourceError
from merganser.serving import server as serving
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.server import Address
from merganser.serving.service import Service
from merganser.serving.transformers_engine import TransformersEngine
from merganser.study.live_model import LiveModel
from messages import assert_one_line
from served_study import Running, start


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert Address(host).is_loopback is loopback


def test_small_parts_of_answers_do_not_wait_for_more() -> None:
    """asyncio sets TCP_NODELAY for the connections of sockets that say that they are TCP's."""
    with serving._bind(Address("127.0.0.1", 0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken_is_one_line(server: Running, study: Path) -> None:
    port = int(server.url.rsplit(":", 1)[1].partition("/")[0])
    found = CliRunner().invoke(cli.main, ["serve", str(study), "--port", str(port)])
    assert found.exit_code == ResourceError.exit_code
    assert_one_line(found.stderr.strip(), f"127.0.0.1:{port}: cannot be listened on")


@pytest.mark.parametrize("key", [None, "secret"])
def test_a_server_for_others_without_keys_warns(
    study: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    made: list[Address] = []

    class Never:
        def __init__(
            self, _service: Service, address: Address, _tell: object, **_more: object
        ) -> None:
            made.append(address)

        def serve_until_stopped(self) -> None: ...

    monkeypatch.setattr(serving, "Server", Never)
    if key:
        monkeypatch.setenv("MERGANSER_API_KEY", key)
    found = CliRunner().invoke(cli.main, ["serve", str(study), "--host", "0.0.0.0"])
    assert found.exit_code == 0, found.output
    assert ("warning: everybody who reaches 0.0.0.0 can ask" in found.stderr) is (key is None)
    assert list(made[0].keys) == ([key] if key else [])


@pytest.mark.slow
def test_a_prompt_of_more_than_32768_tokens_is_answered(tmp_path: Path) -> None:
    """With the context and the rope settings of the reference study's models."""
    folder = make_model(tmp_path / "long", layers=1)
    facts: dict[str, Any] = config(layers=1) | {
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
    }
    write_json(folder / "config.json", facts)
    service = Service(Catalogue([str(folder)]), TransformersEngine(LiveModel()), Limits())
    running = start(service, Address(port=0))
    [name] = service.catalogue.models
    with OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=120) as client:
        found = client.completions.create(
            model=name, prompt="1 2 3 4 5 6 7 8 " * 4200, temperature=0, max_tokens=4
        )
    assert found.usage is not None
    assert found.usage.prompt_tokens == 33_600
    assert found.usage.completion_tokens >= 1
    assert service.engine.state.prompt_tokens == 33_600
    running.stop()


@contextmanager
def process(study: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "merganser", "serve", str(study), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            assert line.startswith("serving 11 models at http://127.0.0.1:"), line
            yield running, line.split()[4].rstrip(";")
        finally:
            running.kill()


def ask(url: str, **more: Any) -> str:
    asked: dict[str, Any] = {"prompt": "1 + 2", "temperature": 0, "max_tokens": 8} | more
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        return client.completions.create(**asked).choices[0].text


@pytest.mark.slow
def test_killed_and_started_again_it_says_the_same(study: Path) -> None:
    texts = []
    for _ in range(2):
        with process(study) as (running, url):
            texts.append(ask(url, model="m_w0.3"))
            running.kill()
            assert running.wait(20) == -signal.SIGKILL
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_sigterm_lets_a_stream_end_and_then_the_process(study: Path) -> None:
    with process(study) as (running, url):
        with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            stream = client.completions.create(
                model="m_w0.3", prompt="1", temperature=1.5, max_tokens=400, stream=True, n=8
            )
            finishes = []
            for number, chunk in enumerate(stream):
                finishes += [c.finish_reason for c in chunk.choices if c.finish_reason]
                if number == 0:
                    running.send_signal(signal.SIGTERM)
        assert len(finishes) == 8
        assert running.wait(20) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_in_one_line(study: Path) -> None:
    with process(study) as (running, url):
        with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            streams = [
                client.completions.create(
                    model="m_w0.3",
                    prompt="1",
                    temperature=1.5,
                    max_tokens=100_000,
                    stream=True,
                    n=8,
                )
                for _ in range(2)
            ]
            for stream in streams:
                next(iter(stream))
            running.send_signal(signal.SIGINT)
            assert running.stderr is not None
            waits = running.stderr.readline().strip()
            assert_one_line(waits, "requests that run have 60 s to end; a second signal cuts them")
            running.send_signal(signal.SIGINT)
            assert running.wait(10) == 130
        assert_one_line(running.stderr.read().strip(), "merganser: interrupted; the requests that")
