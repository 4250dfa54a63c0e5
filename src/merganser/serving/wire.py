"""Requests of OpenAI's API: the keys that are read, ignored and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from merganser import suggestions
from merganser.errors import MerganserError, one_line
from merganser.evaluation.generation import Message

MOST_CHOICES = 128
"""Maximum number of completions of one request."""

MOST_STOPS = 16

LARGEST = 2**63


class BadRequest(MerganserError):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        param: the request's key that is wrong; None if the error concerns no key.
        code: OpenAI's short name of the error; None if it has none.
        headers: headers of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def kind_of(status: int) -> str:
    """Return OpenAI's error type for an HTTP status."""
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Ignored = Annotated[Any, Field(exclude=True)]
"""A key that is accepted and has no effect."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Strict):
    """What a stream has besides text."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class _Common(_Strict):
    """The keys of both kinds of requests; None stands for the default."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] | None = (
        None
    )
    seed: Annotated[int, Field(ge=-LARGEST, lt=LARGEST)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=LARGEST)] | None = None
    # Keys of unsupported features, which accept only the value that turns the feature off.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Ignored = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Function(_Strict):
    """A function that a model may call."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=200)]


class Tool(_Strict):
    """A tool that a model may call."""

    type: Literal["function"]
    function: Function


class ResponseFormat(_Strict):
    """The form of an answer."""

    type: Literal["text"]


class ChatMessage(_Strict):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    role: Annotated[str, Field(min_length=1, max_length=50)]
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(_Common):
    """A request to ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=LARGEST)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Ignored = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    safety_identifier: Ignored = None

    @property
    def limit(self) -> int | None:
        """Maximum tokens of a completion."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """See :class:`merganser.serving.generation.Wanted`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompts(self) -> list[list[Message]]:
        """The conversation in the form that chat templates read."""
        return [[_message(i, message) for i, message in enumerate(self.messages)]]

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools in the form that chat templates read."""
        return [] if self.tool_choice == "none" else [t.model_dump() for t in self.tools or ()]


class CompletionRequest(_Common):
    """A request to ``/v1/completions``."""

    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @property
    def limit(self) -> int | None:
        """Maximum tokens of a completion; OpenAI's default is 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int | None:
        """See :class:`merganser.serving.generation.Wanted`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or as token ids.

        Raises:
            BadRequest: they are something else.
        """
        given = self.prompt
        listed = given if isinstance(given, list) and not _are_tokens(given) else [given]
        if len(listed) * (self.n or 1) > MOST_CHOICES:
            raise BadRequest(
                f"prompt: more than {MOST_CHOICES} completions in one request", param="prompt"
            )
        if not listed or not all(isinstance(each, str) or _are_tokens(each) for each in listed):
            raise BadRequest(
                "prompt: is a text, a list of tokens, or a list of those", param="prompt"
            )
        return listed

    @property
    def functions(self) -> list[dict[str, Any]]:
        """None: only conversations have tools."""
        return []


AnyRequest = ChatRequest | CompletionRequest


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body.

    Raises:
        BadRequest: the body is something else.
    """
    try:
        data = json.loads(body, parse_constant=_refuse)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise BadRequest("the body holds half of a surrogate pair, which is not text") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON ({str(error)[:100]})") from None
    if not isinstance(data, dict):
        raise BadRequest("the body is not a JSON object")
    return data


def parse(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """Return the request in a body.

    Raises:
        BadRequest: the body is not a valid request; the message names the first wrong key.
    """
    data = read_object(body)
    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        raise _invalid(error, kind) from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs: needs logprobs: true", param="top_logprobs")
    if isinstance(request, CompletionRequest) and request.best_of not in (None, request.n or 1):
        raise BadRequest("best_of: must be n; the server does not choose", param="best_of")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options: needs stream: true", param="stream_options")
    return request


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _invalid(error: ValidationError, kind: type[AnyRequest]) -> BadRequest:
    first = error.errors(include_url=False, include_context=False)[0]
    places = [str(part) for part in first["loc"]]
    # Pydantic lists the types of a union in the error's location.
    param = ".".join(p for p in places if p.isidentifier() or p.isdigit())[:200]
    reason = first["msg"]
    if first["type"] == "extra_forbidden" and len(places) == 1:
        slip = suggestions.nearest(places[0], kind.model_fields)
        reason = f"did you mean {slip!r}?" if slip else "the server does not have this parameter"
    elif places[0] in ("frequency_penalty", "presence_penalty", "logit_bias", "echo", "suffix"):
        reason = "the server does not have this; leave it out"
    return BadRequest(one_line(f"{param}: {reason}"), param=param)


def _message(index: int, message: ChatMessage) -> Message:
    """Return a message in the form that chat templates read: text content, calls' arguments as mappings.

    Raises:
        BadRequest: its content is not text.
    """
    place = f"messages.{index}"
    found: dict[str, Any] = {"role": message.role, "content": _text(message.content, place)}
    extra = message.model_extra or {}
    found |= {key: value for key, value in extra.items() if value is not None}
    if calls := found.get("tool_calls"):
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise BadRequest(f"{place}.tool_calls: is a list of calls", param=f"{place}.tool_calls")
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def _text(content: str | Sequence[Mapping[str, Any]] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            param = f"{place}.content.{number}"
            raise BadRequest(f"{param}: the server takes text only", param=param)
    return "".join(str(part["text"]) for part in content)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call, its arguments parsed if they are JSON."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


def _are_tokens(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < 2**31 for t in given)
    )
