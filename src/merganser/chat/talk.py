"""Answers of models: folders, Hub ids, training runs, recipes and points of sweeps, merged in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from merganser.errors import RecipeError
from merganser.evaluation.generation import Completion, Message, Prompt, Sampling
from merganser.planning import Plan
from merganser.planning.model_argument import find
from merganser.study.live_model import Live, LiveModel
from merganser.study.served_model import ServedModel


@dataclass
class Voice:
    """A model that answers messages.

    Attributes:
        name: the model's short name.
        live: the live model.
        raw: whether it gets plain text, without its chat template.
        plan: the merge that the live model must hold; None for the one that it holds.
    """

    name: str
    live: Live
    raw: bool = False
    plan: Plan | None = None

    @property
    def chats(self) -> bool:
        """Whether messages go through its chat template."""
        return not self.raw and self.live.has_chat_template

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The prompt for messages: the messages for a chat template, else one plain text."""
        if self.chats:
            return messages
        return "\n\n".join(message["content"] for message in messages)

    def stream(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> Generator[str, None, Completion]:
        """Stream the model's answer."""
        if self.plan is not None:
            self.live.settle(self.plan)
        if isinstance(self.live, ServedModel):
            self.live.choose(self.name)
        return self.live.backend.stream(self.prompt(messages), sampling)


@dataclass
class Conversation:
    """A conversation with one model; each answer is appended, even an interrupted one."""

    voice: Voice
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Remove all messages except the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, text: str, sampling: Sampling) -> Generator[str, None, Completion]:
        """Send a message: a generator that yields the answer in parts, and returns it at the end."""
        self.messages.append({"role": "user", "content": text})
        parts: list[str] = []
        try:
            with closing(self.voice.stream(tuple(self.messages), sampling)) as answer:
                while True:
                    try:
                        part = next(answer)
                    except StopIteration as end:
                        completion: Completion = end.value
                        return completion
                    parts.append(part)
                    yield part
        finally:
            self.messages.append({"role": "assistant", "content": "".join(parts)})


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer.

    Attributes:
        model: the model as the caller named it.
        name: the short name.
        text: the answer, without special tokens.
        tokens: number of tokens.
        finish: why it ended: ``stop`` or ``length``.
    """

    model: str
    name: str
    text: str
    tokens: int
    finish: str


def generate(
    model: str,
    prompt: str,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    live: Live | None = None,
) -> Answer:
    """A model's answer to a prompt. Merges are made in memory, and nothing is written.

    Args:
        model: a model as in recipes, a recipe, or a point of a sweep (``SWEEP.yml#w=0.7``).
        prompt: the user's message.
        system: a system prompt; None for none.
        raw: give the model the prompt as plain text, without its chat template.
        max_tokens: length in tokens at which the answer is cut off.
        temperature: the temperature of sampling; at 0 the most likely token is always taken.
        top_p: sample from the fewest tokens that together have this probability.
        seed: the seed of sampling.
        live: the live model that becomes this model, so that several calls share its memory, device and
            dtype; None for a new one.

    Returns:
        The answer: its text, number of tokens, and why it ended.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    [answer] = ask([model], prompt, sampling, system=system, raw=raw, live=live)
    return answer


def ask(
    references: Sequence[str],
    text: str,
    sampling: Sampling,
    *,
    system: str | None = None,
    raw: bool = False,
    live: Live | None = None,
    on_text: Callable[[int, str], None] = lambda index, part: None,
    on_answer: Callable[[int, Answer], None] = lambda index, answer: None,
) -> list[Answer]:
    """The answers of several models, generated one after another in one live model.

    Args:
        references: the models; see :func:`find`.
        text: the prompt.
        sampling: the sampling settings.
        system: a system prompt.
        raw: pass the text unchanged, without a chat template.
        live: the live model; a new one if None.
        on_text: called with the model's index in ``references`` and each part of an answer.
        on_answer: called with the same index and each complete answer.

    Raises:
        MerganserError: one of its subclasses, by cause; all references are resolved before the first model answers.
    """
    stage = live or LiveModel()
    answers = []
    voices = [_find(reference, stage, raw) for reference in references]
    for index, (reference, voice) in enumerate(zip(references, voices, strict=True)):
        name = voice.name
        if voice.plan is not None:
            stage.become(voice.plan, report=False)
        messages = Conversation(voice, system).messages
        if system and not voice.chats:
            raise RecipeError(
                f"{name}: takes no system prompt, since it has no chat template or raw is set"
            )
        answer = voice.stream([*messages, {"role": "user", "content": text}], sampling)
        said = _heard(answer, partial(on_text, index))
        answers.append(Answer(reference, name, said.text, said.tokens, said.finish))
        on_answer(index, answers[-1])
    return answers


def _find(reference: str, live: Live, raw: bool) -> Voice:
    """The model that a reference names; of a server, the one that it calls so."""
    if isinstance(live, ServedModel):
        return Voice(reference, live, raw)
    name, plan = find(reference)
    return Voice(name, live, raw, plan)


def _heard(answer: Generator[str, None, Completion], tell: Callable[[str], None]) -> Completion:
    """Return the full answer, and report each part as it arrives."""
    while True:
        try:
            tell(next(answer))
        except StopIteration as end:
            said: Completion = end.value
            return said
        except BaseException:
            answer.close()
            raise


def conversations(
    references: Sequence[str],
    make: Callable[[], Live] = LiveModel,
    *,
    system: str | None = None,
    raw: bool = False,
) -> list[Conversation]:
    """One conversation per model.

    Transformers models all stay in memory; a vLLM engine loads each one when it answers.

    Args:
        references: the models; see :func:`find`.
        make: returns a live model.
        system, raw: as in :func:`ask`.

    Raises:
        MerganserError: one of its subclasses, by cause.
    """
    talks: list[Conversation] = []
    live: Live | None = None
    for reference in references:
        if live is None or isinstance(live, LiveModel):
            live = make()
        voice = _find(reference, live, raw)
        if voice.plan is not None:
            live.become(voice.plan, report=False)
        if system and not voice.chats:
            raise RecipeError(
                f"{voice.name}: takes no system prompt, since it has no chat template or raw is set"
            )
        talks.append(Conversation(voice, system))
    return talks
