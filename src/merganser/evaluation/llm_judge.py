"""The scorer ``judge``: a language model behind an endpoint."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from merganser.errors import RecipeError
from merganser.evaluation.endpoint import Endpoint, EndpointTimeout
from merganser.evaluation.generation import Message, Request, Sampling
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.scorer_calls import judge_in_threads
from merganser.evaluation.scorer_registry import Judgement, scorer

CODE = 1
"""Version of the prompts and the parsing of replies; scores stored under another version are not reused."""

PROMPTS: Mapping[str, str] = {
    "number": (
        "Judge how well an answer solves a problem.\n\nProblem:\n{problem}\n\nReference answer:\n{answer}\n\n"
        "Answer to judge:\n{completion}\n\nGive a score from {low} (worst) to {high} (best). Explain it "
        "briefly, then end with a line of the form 'Score: N'."
    ),
    "verdict": (
        "Decide whether an answer solves a problem.\n\nProblem:\n{problem}\n\nReference answer:\n{answer}\n\n"
        "Answer to judge:\n{completion}\n\nExplain briefly, then end with the line 'Verdict: yes' or "
        "'Verdict: no'."
    ),
}
"""Default prompts of the judge, by ``parse``."""

_NUMBER = r"(-?\d+(?:\.\d+)?)"

_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "number": (
        rf"\[\[\s*{_NUMBER}\s*\]\]",
        rf"(?:score|rating)[\s*_]*(?::|=|\bis\b)[\s*_]*{_NUMBER}",
        rf"\A\s*{_NUMBER}\s*\Z",
    ),
    "verdict": (
        r"\[\[\s*(yes|no)\s*\]\]",
        r"verdict[\s*_]*(?::|=|\bis\b)[\s*_]*(yes|no)\b",
        r"\A\s*(yes|no)[\s.]*\Z",
    ),
}
"""Patterns of the number or verdict in a reply, the first one preferred; its last match counts."""

UNPARSABLE = "no score in the reply"

_PLACES = re.compile(r"\{(problem|answer|completion|low|high)\}")


def _identify(parameters: Mapping[str, Any], _beside: Path | None) -> Mapping[str, Any]:
    given = dict(parameters)
    Endpoint(given["url"], given["model"])
    low, high = given["scale"]
    if not low < high:
        raise RecipeError("scale: the worst score comes first, then the best: [1, 10]")
    prompt = given["prompt"] or PROMPTS[given["parse"]]
    if "{completion}" not in prompt:
        raise RecipeError("prompt: write {completion} where the answer to judge belongs")
    if given["pattern"] is not None:
        try:
            groups = re.compile(given["pattern"]).groups
        except re.error as error:
            raise RecipeError(f"pattern: no regular expression ({error})") from None
        if groups != 1:
            raise RecipeError("pattern: one group is wanted, around the number or the verdict")
    deciding = ("url", "model", "system", "parse", "pattern", "temperature", "max_tokens", "seed")
    return {
        **{name: given[name] for name in deciding},
        "scale": [low, high],
        "prompt": prompt,
        "prompt_digest": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        "code": CODE,
    }


@scorer("judge", batch=True, streams=True, identify=_identify)
def judge(
    samples: Sequence[Sample],
    problems: Sequence[Problem],
    *,
    url: str,
    model: str,
    prompt: str | None = None,
    system: str | None = None,
    parse: Literal["number", "verdict"] = "number",
    pattern: str | None = None,
    scale: tuple[float, float] = (1.0, 10.0),
    temperature: float = 0.0,
    max_tokens: int = 1024,
    seed: int = 0,
    concurrency: int = 16,
    timeout: float = 600.0,
) -> Iterator[tuple[int, Judgement]]:
    """The number or verdict in a language model's reply about a completion.

    The judge receives one request per completion. With ``parse="number"`` the score is a number within
    ``scale``: in ``[[7]]``, after ``Score:``, or alone in the reply. With ``parse="verdict"`` the score is
    1 for yes and 0 for no: in ``[[yes]]``, after ``Verdict:``, or alone. A sample has no score if the
    reply contains neither, if the number is outside the scale, or if the request exceeds ``timeout``.
    The environment variable ``OPENAI_API_KEY``, if set, is sent as the bearer token.

    Args:
        samples: completions.
        problems: their problems.
        url: the URL of an API with OpenAI's protocol, such as ``http://127.0.0.1:8000/v1``.
        model: the judge's name on the server.
        prompt: the prompt's template; it must contain ``{completion}``, and may contain ``{problem}``,
            ``{answer}``, ``{low}`` and ``{high}``. None for a template of :data:`PROMPTS`.
        system: a system prompt, or None.
        parse: the kind of score in a reply, ``number`` or ``verdict``.
        pattern: a regular expression with one group for the number or verdict; its last match counts.
        scale: the worst and the best number.
        temperature: sampling temperature; 0 for greedy decoding.
        max_tokens: maximum number of tokens of a reply.
        seed: seed of a sampled reply.
        concurrency: number of simultaneous requests.
        timeout: time limit in seconds per request.

    Yields:
        The index of a sample and its judgement, in any order.
    """
    endpoint = Endpoint(
        url,
        model,
        token=os.environ.get("OPENAI_API_KEY"),
        timeout=timeout,
        retries=2,
        allow_reasoning=True,
    )
    sampling = Sampling(temperature, max_tokens=max_tokens, seed=seed)
    template = prompt or PROMPTS[parse]

    def ask(place: int) -> Judgement:
        asked = _filled(template, samples[place], problems[place], scale)
        messages: list[Message] = [{"role": "user", "content": asked}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            reply = endpoint.complete(Request(messages), sampling).text
        except EndpointTimeout:
            return Judgement(None, f"the judge took longer than {timeout:g} s", transient=True)
        return _read(reply, parse, pattern, scale)

    yield from judge_in_threads(ask, len(samples), concurrency)


def _filled(template: str, sample: Sample, problem: Problem, scale: tuple[float, float]) -> str:
    """The judge's prompt for one sample; placeholders that occur in the inserted texts are not replaced."""
    question = problem.question or problem.messages[-1]["content"]
    texts = {
        "problem": question,
        "answer": problem.answer or "(none)",
        "completion": sample.completion,
        "low": f"{scale[0]:g}",
        "high": f"{scale[1]:g}",
    }
    return _PLACES.sub(lambda match: texts[match[1]], template)


def _read(
    reply: str, parse: Literal["number", "verdict"], pattern: str | None, scale: tuple[float, float]
) -> Judgement:
    """The judgement in a reply; without a score if the reply cannot be parsed."""
    for form in (pattern,) if pattern is not None else _PATTERNS[parse]:
        flags = re.NOFLAG if pattern is not None else re.IGNORECASE
        matches = re.findall(form, reply, flags)
        if not matches:
            continue
        word = str(matches[-1]).strip()
        if parse == "verdict":
            value = {"yes": 1.0, "no": 0.0}.get(word.lower())
            return Judgement(value, "" if value is not None else UNPARSABLE, reply)
        try:
            number = float(word)
        except ValueError:
            break
        if scale[0] <= number <= scale[1]:
            return Judgement(number, "", reply)
        return Judgement(None, f"a score outside of {scale[0]:g} to {scale[1]:g}", reply)
    return Judgement(None, UNPARSABLE, reply)
