"""Requests pass to an engine's own server as they are, at the right weights, whatever happens to it."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from fake_vllm import Stand, make, settle, total_of
from merganser.errors import InputError, RecipeError
from merganser.evaluation.engines import VllmOptions
from merganser.serving import replica as replicas
from merganser.serving import vllm_server
from merganser.serving.fleet import Fleet, shares_of
from merganser.serving.forwarding import Forwarding
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.replica import ServerSetting, Share
from merganser.serving.vllm_server import Start, flags_of
from served_study import completed


@pytest.fixture(scope="module")
def stand(catalogue: Catalogue) -> Iterator[Stand]:
    made = make(catalogue, replicas=2, max_tokens=500)
    yield made
    made.running.stop()


@pytest.fixture(scope="module")
def client(stand: Stand) -> Iterator[OpenAI]:
    with OpenAI(base_url=stand.url, api_key="none", max_retries=0, timeout=30) as made:
        yield made


def test_an_answer_is_the_engine_s_with_our_name_and_digest(
    client: OpenAI, catalogue: Catalogue, stand: Stand
) -> None:
    plan = catalogue.models["m_w0.3"].plan
    more = {"guided_choice": ["a"], "top_k": 4}
    found = client.completions.create(
        model="m_w0.3", prompt="p", logprobs=2, extra_body=more | {"stop_token_ids": [9]}
    )
    assert found.choices[0].text == f"merganser {total_of(plan)} {total_of(plan)}"
    assert (found.model, found.system_fingerprint) == ("m_w0.3", plan.digest)
    seen = next(s for server in stand.starts.servers for s in server.seen if "top_k" in s)
    ends = stand.service.fleet.replicas[0].codec
    assert ends is not None
    assert seen.pop("stop_token_ids") == list(dict.fromkeys([9, *ends.end_tokens]))
    assert seen == {"model": "merganser", "prompt": "p", "logprobs": 2, **more}


def test_end_tokens_that_the_model_lacks_are_left_out(client: OpenAI, stand: Stand) -> None:
    """Of a tokenizer that is larger than its model; vLLM refuses them."""
    codecs = [replica.codec for replica in stand.service.fleet.replicas if replica.codec]
    for codec in codecs:
        codec.end_tokens.append(32)
    client.completions.create(model="a", prompt="p", extra_body={"top_k": 5})
    for codec in codecs:
        codec.end_tokens.remove(32)
    [seen] = [s for server in stand.starts.servers for s in server.seen if s.get("top_k") == 5]
    assert seen["stop_token_ids"] == codecs[0].end_tokens


def test_a_stream_is_the_answer_in_parts(client: OpenAI, catalogue: Catalogue) -> None:
    asked: dict[str, Any] = {"model": "sweep#w=0.35", "prompt": "p"}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    digest = catalogue.find("sweep#w=0.35").plan.digest
    assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {
        ("sweep#w=0.35", digest)
    }


def test_tools_reach_the_engine(client: OpenAI, stand: Stand) -> None:
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {}}}
    client.chat.completions.create(
        model="a", messages=[{"role": "user", "content": "1"}], tools=[tool], tool_choice="auto"
    )
    seen = [s for server in stand.starts.servers for s in server.seen if "tools" in s]
    assert seen[0]["tools"] == [tool]
    assert seen[0]["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"prompt": "bad"}, 400, "no such thing"),
        ({"model": "m_w0.33"}, 404, "did you mean"),
        ({"model": "sweep#w=7"}, 404, "outside the sweep's"),
        ({"model": 3}, 400, "model: is the name"),
        ({"max_tokens": 501}, 400, "at most 500 tokens"),
        ({"stop_token_ids": 4}, 400, "is a list of tokens"),
        ({"stream": "no"}, 400, "stream: is true or false"),
    ],
)
def test_errors_have_openai_s_form(
    stand: Stand, asked: dict[str, Any], status: int, message: str
) -> None:
    found = httpx.post(f"{stand.url}/completions", json={"model": "a", "prompt": "p"} | asked)
    assert found.status_code == status
    error = found.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_mixed_requests_get_their_own_weights(stand: Stand, catalogue: Catalogue) -> None:
    """Some streamed, some by clients that go away; two replicas."""
    chance = random.Random(0)
    names = [f"m_w0.{n}" for n in range(1, 10)] + ["sweep#w=0.45", "a"]
    totals = {name: total_of(catalogue.find(name).plan) for name in names}
    assert len(set(totals.values())) == len(names)

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        name = chance.choice(names)
        asked: dict[str, Any] = {"model": name, "prompt": "p"}
        if number % 10 == 9:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002 * (number % 7)):
                    await client.completions.create(**asked | {"prompt": "slow"})
            return
        text, digest = await completed(client, asked, streamed=number % 3 == 0)
        assert text == f"merganser {totals[name]} {totals[name]}"
        assert digest == catalogue.find(name).plan.digest

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(
            base_url=stand.url, api_key="none", max_retries=0, timeout=30
        ) as client:
            await asyncio.gather(*(ask(client, number) for number in range(100)))

    asyncio.run(all_of_them())
    servers = stand.starts.servers
    settle(lambda: all(server.running == 0 for server in servers))
    assert all(server.seen for server in servers)
    assert stand.service.fleet.state.running == 0
    text = httpx.get(stand.url.removesuffix("/v1") + "/metrics").text
    generated = sum(server.tokens for server in servers)
    assert f"merganser_generated_tokens {float(generated)}" in text
    own = httpx.get(stand.url.removesuffix("/v1") + "/replicas/1/metrics")
    assert "vllm:generation_tokens_total" in own.text
    assert httpx.get(stand.url.removesuffix("/v1") + "/replicas/2/metrics").status_code == 404


def test_a_client_that_goes_away_ends_its_request_before_the_next_swap(
    catalogue: Catalogue,
) -> None:
    stand = make(catalogue)
    with OpenAI(base_url=stand.url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="a", prompt="slow", timeout=0.05)
        found = client.completions.create(model="b", prompt="p")
    total = total_of(catalogue.models["b"].plan)
    assert found.choices[0].text == f"merganser {total} {total}"
    assert stand.starts.servers[0].resets[-1]
    stand.running.stop()


def test_a_server_that_dies_fails_its_requests_and_is_started_again(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "RESTARTS", 2)
    stand = make(catalogue)
    assert stand.health() == (
        200,
        {"status": "ok", "replicas": [{"state": "running", "restarts": 0, "running": 0}]},
    )
    with OpenAI(base_url=stand.url, api_key="none", max_retries=0) as client:
        for restarts in range(1, 4):
            with pytest.raises(openai.InternalServerError) as raised:
                client.completions.create(model="a", prompt="die")
            assert raised.value.status_code == 503
            assert raised.value.code == "engine_failed"
            if restarts < 3:
                settle(lambda: stand.health()[0] == 200)
                found = client.completions.create(model="b", prompt="p")
                assert total_of(catalogue.models["b"].plan) in found.choices[0].text
                assert stand.health()[1]["replicas"][0]["restarts"] == restarts
        settle(lambda: stand.health()[1]["status"] == "failed")
        with pytest.raises(openai.InternalServerError, match="no engine runs"):
            client.completions.create(model="a", prompt="p")
    assert len(stand.starts.servers) == 3
    stand.running.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_the_same_error(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.APIError, match="the engine has ended; ask again"):
        list(client.completions.create(model="a", prompt="dead", stream=stream))


def test_another_replica_takes_over(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "RESTARTS", 0)
    stand = make(catalogue, replicas=2)
    with OpenAI(base_url=stand.url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="a", prompt="die")
        settle(lambda: stand.health()[1]["status"] == "degraded")
        for name in ("a", "b", "a"):
            found = client.completions.create(model=name, prompt="p")
            assert total_of(catalogue.models[name].plan) in found.choices[0].text
    stand.running.stop()


def test_a_model_that_cannot_be_started_ends_the_start(catalogue: Catalogue) -> None:
    async def refuse(_given: Start) -> Any:
        raise InputError("no such architecture")

    setting = ServerSetting("vllm 0", VllmOptions(), True, lambda _plan: "float32", start=refuse)
    service = Forwarding(catalogue, Fleet(setting, [Share()]), Limits())

    async def scenario() -> None:
        with pytest.raises(InputError, match="no such architecture"):
            await service.start()
        await service.close()

    asyncio.run(scenario())


def test_arguments_become_flags() -> None:
    given = {
        "enable_auto_tool_choice": True, "enforce_eager": False, "seed": None, "max_model_len": 64,
        "override_generation_config": {"max_new_tokens": 3}, "allowed_origins": ["a", "b"],
    }  # fmt: skip
    assert flags_of(given) == [
        "--enable-auto-tool-choice", "--no-enforce-eager", "--max-model-len", "64",
        "--override-generation-config", '{"max_new_tokens": 3}', "--allowed-origins", "a", "b",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="is no name"):
        flags_of({"-x y": 1})


def test_replicas_share_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    assert shares_of(1, 1, on_cpu=True) == [Share()]
    assert [share.cores for share in shares_of(2, 1, on_cpu=True)] == [[0, 2, 4], [1, 3]]
    with pytest.raises(RecipeError, match="5 cores for 6 replicas"):
        shares_of(6, 1, on_cpu=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")
    found = [share.devices["CUDA_VISIBLE_DEVICES"] for share in shares_of(2, 2, on_cpu=False)]
    assert found == ["4,5", "6,GPU-7"]
    with pytest.raises(RecipeError, match="need 6 GPUs, and there are 4"):
        shares_of(3, 2, on_cpu=False)


# -- the process -----------------------------------------------------------------------------------

LISTENER = """
import os, socket, sys
at = sys.argv[sys.argv.index("--uds") + 1]
if "--fail" in sys.argv:
    print("ERROR 11-29 18:00:00 [core.py:1] ValueError: no such kernel")
    sys.exit(1)
server = socket.socket(socket.AF_UNIX)
server.bind(at)
server.listen()
print(os.environ["VLLM_SERVER_DEV_MODE"], sys.argv[1], flush=True)
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    client.close()
"""


def given(folder: Path, **arguments: Any) -> Start:
    return Start("vllm 0", "the model", arguments, folder / "s.sock", {"GPUS": "1"}, [0])


def test_a_process_is_ready_is_killed_and_says_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "COMMAND", (sys.executable, "-c", LISTENER))

    async def scenario() -> None:
        server = await vllm_server.start(given(tmp_path))
        assert (tmp_path / "s.log").read_text() == "1 0\n"
        server.process.send_signal(signal.SIGKILL)
        await asyncio.wait_for(server.ended(), 10)
        again = await vllm_server.start(given(tmp_path))
        await again.stop()
        assert again.process.returncode == -signal.SIGTERM
        with pytest.raises(InputError) as raised:
            await vllm_server.start(given(tmp_path, fail=True))
        assert str(raised.value) == (
            "the model: vllm 0 cannot serve this model (ValueError: no such kernel); "
            "engine='transformers' may"
        )

    asyncio.run(scenario())


def test_the_engine_s_process_ends_with_the_process_that_started_it() -> None:
    """Even if that is killed."""
    code = "import sys; sys.argv[1:] = ['all']; " + "; ".join(
        [
            "from merganser.serving import vllm_process as p",
            "p.MODULE = 'timeit'",
            "p.runpy.run_module = lambda *a, **k: (print('up', flush=True), p.threading.Event().wait())",
            "p.main()",
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"up\n"
        child.stdin.close()
        assert child.wait(10) == -signal.SIGKILL
