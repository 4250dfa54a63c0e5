"""Live models for merges that a server serves by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from merganser import engine
from merganser.errors import InputError, MerganserError
from merganser.evaluation.endpoint import Endpoint
from merganser.evaluation.engines import EndpointOptions
from merganser.evaluation.generation import Completion, Request, Sampling
from merganser.planning import Plan
from merganser.sinks import NullSink
from merganser.study.live_model import Live, Subject


class ServedModel(Live):
    """A server that serves each model of a study under a name.

    Args:
        options: the endpoint's options.
        token: sent as a bearer token; None for none.
        threads: threads of the merge engine, which measures effective weights.
    """

    def __init__(
        self, options: EndpointOptions, *, token: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__(options, "server", "auto", threads)
        self.options = options
        self._token = token
        self._backend: Endpoint | None = None

    @property
    def backend(self) -> Endpoint:
        """See :class:`merganser.study.live_model.Live`."""
        if self._backend is None:
            raise MerganserError("choose a served model first")
        return self._backend

    @property
    def has_chat_template(self) -> bool:
        """True: the server applies the template."""
        return True

    def choose(self, name: str) -> Endpoint:
        """Return the backend for the study's model ``name``."""
        self._backend = Endpoint(
            self.options.url,
            self._name_of(name),
            token=self._token,
            concurrency=self.options.concurrency,
            timeout=self.options.timeout,
        )
        return self._backend

    def check(self, names: Sequence[str]) -> None:
        """Check that the server has all models of a study.

        Raises:
            InputError: the server lacks a model, or cannot be reached.
        """
        there = self.choose("").models()
        if lacking := [served for name in names if (served := self._name_of(name)) not in there]:
            known = ", ".join(there[:5]) + (" …" if len(there) > 5 else "")
            raise InputError(
                f"{self.options.url}: has no model {lacking[0]!r} ({len(lacking)} of {len(names)} "
                f"are missing); it has {known}"
            )

    def _name_of(self, name: str) -> str:
        return self.options.model.replace("{name}", name)

    def become(self, plan: Plan, *, report: bool = True) -> engine.Outcome:
        """Measure effective weights; the server already has the model.

        See :class:`merganser.study.live_model.Live`.
        """
        [outcome] = engine.run([plan], [NullSink()], threads=self._threads, report=report)
        self.plan = plan
        return outcome

    def _complete(
        self, subject: Subject, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        self.choose(subject.name)
        if subject.on_outcome is None:  # the server has the model, and no measurement is requested
            return self.backend(requests, sampling, subject.on_tokens)
        return super()._complete(subject, requests, sampling)

    def key(self, plan: Plan, name: str = "") -> dict[str, str]:
        """See :class:`merganser.study.live_model.Live`."""
        return super().key(plan, name) | {"the model at the endpoint": self._name_of(name)}
