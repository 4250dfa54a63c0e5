"""Completions by a server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from merganser.errors import InputError, RecipeError
from merganser.evaluation.generation import (
    Completion,
    OnTokens,
    Prompt,
    Request,
    Sampling,
    ignore_tokens,
)

Result = TypeVar("Result")

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP status codes after which a request is repeated."""


class EndpointTimeout(InputError):
    """A server exceeded the time limit of a request."""


class Endpoint:
    """A backend: a model on a server.

    Conversations go to ``/chat/completions``, plain texts to ``/completions``. The seed of each
    request combines the task's seed and the sample's number; whether sampling is then repeatable
    depends on the server.

    Args:
        url: the URL of the API, such as ``http://127.0.0.1:8000/v1``.
        model: the model's name on the server.
        token: the bearer token to send; None to send none.
        concurrency: number of simultaneous requests.
        timeout: time limit in seconds for one request.
        retries: maximum number of repetitions of a request if the server is busy or unreachable.
        pause: seconds before the first repetition, doubled for each further one; the server's
            ``Retry-After`` takes precedence.
        allow_reasoning: accept answers whose reasoning the server has moved to a separate field.

    Raises:
        RecipeError: when ``url`` is not an HTTP address.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: str | None = None,
        concurrency: int = 16,
        timeout: float = 3600.0,
        retries: int = 5,
        pause: float = 1.0,
        allow_reasoning: bool = False,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RecipeError(
                f"{url}: not the address of a server; write it like http://127.0.0.1:8000/v1"
            )
        self.url = url.rstrip("/")
        self.model = model
        self.token = token
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        self.allow_reasoning = allow_reasoning

    def __call__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_tokens: OnTokens = ignore_tokens,
    ) -> Iterator[tuple[int, Completion]]:
        """See :data:`merganser.evaluation.generation.Backend`.

        Raises:
            InputError: when the server refuses, is not reached, or answers something else.
        """
        with ThreadPoolExecutor(self.concurrency) as crew:
            waiting = {
                crew.submit(self.complete, request, sampling): i
                for i, request in enumerate(requests)
            }
            try:
                for done in as_completed(waiting):
                    completion = done.result()
                    on_tokens(completion.tokens)
                    yield waiting[done], completion
            except BaseException:
                crew.shutdown(cancel_futures=True)
                raise

    def models(self) -> list[str]:
        """The names of the models on the server.

        Raises:
            InputError: when the server refuses, is not reached, or answers something else.
        """
        reply = self._ask("/models", None, _read_json)
        try:
            return [str(each["id"]) for each in reply["data"]]
        except (KeyError, TypeError) as error:
            raise self._strange(error) from None

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """See :class:`merganser.evaluation.generation.StreamingBackend`.

        Raises:
            InputError: when the server refuses, is not reached, or answers something else.
        """
        path, body = self._request(Request(prompt), sampling)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text, tokens, finish = "", 0, "stop"
        with self._ask(path, body, lambda reply: reply) as lines:
            for line in lines:
                name, _, data = line.decode("utf-8", "replace").partition(":")
                if name != "data" or data.strip() == "[DONE]":
                    continue
                try:
                    event = json.loads(data)
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event.get("choices", []):
                        part = choice.get("text", choice.get("delta", {}).get("content")) or ""
                        finish = choice.get("finish_reason") or finish
                        text += part
                        yield part
                except (ValueError, TypeError, AttributeError) as error:
                    raise self._strange(error) from None
        return Completion(text, tokens, "length" if finish == "length" else "stop")

    def complete(self, request: Request, sampling: Sampling) -> Completion:
        """Return one completion.

        Raises:
            EndpointTimeout: when the server exceeds ``timeout``.
            InputError: when the server refuses, is not reached, or answers something else.
        """
        return self._read(self._ask(*self._request(request, sampling), _read_json))

    def _request(self, request: Request, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request."""
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": _seed(sampling.seed, request.sample),
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if isinstance(request.prompt, str):
            return "/completions", body | {"prompt": request.prompt}
        messages = [dict(message) for message in request.prompt]
        return "/chat/completions", body | {"messages": messages}

    def _read(self, reply: Any) -> Completion:
        try:
            choice = reply["choices"][0]
            message = choice.get("message", {})
            reasoning = message.get("reasoning_content") or message.get("reasoning")
            if reasoning and not self.allow_reasoning:
                raise InputError(
                    f"{self.url}: removes the reasoning from answers, which are scored with it; "
                    "start it without a reasoning parser"
                )
            text = message["content"] if "message" in choice else choice["text"]
            tokens = reply["usage"]["completion_tokens"]
            finish = choice["finish_reason"]
            if not isinstance(tokens, int) or not isinstance(text, str | None):
                raise TypeError("other types")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._strange(error) from None
        return Completion(text or "", tokens, "length" if finish == "length" else "stop")

    def _strange(self, error: Exception) -> InputError:
        return InputError(
            f"{self.url}: does not answer in the form of OpenAI's API ({error!r:.80})"
        )

    def _ask(
        self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Result]
    ) -> Result:
        """Send a request, POST if it has a body, else GET; return the result of ``read`` on the reply."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            wait = self.pause * 2**attempt
            try:
                asked = urllib.request.Request(self.url + path, data, headers)
                return read(urllib.request.urlopen(asked, timeout=self.timeout))
            except urllib.error.HTTPError as error:
                with error:
                    reply = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
                    problem = f"says {error.code}: {reply}"
                    after = error.headers.get("Retry-After", "")
                if error.code not in BUSY:
                    break
                wait = float(after) if after.isdigit() else wait
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, TimeoutError) and cause.errno is None:  # ``timeout`` ran out
                    raise EndpointTimeout(
                        f"{self.url}{path}: took longer than {self.timeout:g} s"
                    ) from None
                problem = f"cannot be reached ({str(cause)[:120]})"
            except ValueError:
                problem = "answers something that is not JSON"
            if attempt < self.retries:
                time.sleep(min(wait, 60.0))
        raise InputError(f"{self.url}{path}: {problem}")


def _read_json(reply: Any) -> Any:
    with reply:
        return json.load(reply)


def _seed(seed: int, sample: int) -> int:
    digest = hashlib.sha256(f"{seed} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
