"""Command lines for a page's requests: a page can do nothing that the command line cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from merganser.errors import RecipeError
from merganser.evaluation import scorer_registry
from merganser.recipe.document import parse_document
from merganser.studio import recipes
from merganser.studio.library import Library

MOST_POINTS = 500

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


@dataclass(frozen=True)
class Command:
    """A command line of Merganser.

    Attributes:
        title: a short description.
        words: the arguments, without the program.
        result: whether stdout is JSON for the page.
    """

    title: str
    words: Sequence[str]
    result: bool = False


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Merge(_Asked):
    """Write a blend: the recipe ``NAME.yml``, and the merged model in the folder ``NAME``."""

    kind: Literal["merge"]
    text: str
    name: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        recipes.read_plan(self.text, library)
        library.new(self.name)
        library.save(f"{self.name}.yml", self.text)
        return Command(f"write {self.name}", ["merge", f"{self.name}.yml", self.name])


class Sweep(_Asked):
    """Merge and score a blend's models at many weights."""

    kind: Literal["sweep"]
    text: str
    name: str
    step: float = Field(0.1, ge=0.01, le=0.5)
    low: float = Field(0.1, ge=-4, le=4)
    high: float = Field(0.9, ge=-4, le=4)
    problems: str
    scorers: list[str] = Field(min_length=1, max_length=16)
    samples: int = Field(1, ge=1, le=64)
    temperature: float = Field(0.0, ge=0, le=5)
    max_tokens: int = Field(256, ge=1, le=1_000_000)

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        recipes.read_plan(self.text, library)
        library.inside(self.problems)
        if unknown := next((s for s in self.scorers if s not in scorer_registry.names()), None):
            raise RecipeError(f"scorers: there is no {unknown[:60]!r}")
        if not 1 <= (self.high - self.low) / self.step + 1 <= MOST_POINTS:
            raise RecipeError(f"the sweep must have 1 to {MOST_POINTS} points")
        library.new(self.name)
        text = yaml.safe_dump(self._study(), sort_keys=False, allow_unicode=True, width=100)
        library.save(f"{self.name}.yml", text)
        return Command(f"sweep {self.name}", ["sweep", f"{self.name}.yml", self.name, "--no-write"])

    def _study(self) -> dict[str, Any]:
        data = parse_document(self.text).data
        models = data.get("models") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(models, list) or len(models) < 2:
            raise RecipeError("a sweep over weights needs a recipe with two or more models")
        names = [f"m{number}" for number in range(1, len(models) + 1)]
        if len(models) == 2:
            weights = ["{{ w }}", "{{ 1 - w }}"]
            axis: Mapping[str, Any] = {"from": self.low, "to": self.high, "step": self.step}
            point = "w{{ w }}"
        else:
            weights = [f"{{{{ w.{name} }}}}" for name in names]
            axis = {"simplex": names, "step": self.step}
            point = "_".join(f"{name}{{{{ w.{name} }}}}" for name in names)
        swept = [
            {**entry, "parameters": {**(entry.get("parameters") or {}), "weight": weight}}
            for entry, weight in zip(models, weights, strict=True)
        ]
        task = {
            "problems": self.problems,
            "samples": self.samples,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "scorers": list(self.scorers),
        }
        evaluate: dict[str, Any] = {"tasks": [task]}
        if isinstance(data.get("base_model"), str):
            evaluate = {"base": data["base_model"], **evaluate}
        rest = {key: value for key, value in data.items() if key not in ("name", "models")}
        return {"name": point, "sweep": {"w": dict(axis)}, **rest, "models": swept} | {
            "evaluate": evaluate
        }


class Again(_Asked):
    """Resume a stopped study."""

    kind: Literal["again"]
    name: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        library.inside(f"{self.name}.yml")
        return Command(
            f"sweep {self.name}", ["sweep", f"{_plain(self.name)}.yml", self.name, "--no-write"]
        )


class Differences(_Asked):
    """Compare two models, by layer and kind of tensor."""

    kind: Literal["diff"]
    first: str
    second: str
    base: str | None = None

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        chosen = [self.first, self.second, *([self.base] if self.base else [])]
        for model in chosen:
            recipes.read_model(model, library)
        words = ["diff", _plain(self.first), _plain(self.second)]
        if self.base:
            words += ["--base", _plain(self.base)]
        return Command(f"compare {self.first} with {self.second}", [*words, "--json"], result=True)


class Publish(_Asked):
    """List the files that publishing a folder would upload."""

    kind: Literal["publish"]
    folder: str
    repository: str
    private: bool = True
    public: bool = True

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        library.model(self.folder)
        if not _REPOSITORY.fullmatch(self.repository):
            raise RecipeError(f"{self.repository[:100]!r} is no ORG/NAME")
        words = ["push", _plain(self.folder), self.repository, "--dry-run"]
        words += ["--private"] * self.private + ["--public"] * self.public
        return Command(f"show what {self.folder} would publish", words)


Asked = Merge | Sweep | Again | Differences | Publish


def command_of(asked: Asked, library: Library) -> Command:
    """Return the command for a page's request, and write the recipe that it needs.

    Raises:
        MerganserError: an input is missing or wrong, or an output exists already.
    """
    return asked.command(library)


def _plain(path: str) -> str:
    """Return a path that cannot be mistaken for an option."""
    return f"./{path}" if path.startswith("-") else path
