"""Commands that let models answer: generate, chat."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from merganser.cli.options import device_options, engine_choice, json_option, methods_option
from merganser.cli.output import print_json
from merganser.errors import RecipeError

if TYPE_CHECKING:
    from merganser.chat.talk import Answer, Conversation
    from merganser.cli.answers import AnswerColumns
    from merganser.evaluation.generation import Completion, Sampling
    from merganser.study.live_model import Live

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(command: Command) -> Command:
    """Add the options that both commands have."""
    for option in reversed(
        [
            click.option(
                "--with",
                "others",
                multiple=True,
                metavar="MODEL",
                help="A further model that answers too.",
            ),
            click.option(
                "--max-tokens",
                type=click.IntRange(1),
                default=512,
                show_default=True,
                help="Length in tokens at which an answer is cut off.",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(0),
                default=0.0,
                show_default=True,
                help="Sampling temperature; 0 always takes the most likely token.",
            ),
            click.option(
                "--top-p",
                type=click.FloatRange(0, 1, min_open=True),
                default=1.0,
                show_default=True,
                help="Sample from the fewest tokens that together have this probability.",
            ),
            click.option(
                "--seed", type=int, default=0, show_default=True, help="Seed of sampling."
            ),
            click.option("--system", metavar="TEXT", help="A system prompt."),
            click.option("--raw", is_flag=True, help="Plain text, without the chat template."),
            device_options,
            engine_choice,
            methods_option,
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.argument("prompt")
@_options
@json_option
def generate(model: str, prompt: str, as_json: bool, **options: Any) -> None:
    """Let MODEL answer PROMPT (- reads it from stdin).

    MODEL is a folder, a Hub id, a training run, a recipe.yml, or a point of a sweep: SWEEP.yml#w=0.7 or
    SWEEP.yml#NAME. Merges are blended in memory; nothing is written.

    \b
    Examples:
      merganser generate OUT "What is 12 + 30?"
      merganser generate sweep.yml#w=0.7 "What is 12 + 30?" --with runs/acc
    """
    from merganser.chat import talk as talking
    from merganser.cli.answers import AnswerColumns

    gc.enable()
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise RecipeError("the prompt is empty")
    models = [model, *options["others"]]
    sampling = _sampling(options)
    with AnswerColumns(models, silent=as_json) as columns:
        answers = talking.ask(
            models,
            text,
            sampling,
            system=options["system"],
            raw=options["raw"],
            live=_make_live(options),
            on_text=columns.add,
            on_answer=lambda index, answer: _mark_cut_off(columns, index, answer, sampling),
        )
    if as_json:
        print_json({"prompt": text, "answers": [asdict(answer) for answer in answers]})


@click.command()
@click.argument("model")
@_options
def chat(model: str, **options: Any) -> None:
    """Talk with MODEL.

    MODEL is a folder, a Hub id, a training run, a recipe.yml, or a point of a sweep, as for generate.
    /reset starts a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer.

    \b
    Examples:
      merganser chat OUT
      merganser chat sweep.yml#w=0.7 --with sweep.yml#w=0.3
    """
    from merganser.chat import talk as talking
    from merganser.cli.answers import AnswerColumns

    gc.enable()
    models = [model, *options["others"]]
    talks = talking.conversations(
        models,
        lambda: _make_live(options),
        system=options["system"],
        raw=options["raw"],
    )
    sampling = _sampling(options)
    names = ", ".join(talk.voice.name for talk in talks)
    click.echo(
        f"talking with {names}; /reset starts a new conversation, /quit or Ctrl-D ends, "
        "Ctrl-C stops an answer",
        err=True,
    )
    while (text := _said()) is not None:
        if text == "/quit":
            break
        if text == "/reset":
            for talk in talks:
                talk.reset()
        elif text.startswith("/"):
            click.echo("there are /reset and /quit", err=True)
        elif text:
            with AnswerColumns(models) as columns:
                _answer_all(talks, text, sampling, columns)


def _make_live(options: dict[str, Any]) -> Live:
    from merganser.evaluation import engines
    from merganser.study.live import make_live

    engine = engines.choose("transformers", {}, options["engine"], options["engine_options"])
    engines.check_installed(engine)
    return make_live(engine, device=options["device"], dtype=options["dtype"])


def _answer_all(
    talks: Sequence[Conversation], text: str, sampling: Sampling, columns: AnswerColumns
) -> None:
    """Let the models answer in turn; Ctrl-C stops the current answer and skips the rest."""
    for index, talk in enumerate(talks):
        try:
            with closing(talk.answer(text, sampling)) as answer:
                while True:
                    try:
                        columns.add(index, next(answer))
                    except StopIteration as end:
                        _mark_cut_off(columns, index, end.value, sampling)
                        break
        except KeyboardInterrupt:
            columns.add(index, " …")
            return


def _mark_cut_off(
    columns: AnswerColumns, index: int, answer: Answer | Completion, sampling: Sampling
) -> None:
    if answer.finish == "length":
        is_full = answer.tokens < sampling.max_tokens
        why = "the model's context is full" if is_full else "--max-tokens N allows more"
        columns.mark(index, f"cut off after {answer.tokens} tokens; {why}")


def _said() -> str | None:
    """The next line that the user types; None at the end of the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 — lines can be edited, and come back
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _sampling(options: dict[str, Any]) -> Any:
    from merganser.evaluation.generation import Sampling

    return Sampling(
        temperature=options["temperature"],
        top_p=options["top_p"],
        max_tokens=options["max_tokens"],
        seed=options["seed"],
    )
