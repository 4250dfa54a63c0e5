"""The engines side by side: points by swapped weights and by folders, a swap's time and memory, batching.

    python bench/engines.py points DEMO         # nine points of the demo: vLLM by swap, and by folders
    python bench/engines.py swap A B            # two models: a swap beside reading both and copying one once
    python bench/engines.py uneven MODEL        # an eighth of the answers eight times as long

Run it in the environment of ``make test-vllm``; DEMO is a folder that ``make demo`` or ``make demo-vllm`` has
filled. Points are timed as complete processes, each way in processes of its own; the texts of greedy
answers are compared. ``uneven`` also runs without vLLM. One line of JSON for each result.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

WEIGHTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
EXPERTS = (
    "acc_MRL40_ROLLOUT8_LR2e-4/global_step_54/actor",
    "accfmt_MRL40_ROLLOUT8_LR2e-4/global_step_30/actor",
)
MOST = 40
"""Tokens of an answer of the demo."""


def blend(first: str, second: str, weight: float) -> dict[str, Any]:
    """A recipe of two models."""
    models = [
        {"model": first, "parameters": {"weight": weight}},
        {"model": second, "parameters": {"weight": 1 - weight}},
    ]
    return {"merge_method": "linear", "models": models, "dtype": "bfloat16"}


def point(demo: Path, weight: float) -> dict[str, Any]:
    """A point of the demo."""
    return blend(str(demo / EXPERTS[0]), str(demo / EXPERTS[1]), weight)


def requests(demo: Path) -> list[Any]:
    """The demo's held-out problems."""
    from merganser.evaluation.generation import Request

    lines = (demo / "held_out.jsonl").read_text().splitlines()
    return [Request([{"role": "user", "content": json.loads(line)["problem"]}]) for line in lines]


def by_engine(demo: Path, engine: str) -> dict[str, Any]:
    """Answers of nine points in one live model."""
    import merganser
    from merganser.evaluation.engines import read_options
    from merganser.evaluation.generation import Sampling
    from merganser.study.live import make_live

    asked = requests(demo)
    answers = []
    with closing(make_live(read_options(engine, {}), dtype="float32")) as live:  # type: ignore[arg-type]
        for weight in WEIGHTS:
            plan = merganser.plan(point(demo, weight))
            found = dict(live.backend_of(plan)(asked, Sampling(max_tokens=MOST)))
            answers.append([found[index].text for index in range(len(asked))])
    return {"answers": answers}


def by_folder(demo: Path, weight: float) -> dict[str, Any]:
    """Answers of one point that is written, and loaded by vLLM as anyone would."""
    import merganser
    from merganser.evaluation.vllm_backend import ENVIRONMENT

    os.environ.update(ENVIRONMENT)  # in one process here, too
    with tempfile.TemporaryDirectory() as home:
        merganser.merge(point(demo, weight), Path(home) / "m")
        import vllm

        engine = vllm.LLM(
            str(Path(home) / "m"),
            dtype="float32",
            max_model_len=2048,
            enforce_eager=True,
            kv_cache_memory_bytes=2**29,
        )
        found = engine.chat(
            [list(request.prompt) for request in requests(demo)],
            vllm.SamplingParams(temperature=0.0, max_tokens=MOST),
            use_tqdm=False,
        )
    return {"answers": [each.outputs[0].text for each in found]}


def swap(first: str, second: str, dtype: str) -> dict[str, Any]:
    """Seconds of swaps, of their floor, and memory that swaps take beyond the engine's own.

    Also of the two halves of a swap: the stream without an engine, and an engine that is given
    tensors which are there. Where the machine is busy, compare processor times.
    """
    import merganser
    from merganser.engine.stream import TensorStream
    from merganser.study.vllm_model import VllmModel

    plans = [merganser.plan(blend(first, second, weight)) for weight in (0.3, 0.6)]
    costs: dict[str, list[Cost]] = {"swap": [], "stream_alone": [], "engine_alone": [], "floor": []}
    with closing(VllmModel(dtype=dtype)) as live:  # type: ignore[arg-type]
        live._open(plans[0])
        live._start()
        before = anonymous()
        peaks = []
        for turn in range(6):
            with peak() as most:
                plan = plans[turn % 2]
                costs["swap"].append(cost(lambda: live.become(plan, report=False)))  # noqa: B023
            peaks.append(most[0])
        after = anonymous()
        running: Any = live._running
        for _ in range(3):
            there = list(TensorStream(plans[0], report=False))
            costs["engine_alone"].append(cost(lambda: running.load(iter(there))))  # noqa: B023
            there = []
    for _ in range(3):
        costs["stream_alone"].append(
            cost(lambda: deque(TensorStream(plans[0], report=False), 0)),
        )
        costs["floor"].append(cost(lambda: copy_once(first, second, dtype)))
    wall = {name: min(each.wall for each in found) for name, found in costs.items()}
    cpu = {name: min(each.cpu for each in found) for name, found in costs.items()}
    return {
        "s": {name: round(each, 3) for name, each in wall.items()},
        "cpu_s": {name: round(each, 3) for name, each in cpu.items()},
        "ratio": round(wall["swap"] / wall["floor"], 2),
        "ratio_cpu": round(cpu["swap"] / cpu["floor"], 2),
        "engine_mb": before // 10**6,
        "kept_mb": (after - before) // 10**6,
        "peaks_mb": [(each - before) // 10**6 for each in peaks],
    }


class Cost(NamedTuple):
    """Seconds of something, and of the processor, of all threads of this process."""

    wall: float
    cpu: float


def cost(work: Callable[[], object]) -> Cost:
    """What something costs."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - began, time.process_time() - used)


def copy_once(first: str, second: str, dtype: str) -> None:
    """Read both models' tensors, and copy one's once, as the engine's dtype."""
    import torch
    from safetensors import safe_open

    wide = getattr(torch, dtype)
    for folder in (second, first):
        for file in sorted(Path(folder).glob("*.safetensors")):
            buffer = bytearray(2**23)
            with file.open("rb") as stream:
                while stream.readinto(buffer):
                    pass
    for file in sorted(Path(first).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                tensor = tensors.get_tensor(name)
                torch.empty(tensor.shape, dtype=wide).copy_(tensor)


def uneven(model: str, count: int, short: int) -> dict[str, Any]:
    """Seconds of both batchings of transformers and of vLLM, where an eighth of the answers is long."""
    import merganser
    from merganser.evaluation.continuous import ContinuousInference
    from merganser.evaluation.generation import Request, Sampling
    from merganser.study.live_model import LiveModel
    from merganser.study.vllm_model import VllmModel

    plan = merganser.plan({"merge_method": "passthrough", "models": [{"model": model}]})
    lengths = [short * 8 if index % 8 == 0 else short for index in range(count)]
    asked = [Request(f"{index} + {index * 7} =") for index in range(count)]
    found: dict[str, Any] = {"answers": count, "tokens": sum(lengths)}
    live = LiveModel(dtype="float32")
    live.settle(plan)
    codec = live.backend.codec
    rows = codec.encode_all([request.prompt for request in asked])
    timed(found, "static", lambda: static(live.module, rows, lengths, codec))
    paged = ContinuousInference(live.module, codec)
    codec.end_tokens = []
    timed(found, "continuous", lambda: dict(paged.run(rows, lengths)))
    try:
        with closing(VllmModel(dtype="float32")) as other:
            other._open(plan)
            other._demand(asked, Sampling(max_tokens=short * 8))
            other.settle(plan)
            running: Any = other._running
            running.codec.end_tokens = []

            def run() -> None:
                by_length = {each: Sampling(max_tokens=each) for each in set(lengths)}
                params = running._params
                running._params = lambda row, request, _sampling, in_parts: params(
                    row, request, by_length[lengths[asked.index(request)]], in_parts
                )
                dict(running._run(rows, asked, by_length[short]))
                running._params = params

            timed(found, "vllm", run)
    except merganser.MerganserError as error:
        found["no_vllm"] = str(error)
    for other in ("continuous", "vllm"):
        for unit in ("s", "cpu_s"):
            if f"{other}_{unit}" in found:
                ratio = found[f"static_{unit}"] / found[f"{other}_{unit}"]
                found[f"static_of_{other}_{unit}"] = round(ratio, 2)
    return found


def static(model: Any, rows: list[list[int]], lengths: list[int], codec: Any) -> None:
    """One static batch, whose rows end where their lengths say."""
    import torch
    import transformers

    width, end = max(map(len, rows)), codec.end_tokens[0]
    ids = torch.full((len(rows), width), codec.padding)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    last = torch.tensor(lengths)

    def force(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, end] = float("-inf")
        done = last <= tokens.shape[1] - width + 1
        scores[done] = float("-inf")
        scores[done, end] = 0.0
        return scores

    config = transformers.GenerationConfig(
        max_new_tokens=max(lengths), eos_token_id=[end], pad_token_id=codec.padding
    )
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=transformers.LogitsProcessorList([force]),
        )


def timed(found: dict[str, Any], key: str, work: Callable[[], object]) -> None:
    """The better of two runs' seconds, and of the processor."""
    costs = [cost(work) for _ in range(2)]
    found[f"{key}_s"] = round(min(each.wall for each in costs), 2)
    found[f"{key}_cpu_s"] = round(min(each.cpu for each in costs), 2)


def anonymous() -> int:
    """Bytes of memory of this process that no file lies behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most of :func:`anonymous` while it is open."""
    import threading

    most, stop = [anonymous()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        stop.set()
        watcher.join()


def run_alone(*words: str) -> tuple[Cost, dict[str, Any]]:
    """What a process of this script costs, and what it found."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        began, used = time.perf_counter(), children_seconds()
        subprocess.run(
            [sys.executable, __file__, *words, "--into", file.name],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        spent = Cost(time.perf_counter() - began, children_seconds() - used)
        return spent, json.loads(Path(file.name).read_text())


def children_seconds() -> float:
    """Processor seconds of the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare_points(demo: Path, folders: int) -> dict[str, Any]:
    """Nine points by swap, some or all of them by folders, with the answers that differ.

    The ratio is that of nine times a mean folder.
    """
    swapped, ours = run_alone("by-engine", str(demo), "vllm")
    costs, answers, differ = [], 0, 0
    for index in range(0, len(WEIGHTS), -(-len(WEIGHTS) // folders)):
        own = ours["answers"][index]
        spent, fresh = run_alone("by-folder", str(demo), str(WEIGHTS[index]))
        costs.append(spent)
        answers += len(own)
        differ += count_differing(own, fresh["answers"])
    wall, cpu = (sum(each) / len(costs) for each in zip(*costs, strict=True))
    return {
        "points": len(WEIGHTS),
        "swap_s": round(swapped.wall, 1),
        "swap_cpu_s": round(swapped.cpu, 1),
        "folders": len(costs),
        "a_folder_s": round(wall, 1),
        "a_folder_cpu_s": round(cpu, 1),
        "ratio": round(len(WEIGHTS) * wall / swapped.wall, 1),
        "ratio_cpu": round(len(WEIGHTS) * cpu / swapped.cpu, 1),
        "answers_compared": answers,
        "differ": differ,
    }


def count_differing(some: list[str], others: list[str]) -> int:
    """How many of two models' answers differ."""
    return sum(one != other for one, other in zip(some, others, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The engines side by side.")
    parser.add_argument(
        "what", choices=["points", "swap", "uneven", "by-engine", "by-folder"], help="see above"
    )
    parser.add_argument("words", nargs="+")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folders", type=int, default=len(WEIGHTS))
    parser.add_argument("--answers", type=int, default=96)
    parser.add_argument("--short", type=int, default=20)
    parser.add_argument("--into", type=Path)
    given = parser.parse_args()
    words = given.words
    if given.what == "points":
        found = compare_points(Path(words[0]).resolve(), given.folders)
    elif given.what == "swap":
        found = swap(words[0], words[1], given.dtype)
    elif given.what == "uneven":
        found = uneven(words[0], given.answers, given.short)
    elif given.what == "by-engine":
        found = by_engine(Path(words[0]), words[1])
    else:
        found = by_folder(Path(words[0]), float(words[1]))
    if given.into is not None:
        given.into.write_text(json.dumps(found))
    else:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
