"""OpenAI's API over the served study, as OpenAI's own client and others use it."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from merganser.errors import InputError
from merganser.evaluation.endpoint import Endpoint
from merganser.evaluation.generation import Request, Sampling
from merganser.serving.app import make_app
from merganser.serving.limits import Limits
from merganser.serving.names import Catalogue
from merganser.serving.service import Service
from merganser.serving.transformers_engine import TransformersEngine
from merganser.study.live_model import LiveModel
from served_study import Alone, Running, completed

QUESTION = [{"role": "user", "content": "1 + 2"}]
DRAWN = Sampling(1.3, 0.95, max_tokens=12, seed=7)


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and body of a request by another client."""
    given = {"Content-Type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, given), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


# -- the official client ---------------------------------------------------------------------------


def test_models(client: OpenAI, catalogue: Catalogue) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == list(catalogue.models)
    found = client.models.retrieve("m_w0.3").model_dump()
    assert found["owned_by"] == "merganser"
    assert found["digest"] == catalogue.models["m_w0.3"].plan.digest
    assert found["values"] == {"w": 0.3}
    assert "merge_method: linear" in found["recipe"]
    client.completions.create(model="m_w0.3", prompt="1", max_tokens=1)
    found = client.models.retrieve("m_w0.3").model_dump()
    assert list(found["effective"].values()) == pytest.approx([0.7, 0.3], abs=1e-3)
    assert client.models.retrieve("sweep#w=0.25").model_dump()["values"] == {"w": 0.25}
    with pytest.raises(openai.NotFoundError, match=r"did you mean 'm_w0\.3'"):
        client.models.retrieve("m_w0.33")


@pytest.mark.parametrize("how", [Sampling(max_tokens=20), DRAWN], ids=["greedy", "drawn"])
def test_a_conversation_is_answered_as_by_generate(
    client: OpenAI, catalogue: Catalogue, alone: Alone, how: Sampling
) -> None:
    served = catalogue.models["m_w0.6"]
    wanted = alone.answer(served.plan, QUESTION, how)
    found = client.chat.completions.create(
        model="m_w0.6", messages=QUESTION, temperature=how.temperature, top_p=how.top_p,
        seed=how.seed, max_completion_tokens=how.max_tokens,
    )  # fmt: skip
    [choice] = found.choices
    assert choice.message.content == wanted.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == wanted.finish
    assert found.model == "m_w0.6"
    assert found.system_fingerprint == served.plan.digest
    assert found.usage is not None
    assert found.usage.completion_tokens == wanted.tokens
    prompt = alone.live.backend.codec.encode(QUESTION)
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.total_tokens == len(prompt) + wanted.tokens


def test_a_stream_is_the_answer_in_parts(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "m_w0.6", "messages": QUESTION, "seed": 3, "max_tokens": 15, "n": 2,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        assert len(own) > 3
        assert choice.logprobs is not None
        scores = [s for c in own if c.logprobs for s in c.logprobs.content or ()]
        assert [s.token for s in scores] == [s.token for s in choice.logprobs.content or ()]
        assert all(len(s.top_logprobs) == 2 for s in scores)


def test_plain_text_is_continued(client: OpenAI, catalogue: Catalogue, alone: Alone) -> None:
    plan = catalogue.models["m_w0.4"].plan
    texts = ["1 + 2", "3 - 1"]
    asked: dict[str, Any] = {
        "model": "m_w0.4", "prompt": texts, "temperature": 1.3, "top_p": 0.95, "seed": 7,
        "max_tokens": 12, "n": 2, "logprobs": 2,
    }  # fmt: skip
    found = client.completions.create(**asked)
    wanted = [alone.answer(plan, text, DRAWN, sample) for text in texts for sample in range(2)]
    assert [choice.text for choice in found.choices] == [each.text for each in wanted]
    assert [choice.finish_reason for choice in found.choices] == [each.finish for each in wanted]
    scores = found.choices[0].logprobs
    assert scores is not None
    assert len(scores.token_logprobs or ()) == wanted[0].tokens
    parts: dict[int, str] = {}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + choice.text
    assert [parts[i] for i in range(4)] == [each.text for each in wanted]
    alone.live.settle(plan)
    tokens = alone.live.backend.codec.encode("1 + 2")
    again = client.completions.create(model="m_w0.4", prompt=tokens, temperature=0, max_tokens=9)
    greedy = alone.answer(plan, "1 + 2", Sampling(max_tokens=9))
    assert again.choices[0].text == greedy.text


def test_stop_texts_end_an_answer(client: OpenAI, catalogue: Catalogue, alone: Alone) -> None:
    plan = catalogue.models["m_w0.6"].plan
    free = alone.answer(plan, QUESTION, Sampling(max_tokens=30)).text
    stop = next(free[i : i + 2] for i in range(2, len(free)) if free[i] not in free[:i])
    how = Sampling(max_tokens=30, stop=(stop,))
    wanted = alone.answer(plan, QUESTION, how)
    assert 0 < len(wanted.text) < len(free)
    asked: dict[str, Any] = {
        "model": "m_w0.6", "messages": QUESTION, "temperature": 0, "max_tokens": 30, "stop": stop,
    }  # fmt: skip
    [choice] = client.chat.completions.create(**asked).choices
    assert (choice.message.content, choice.finish_reason) == (wanted.text, "stop")
    chunks = client.chat.completions.create(**asked, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == wanted.text


def test_an_evaluation_asks_the_server_as_it_asks_a_live_model(
    server: Running, catalogue: Catalogue, alone: Alone
) -> None:
    how = Sampling(max_tokens=12)
    prompts = [QUESTION, "1 + 2", [{"role": "user", "content": "7"}]]
    endpoint = Endpoint(server.url, "m_w0.2")
    assert "m_w0.2" in endpoint.models()
    found = dict(endpoint([Request(prompt) for prompt in prompts], how))
    wanted = alone.answers(catalogue.models["m_w0.2"].plan, prompts, how)
    assert [found[index] for index in range(3)] == wanted


def test_tools_are_given_to_the_chat_template(client: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "7", "parameters": {"type": "object"}}}
    asked: dict[str, Any] = {"model": "a", "messages": QUESTION, "max_tokens": 1}
    usages = [
        client.chat.completions.create(**asked, **more).usage
        for more in ({}, {"tools": [tool]}, {"tools": [tool], "tool_choice": "none"})
    ]
    tokens = [usage.prompt_tokens for usage in usages if usage]
    assert tokens == [tokens[0], tokens[0] + 2, tokens[0]]
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(**asked, tools=[tool], tool_choice="required")


def test_answers_without_a_seed_differ(client: OpenAI) -> None:
    texts = {
        client.completions.create(model="a", prompt="1", temperature=2, max_tokens=20)
        .choices[0]
        .text
        for _ in range(4)
    }
    assert len(texts) > 1


# -- many points, one set of weights ---------------------------------------------------------------


def test_mixed_requests_get_each_point_s_own_answers(
    server: Running, catalogue: Catalogue, alone: Alone
) -> None:
    """100 at a time, some streamed, some of points between the grid's, some by clients that go away."""
    chance = random.Random(0)
    names = [f"m_w0.{n}" for n in range(1, 10)] + ["sweep#w=0.45", "a"]
    prompts = ["1 + 2", "3 - 4 =", "user 7 7 7"]
    how = Sampling(max_tokens=16)
    wanted = {
        (name, prompt): answer
        for name in names
        for prompt, answer in zip(
            prompts, alone.answers(catalogue.find(name).plan, prompts, how), strict=True
        )
    }
    assert len({answer.text for answer in wanted.values()}) > 20

    async def ask(client: openai.AsyncOpenAI, number: int) -> bool:
        name, prompt = chance.choice(names), chance.choice(prompts)
        asked: dict[str, Any] = {
            "model": name, "prompt": prompt, "temperature": 0, "max_tokens": 16,
        }  # fmt: skip
        if number % 10 == 9:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001 * (number % 7)):
                    await client.completions.create(**asked | {"max_tokens": 5000})
            return True
        text, digest = await completed(client, asked, streamed=number % 3 == 0)
        assert text == wanted[name, prompt].text
        return digest == catalogue.find(name).plan.digest

    async def all_of_them() -> list[bool]:
        async with openai.AsyncOpenAI(
            base_url=server.url, api_key="none", max_retries=0, timeout=60
        ) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(100)))

    assert all(asyncio.run(all_of_them()))
    settle(lambda: server.service.engine.state.running == 0)


def settle(condition: Callable[[], bool]) -> None:
    """Wait until something holds, five seconds at most."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def raw(server: Running, **asked: Any) -> socket.socket:
    """A connection on which a request was sent."""
    place = urlsplit(server.url)
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_clients_that_go_away_leave_nothing_running(server: Running) -> None:
    """While they wait, while they are answered, and in the middle of a stream."""
    service = server.service
    long = {"prompt": "1", "temperature": 1.5, "max_tokens": 50_000, "n": 40}
    streams = [raw(server, model="a", stream=True, **long) for _ in range(2)]
    for connection in streams:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    others = [raw(server, model="b", **long), raw(server, model="a", **long)]
    settle(lambda: bool(service.gate.waiting))
    for connection in (*streams, *others):
        connection.close()
    settle(lambda: not service.gate.inside and not service.gate.waiting)
    settle(lambda: service.engine.state.running == service.engine.state.held == 0)


def test_a_stopping_server_answers_what_it_has_and_nothing_new(catalogue: Catalogue) -> None:
    from merganser.serving.server import Address
    from served_study import start

    engine = TransformersEngine(LiveModel())
    running = start(Service(catalogue, engine, Limits(turn=0.0)), Address(port=0))
    asked = {"prompt": "1", "temperature": 1.5, "max_tokens": 300, "n": 30}
    admitted = raw(running, model="a", **asked)
    settle(lambda: bool(running.service.gate.inside))
    waiting = raw(running, model="b", prompt="1", max_tokens=2)
    settle(lambda: bool(running.service.gate.waiting))
    running.server.stop()
    assert running.service.draining
    for connection in (admitted, waiting):
        reply = b""
        while part := connection.recv(65536):
            reply += part
        assert reply.startswith(b"HTTP/1.1 200")
        assert b'"usage"' in reply
        connection.close()
    running.thread.join(20)
    assert not running.thread.is_alive()
    assert not engine.is_alive


# -- what is refused -------------------------------------------------------------------------------


class InProcess:
    """An application that is called without a network."""

    def __init__(self, service: Service, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.service = service
        self.app = make_app(service, **options)

    def __call__(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        given = {"host": "localhost", "content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return self.loop.run_until_complete(
            asyncio.wait_for(self._ask(method, path, body, given), 60)
        )

    async def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "server": ("localhost", 80), "client": ("127.0.0.1", 1),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()],
        }  # fmt: skip
        sent = False
        status, found, parts = 0, {}, b""

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, found, parts
            if message["type"] == "http.response.start":
                status = message["status"]
                found = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                parts += message.get("body", b"")

        await self.app(scope, receive, send)
        return status, found, parts

    def close(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()


@pytest.fixture(scope="module")
def app(catalogue: Catalogue) -> Iterator[InProcess]:
    limits = Limits(body=20_000, max_tokens=50)
    made = InProcess(Service(catalogue, TransformersEngine(LiveModel()), limits))
    yield made
    made.close()


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer, which is in OpenAI's form."""
    status, _, body = answer
    data = json.loads(body)
    assert list(data) == ["error"]
    assert set(data["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in data["error"]["message"]
    return status, data["error"]


TEXT = {"model": "a", "prompt": "1", "max_tokens": 2}
CHAT = {"model": "a", "messages": QUESTION, "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "change", "status", "message"),
    [
        ("completions", {"model": "nobody"}, 404, "there is no model 'nobody'"),
        ("completions", {"model": "sweep#w=7"}, 404, "outside the sweep's 0.1 to 0.9"),
        ("completions", {"model": 5}, 400, "model: "),
        ("completions", {"prompt": []}, 400, "prompt: is a text, a list of tokens"),
        ("completions", {"prompt": [[1], "x", 2]}, 400, "prompt: is a text"),
        ("completions", {"prompt": [5, 999]}, 400, "the model has no token 999"),
        ("completions", {"prompt": ""}, 400, "a: a prompt has no tokens"),
        ("completions", {"prompt": "", "model": "b"}, 400, "b: a prompt has no tokens"),
        ("completions", {"prompt": ["1"] * 129}, 400, "more than 128 completions"),
        ("completions", {"max_tokens": 0}, 400, "max_tokens: "),
        ("completions", {"max_tokens": 51}, 400, "at most 50 tokens"),
        ("completions", {"max_tokens": 200_000}, 400, "the model's context is 131,072 tokens"),
        ("completions", {"temperature": -1}, 400, "temperature: "),
        ("completions", {"temperature": "hot"}, 400, "temperature: "),
        ("completions", {"n": 129}, 400, "n: "),
        ("completions", {"best_of": 3}, 400, "best_of: must be n"),
        ("completions", {"echo": True}, 400, "echo: the server does not have this"),
        ("completions", {"stop": [""]}, 400, "stop"),
        ("completions", {"frequency_penalty": 1}, 400, "frequency_penalty: the server does not"),
        ("completions", {"temprature": 1}, 400, "did you mean 'temperature'?"),
        ("completions", {"stream_options": {}}, 400, "stream_options: needs stream"),
        ("chat/completions", {"messages": []}, 400, "messages: "),
        ("chat/completions", {"messages": [{"content": "1"}]}, 400, "role"),
        ("chat/completions", {"top_logprobs": 2}, 400, "top_logprobs: needs logprobs"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, 400, "response_format"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content.0: the server takes text only",
        ),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    app: InProcess, path: str, change: dict[str, Any], status: int, message: str
) -> None:
    good = TEXT if path == "completions" else CHAT
    found, error = problem(app("POST", f"/v1/{path}", json.dumps(good | change).encode()))
    assert found == status
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_00, "not valid JSON"),
        (b'{"model": "a", "prompt": "1", "temperature": NaN}', "NaN is no number"),
        (b'{"model": "a", "prompt": "\\ud800"}', "half of a surrogate pair"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_bodies_that_are_none(app: InProcess, body: bytes, message: str) -> None:
    status, error = problem(app("POST", "/v1/completions", body))
    assert status == 400
    assert message in error["message"]


def test_limits_and_forms(app: InProcess) -> None:
    body = json.dumps(TEXT).encode()
    large = json.dumps(TEXT | {"prompt": "1 " * 20_000}).encode()
    assert problem(app("POST", "/v1/completions", large))[0] == 413
    assert problem(app("POST", "/v1/completions", body, content_type="text/plain"))[0] == 415
    assert problem(app("GET", "/v1/completions"))[0] == 405
    assert problem(app("GET", "/v1/nothing"))[0] == 404
    assert app("POST", "/v1/completions", body)[0] == 200


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "model", "prompt", "messages", "stream", "stream_options", "temperature", "top_p", "n", "stop",
    "seed", "max_tokens", "logprobs", "top_logprobs", "tools", "tool_choice", "logit_bias", "user",
    "response_format", "echo", "best_of", "modalities",
]  # fmt: skip


@settings(max_examples=60)
@given(
    st.sampled_from(["completions", "chat/completions"]),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), JUNK, max_size=4),
    st.binary(max_size=3),
)
def test_nonsense_is_never_the_server_s_fault(
    app: InProcess, path: str, change: dict[str, Any], noise: bytes
) -> None:
    good = TEXT if path == "completions" else CHAT
    for body in (json.dumps(good | change).encode(), noise):
        status, _, _ = answer = app("POST", f"/v1/{path}", body)
        if status != 200:
            assert 400 <= status < 500
            problem(answer)


def test_a_failure_of_the_server_is_its_own(
    app: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Any, _model: Any) -> None:
        raise InputError("weights: cannot be read")

    app.loop.run_until_complete(app._ask("GET", "/health", b"", {}))
    monkeypatch.setattr(TransformersEngine, "_become", fail)
    status, error = problem(
        app("POST", "/v1/completions", json.dumps(TEXT | {"model": "b"}).encode())
    )
    assert (status, error["type"]) == (500, "server_error")
    assert error["message"] == "weights: cannot be read"
    monkeypatch.undo()
    assert app("POST", "/v1/completions", json.dumps(TEXT | {"model": "b"}).encode())[0] == 200


def test_a_full_queue_says_when_to_come_again(
    app: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.service.gate, "_most_waiting", 0)
    monkeypatch.setattr(app.service.gate._lanes[0], "current", None)
    status, headers, _ = answer = app("POST", "/v1/completions", json.dumps(TEXT).encode())
    assert status == 429
    assert int(headers["retry-after"]) > 0
    assert problem(answer)[1]["code"] == "queue_full"


def test_health_metrics_and_state(app: InProcess) -> None:
    assert app("POST", "/v1/completions", json.dumps(TEXT).encode())[0] == 200
    assert json.loads(app("GET", "/health")[2]) == {"status": "ok"}
    status, headers, body = app("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[:1] != "#")
    assert float(lines['merganser_requests_total{route="text",status="200"}']) > 0
    assert float(lines["merganser_swap_seconds_count"]) > 0
    assert float(lines["merganser_generated_tokens"]) > 0
    state = json.loads(app("GET", "/merganser")[2])
    assert state["current"]["id"] == "a"
    assert state["inside"] == state["waiting"] == {}


def test_keys_origins_and_names(catalogue: Catalogue) -> None:
    service = Service(catalogue, TransformersEngine(LiveModel()))
    app = InProcess(
        service, keys=["one", "two"], origins=["https://good.example"], hosts=["localhost"]
    )
    for path in ("/v1/models", "/metrics", "/merganser"):
        for wrong in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
            status, error = problem(app("GET", path, **wrong))
            assert (status, error["code"]) == (401, "invalid_api_key")
        assert app("GET", path, authorization="Bearer two")[0] == 200
    assert problem(app("POST", "/v1/completions", json.dumps(TEXT).encode()))[0] == 401
    assert not service.gate.swaps
    assert app("GET", "/health")[0] == 200
    key = {"authorization": "Bearer one"}
    assert app("GET", "/v1/models", host="localhost:8000", **key)[0] == 200
    assert problem(app("GET", "/v1/models", host="evil.example", **key))[0] == 421
    allowed = app("GET", "/v1/models", origin="https://good.example", **key)[1]
    assert allowed["access-control-allow-origin"] == "https://good.example"
    assert (
        "access-control-allow-origin"
        not in app("GET", "/v1/models", origin="https://evil.example", **key)[1]
    )
    preflight = {"access_control_request_method": "POST"}
    status, _headers, _ = app("OPTIONS", "/v1/models", origin="https://good.example", **preflight)
    assert status == 200
    assert app("OPTIONS", "/v1/models", origin="https://evil.example", **preflight)[0] == 400
    app.close()


def test_without_origins_no_page_may_read(app: InProcess) -> None:
    headers = app("GET", "/v1/models", origin="https://evil.example")[1]
    assert not [name for name in headers if name.startswith("access-control")]
