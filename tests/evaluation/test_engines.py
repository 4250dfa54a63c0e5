"""Engines: their options and versions, tensors that stream, and a server that has the models of a study."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import merganser
import peers
from merganser import engine
from merganser.chat import talk
from merganser.engine.stream import TensorStream
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.evaluation import engines
from merganser.evaluation.continuous import ContinuousInference
from merganser.evaluation.engines import EndpointOptions, TransformersOptions, VllmOptions
from merganser.evaluation.generation import Request, Sampling
from merganser.evaluation.vllm_feed import Feed, receive
from merganser.planning import make_plan
from merganser.sinks import StateDictSink, StreamSink
from merganser.study import evaluate
from merganser.study.live_model import LiveModel
from merganser.study.served_model import ServedModel
from merganser.tensors import FLOAT32, TensorSpec


def linear(folder: Path, weight: float = 0.3) -> dict[str, Any]:
    models = [
        {"model": str(folder / "a"), "parameters": {"weight": weight}},
        {"model": str(folder / "b"), "parameters": {"weight": 1 - weight}},
    ]
    return {"merge_method": "linear", "models": models, "dtype": "bfloat16"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        peers.make_model(tmp_path / name, seed=seed)
    return tmp_path


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "vllm",
            {"max_model_length": 8},
            "max_model_length: unknown; did you mean 'max_model_len'",
        ),
        ("vllm", {"colour": 8}, "colour: the vllm engine has tensor_parallel_size, "),
        ("vllm", {"tensor_parallel_size": 0}, "tensor_parallel_size: .*greater than or equal to 1"),
        ("transformers", {"batching": "dynamic"}, "batching: .*'static' or 'continuous'"),
        ("endpoint", {}, "url: the endpoint engine needs it"),
    ],
)
def test_options_that_an_engine_has_not(name: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=rf"engine_options\.{told}"):
        engines.read_options(name, given)


def test_options_of_the_file_count_for_its_own_engine_only() -> None:
    written = {"max_num_seqs": 8}
    assert engines.choose("vllm", written, None, {"max_model_len": 64}) == VllmOptions(
        max_num_seqs=8, max_model_len=64
    )
    assert engines.choose("vllm", written, "transformers") == TransformersOptions()
    assert engines.name_of(VllmOptions()) == "vllm"


def test_other_versions_of_vllm_are_refused_with_the_ones_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines.extras, "check", lambda _package, _extra: None)
    for version, works in (("0.32.1", True), ("0.33.0", False), ("0.3.2", False)):
        monkeypatch.setattr(engines, "vllm_version", lambda version=version: version)
        engines.check_installed(VllmOptions(unchecked=True))
        if works:
            engines.check_installed(VllmOptions())
            continue
        with pytest.raises(MerganserError, match=rf"vllm {version} .* 0\.32\.\*"):
            engines.check_installed(VllmOptions())


# -- tensors that stream ---------------------------------------------------------------------------


def test_a_stream_has_all_tensors_of_the_merge(models: Path) -> None:
    plan = make_plan(linear(models))
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    [wanted] = engine.run([plan], [sink])
    stream = TensorStream(plan)
    found = dict(stream)
    assert found.keys() == sink.tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in sink.tensors.items())
    assert stream.outcome is not None
    assert stream.outcome.report == wanted.report


def test_a_stream_that_is_left_stops_the_engine(models: Path) -> None:
    before = threading.active_count()
    tensors = iter(TensorStream(make_plan(linear(models)), threads=2))
    next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_stream_waits_for_who_takes_its_tensors() -> None:
    """No more than ``ahead`` bytes wait, and one tensor that is larger than that."""
    names = [f"t{number}" for number in range(6)]
    sink = StreamSink({name: TensorSpec(FLOAT32, (32,)) for name in names}, ahead=256)
    passed: list[str] = []

    def fill() -> None:
        for name in names:
            sink.write(name, 0, memoryview(bytes(128)))
            passed.append(name)
        sink.close()

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(0.3)
    assert passed == names[:2]
    taken = []
    while (each := sink.take()) is not None:
        taken.append(each[0])
    thread.join()
    assert taken == names


def test_an_input_that_breaks_is_raised_to_who_takes_the_tensors(models: Path) -> None:
    plan = make_plan(linear(models))
    with (models / "a" / "model.safetensors").open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(MerganserError, match=r"model\.safetensors"):
        dict(TensorStream(plan))


def test_a_feed_gives_every_worker_all_tensors() -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3).bfloat16(),
        "b": torch.empty(0, 4),
        "c": torch.tensor(3),
    }
    found: list[dict[str, torch.Tensor]] = [{}, {}]
    with Feed(tensors.items(), 2) as feed:
        workers = [
            threading.Thread(target=lambda own=own: own.update(receive(*feed.address)))  # type: ignore[misc]
            for own in found
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert feed.failure is None
    for own in found:
        assert list(own) == list(tensors)
        assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
        assert [each.dtype for each in own.values()] == [each.dtype for each in tensors.values()]


def test_a_feed_ends_where_its_tensors_or_its_workers_fail() -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(2)
        raise InputError("the disk is gone")

    with Feed(broken(), 1) as feed, pytest.raises(EOFError):
        dict(receive(*feed.address))
    assert isinstance(feed.failure, InputError)
    lonely = Feed([("a", torch.zeros(2))], 2)

    def wait() -> None:
        with suppress(RuntimeError), lonely:
            time.sleep(0.1)  # by then it waits for its workers
            raise RuntimeError("no worker came")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()
    assert lonely.failure is not None
    with pytest.raises(OSError, match=r"No such file|refused"):
        dict(receive(*lonely.address))


# -- continuous batches ----------------------------------------------------------------------------


def test_continuous_batches_say_what_static_ones_say(models: Path) -> None:
    """Also after the weights changed in place, and where they fall back to static ones."""
    live, other = LiveModel(), LiveModel(options=TransformersOptions(batching="continuous"))
    assert live.engine_name != other.engine_name
    requests = [Request("what is " + "1 + " * n + "1 =") for n in range(9)]
    for weight in (0.2, 0.9):
        plan = make_plan(linear(models, weight))
        for sampling in (Sampling(max_tokens=7), Sampling(1.0, 0.9, max_tokens=7)):
            found = dict(other.backend_of(plan)(requests, sampling))
            assert found == dict(live.backend_of(plan)(requests, sampling))
    assert isinstance(other.backend, ContinuousInference)


# -- a server --------------------------------------------------------------------------------------


@contextmanager
def serving(names: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A stand-in for a server that has models of some names, and says theirs."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(json.dumps({"data": [{"id": name} for name in names]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            usage = {"completion_tokens": 2}
            if not body.get("stream"):
                message = {"content": body["model"]}
                choice = {"message": message, "finish_reason": "stop"}
                self.answer(json.dumps({"choices": [choice], "usage": usage}))
                return
            parts: list[dict[str, Any]] = [
                {"choices": [{"delta": {"role": "assistant"}}]},
                {"choices": [{"delta": {"content": "I am "}}]},
                {"choices": [{"delta": {"content": body["model"]}, "finish_reason": "length"}]},
                {"choices": [], "usage": usage},
            ]
            events = [json.dumps(part) for part in parts] + ["[DONE]"]
            self.answer(": a comment\n" + "".join(f"data: {event}\n\n" for event in events))

        def answer(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def study(folder: Path, url: str) -> Path:
    (folder / "sums.jsonl").write_text('{"problem": "1 + 1 =", "answer": "2"}\n')
    data = {
        "name": "m_w{{ w }}",
        "sweep": {"w": [0.3, 0.7]},
        **linear(folder, 0.0),
        "evaluate": {
            "keep": "none",
            "tasks": [{"problems": "sums.jsonl", "scorers": ["exact"]}],
            "engine": "endpoint",
            "engine_options": {"url": url, "model": "s/{name}"},
        },
    }
    data["models"][0]["parameters"]["weight"] = "{{ w }}"
    data["models"][1]["parameters"]["weight"] = "{{ 1 - w }}"
    (folder / "study.yml").write_text(json.dumps(data))
    return folder / "study.yml"


def test_a_study_asks_a_server_for_each_model_by_its_name(models: Path) -> None:
    names = ["s/a", "s/b", "s/m_w0.3", "s/m_w0.7"]
    with serving(names) as (url, asked):
        found = evaluate.evaluate_sweep(study(models, url), models / "out")
        assert [body["model"] for body in asked] == names
        assert found.settings["engine"] == f"endpoint {url}"
        assert all(entry.effective for entry in found.points)
        evaluate.evaluate_sweep(models / "study.yml", models / "out")
        assert len(asked) == len(names)


def test_a_server_that_lacks_a_model_is_one_line_before_the_first_answer(models: Path) -> None:
    with serving(["s/a", "s/b"]) as (url, asked):
        with pytest.raises(
            InputError, match=r"has no model 's/m_w0\.3' \(2 of 4 .*it has s/a, s/b"
        ):
            evaluate.evaluate_sweep(study(models, url), models / "out")
        assert not asked


def test_a_server_answers_as_a_stream() -> None:
    with serving([]) as (url, asked):
        live = ServedModel(EndpointOptions(url=url))
        parts: list[str] = []
        [answer] = talk.ask(
            ["m"],
            "who?",
            Sampling(max_tokens=2),
            live=live,
            on_text=lambda _index, part: parts.append(part),
        )
    assert parts == ["", "I am ", "m"]
    assert (answer.text, answer.tokens, answer.finish) == ("I am m", 2, "length")
    assert asked[0]["messages"] == [{"role": "user", "content": "who?"}]


def test_a_search_has_no_server_to_ask(models: Path) -> None:
    file = study(models, "http://127.0.0.1:9/v1")
    data = json.loads(file.read_text())
    del data["sweep"], data["evaluate"]["keep"]
    data["search"] = {"over": {"w": [0.0, 1.0]}, "objectives": {"exact": "max"}, "budget": 2}
    file.write_text(json.dumps(data))
    with pytest.raises(RecipeError, match="a server cannot load; use engine: transformers or vllm"):
        merganser.search(file, models / "out")
