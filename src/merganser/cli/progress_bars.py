"""The bar of a merge, and the lines of scored models and of candidates of a search."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from merganser import number_format
from merganser.cli.score_table import score_text

if TYPE_CHECKING:
    from merganser.engine.events import Event
    from merganser.study.progress import Judging, Scored, Scoring, Sharing, Turn, Waiting
    from merganser.study.search_loop import Standing
    from merganser.study.search_space import Search


LINE_SECONDS = 5.0
"""Seconds between lines when stderr is not a terminal."""


BAR_WIDTH = 80
"""Characters of a merge's bar without the tensor's name."""


class ProgressBar:
    """The progress of a merge on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = (
            Progress(
                TextColumn("merging"),
                BarColumn(),
                TaskProgressColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[tensor]}"),
                console=self.console,
                transient=True,
            )
            if self.console.is_terminal
            else None
        )
        self.task: Any = None
        self.total = 0
        self.began = self.written = time.monotonic()

    def listen(self, event: Event) -> None:
        """Show an event of the engine."""
        from merganser.engine.events import Finished, Merged, Started

        if isinstance(event, Started):
            self.total = event.total_bytes
            self.began = self.written = time.monotonic()
            if self.progress is not None:
                if self.task is not None:  # of the merge before this one
                    self.progress.remove_task(self.task)
                self.progress.start()
                self.task = self.progress.add_task("merge", total=event.total_bytes, tensor="")
        elif isinstance(event, Merged):
            if self.progress is not None:
                room = self.console.width - BAR_WIDTH
                tensor = escape(event.tensor[-room:]) if room > 0 else ""
                self.progress.update(self.task, completed=event.done_bytes, tensor=tensor)
            elif time.monotonic() - self.written > LINE_SECONDS:
                self._line(event.done_bytes)
        elif isinstance(event, Finished):
            self.stop()

    def _line(self, done: int) -> None:
        self.written = time.monotonic()
        rate = done / (self.written - self.began)
        left = (self.total - done) / rate if rate else 0.0
        self.console.print(
            f"merging: {done / max(self.total, 1):.0%}, {number_format.size(rate)}/s, {left:.0f} s left",
            highlight=False,
        )

    def stop(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()


class ScoringLines:
    """The progress of a study on stderr: a line for the current model, and one for each model's scores.

    On a terminal the current model's line is rewritten; elsewhere a new line is printed now and then.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.status: Any = None
        self.turn: Turn | None = None
        self.last = ""
        self.began = self.written = time.monotonic()
        self.first = 0

    def listen(self, event: Scoring | Judging | Scored | Waiting | Sharing) -> None:
        """Show an event of a study."""
        from merganser.study.progress import Scored, Scoring, Sharing, Waiting

        if isinstance(event, Waiting):
            line = f"{_turn(event.turn)}: waiting for another process, which scores it"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            return
        turn = self.turn if isinstance(event, Sharing) else event.turn
        if turn != self.turn:
            self.turn = turn
            self.began = self.written = time.monotonic()
            self.first = event.tokens if isinstance(event, Scoring) else 0
        if isinstance(event, Scored):
            self.console.print(_scored_line(event), highlight=False, soft_wrap=True)
        elif self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status("")
                self.status.start()
            self.status.update(Text(self._line(event), no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self.written > LINE_SECONDS:
            line = self._line(event)
            if line != self.last:  # many workers may make no progress for a while
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.written, self.last = time.monotonic(), line

    def _line(self, event: Scoring | Judging | Sharing) -> str:
        """The current model's line: name, progress, speed, and the time left for all models."""
        from merganser.study.progress import Judging, Sharing

        if isinstance(event, Sharing):
            return (
                f"{event.scored} of {event.models} models scored, {event.workers} workers at work: "
                f"{event.done:,} of {event.total:,} completions"
            )
        if isinstance(event, Judging):
            return (
                f"{_turn(event.turn)}: {event.scorer} of {event.done} of {event.total} completions"
            )
        parts = [f"{_turn(event.turn)}: {event.done} of {event.total} completions"]
        tokens, seconds = event.tokens - self.first, time.monotonic() - self.began
        if tokens and seconds:
            rate = tokens / seconds
            parts.append(f"{rate:,.0f} tokens/s")
            if event.generated:
                others = event.turn.models - event.turn.number
                missing = event.total - event.done + others * event.total
                left = missing * (event.tokens / event.generated) / rate
                parts.append(f"about {number_format.duration(left)} left")
        return ", ".join(parts)

    def stop(self) -> None:
        """Remove the line."""
        if self.status is not None:
            self.status.stop()


def _turn(turn: Turn) -> str:
    return f"model {turn.number} of {turn.models}, {turn.model}"


def _scored_line(event: Scored) -> str:
    """The line with a model's scores, and the number of its reused completions."""
    scores = ", ".join(f"{name} {score_text(score)}" for name, score in event.scores.items())
    reused = event.completions - event.generated
    reuse = f", {reused} of them reused" if 0 < reused < event.completions else ""
    reuse = ", all of them reused" if reused == event.completions > 0 else reuse
    count = f" ({event.completions} completions{reuse})" if event.completions else ""
    by = f" by {event.worker}" if event.worker else ""
    return escape(f"{_turn(event.turn)}{by}: {scores}{count}")


def search_line(standing: Standing, search: Search) -> str:
    """The line of a scored candidate: number, scores, best so far, values, time left."""
    from merganser.recipe.sweep_file import values_text

    trial = standing.trial
    scores = ", ".join(f"{name} {score_text(trial.scores.get(name))}" for name in search.objectives)
    scores = f"no scores ({trial.invalid})" if trial.invalid else scores
    if not standing.best:
        best = "none keeps to the constraints yet"
    elif len(search.objectives) > 1:
        best = f"{len(standing.best)} on the front"
    else:
        first = standing.best[0]
        [score] = search.objectives
        best = f"best {score_text(first.scores[score])} ({first.candidate.name})"
    left = (
        f"; about {number_format.duration(standing.seconds_left)} left"
        if standing.seconds_left
        else ""
    )
    values = values_text(trial.candidate.values)
    by = f" by {standing.worker}" if standing.worker else ""
    which = f"candidate {trial.candidate.number} of {standing.budget}{by} ({values})"
    return f"{which}: {scores}; {best}{left}"
