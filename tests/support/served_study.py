"""A small study, its answers, and servers of it in threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch

from checkpoints_on_disk import make_model, shapes
from merganser.evaluation.engines import TransformersOptions
from merganser.evaluation.generation import Completion, Prompt, Request, Sampling
from merganser.planning import Plan
from merganser.serving.base_service import BaseService
from merganser.serving.server import Address, Server
from merganser.study.live_model import LiveModel

SWEEP = """
name: m_w{{ w }}
sweep: {w: {from: 0.1, to: 0.9, step: 0.1}}
merge_method: linear
models:
  - {model: ./a, parameters: {weight: "{{ 1 - w }}"}}
  - {model: ./b, parameters: {weight: "{{ w }}"}}
dtype: float32
"""

TEMPLATE = (
    "{% for tool in tools or [] %}?{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}={{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}+-{% endif %}"
)
"""In letters that are tokens here."""


def write_models(folder: Path) -> None:
    """Two models whose answers are long, and other ones at every point between them."""
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            tensor: 0.6 * torch.randn(shape, generator=generator)
            for tensor, shape in shapes(hidden=32).items()
        }
        model = make_model(folder / name, hidden=32, dtype=torch.float32, extra=tensors)
        (model / "chat_template.jinja").write_text(TEMPLATE)


class Alone:
    """Answers of one model at a time, in static batches of one: what every other way must give."""

    def __init__(self) -> None:
        self.live = LiveModel(options=TransformersOptions())

    def answers(
        self, plan: Plan, prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[Completion]:
        """Answers to several prompts, in one batch."""
        self.live.settle(plan)
        found = dict(self.live.backend([Request(prompt) for prompt in prompts], sampling))
        return [found[index] for index in range(len(prompts))]

    def answer(self, plan: Plan, prompt: Prompt, sampling: Sampling, sample: int = 0) -> Completion:
        self.live.settle(plan)
        [(_, completion)] = self.live.backend([Request(prompt, sample)], sampling)
        return completion


@dataclass
class Running:
    """A server in a thread."""

    url: str
    service: Any
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """Drain it."""
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def start(service: BaseService, address: Address, seconds: float = 20) -> Running:
    """Run a server in a thread, and wait until it listens."""
    ready = threading.Event()
    urls: list[str] = []

    def tell(url: str) -> None:
        urls.append(url)
        ready.set()

    server = Server(service, address, tell)
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    assert ready.wait(seconds)
    return Running(urls[0], service, server, thread)


async def completed(
    client: openai.AsyncOpenAI, asked: dict[str, Any], *, streamed: bool
) -> tuple[str, str | None]:
    """The text of a completion, whole or in parts, and the digest that made it."""
    if not streamed:
        found = await client.completions.create(**asked)
        return found.choices[0].text, found.system_fingerprint
    text, digest = "", None
    async for chunk in await client.completions.create(**asked, stream=True):
        text += chunk.choices[0].text
        digest = chunk.system_fingerprint
    return text, digest
