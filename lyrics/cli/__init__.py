"""The command line: parse, call core, print. Exit code 0; 1 when the work failed; 2 when the command was called
wrongly.

Importing this package imports no torch; each command imports what it needs when it runs.
"""

from __future__ import annotations

import atexit
import gc
import sys
import warnings
from typing import Annotated

import typer

from lyrics import __version__
from lyrics.cli import (
    ablate,
    ask,
    bench,
    chat,
    check,
    conformance,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    export,
    parity,
    parts,
    quickstart,
    refine,
    report,
    serve,
    train,
)
from lyrics.core.clean_text import printable
from lyrics.core.errors import ImageError, LyricsError, PromptError, SpecError
from lyrics.core.renaming import FormerSettingWarning

app = typer.Typer(
    name="lyrics",
    help="A vision-language model that sees objects, as a library of swappable parts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"lyrics {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    # The docstring would take the place of the help above.
    pass


app.command("list", short_help="Components and presets, and which are ready.")(parts.list_parts)
app.command("show", short_help="The options of a component; a preset as YAML.")(parts.show)
app.command("check", short_help="Parts, shapes and parameters of a model, before building it.")(check.check)
app.command("doctor", short_help="What is broken or missing here, and why.")(doctor.doctor)
app.command("test-plugin", short_help="The conformance suite over a distribution.")(conformance.test_plugin)
app.command("refine", short_help="Tags, boxes and masks of images, as JSON, COCO and drawings.")(refine.refine)
app.command("report", short_help="One page of what refine found: counts, scores, samples.")(report.report)
app.command("ask", short_help="One answer about images, boxes in and out.")(ask.ask)
app.command("chat", short_help="A conversation about images.")(chat.chat)
app.command("serve", short_help="A model over HTTP, as OpenAI's clients ask, boxes in and out.")(serve.serve)
app.command("demo", short_help="A page: what a model sees, and what it answers.")(demo.demo)
app.command("convert", cls=convert.ConvertCommand, short_help="Public checkpoints to safetensors that parts read.")(
    convert.convert
)
app.command("pretrain", short_help="Stage 1: align with four losses.")(train.pretrain)
app.command("plan", short_help="Memory, samples and time of a training run, before it.")(train.plan)
app.command("finetune", short_help="Stage 2: instruction tuning.")(train.finetune)
app.command("export", short_help="A training run as a model folder.")(export.export)
app.command("evaluate", short_help="A model over benchmarks: predictions, scores, worst cases.")(evaluate.evaluate)
app.command("parity", short_help="The same answers in batches, bfloat16, 4 bits and every attention?")(parity.parity)
app.command("ablate", short_help="The paper's ablations: Tables 5 and 6, Figures 4a and 4b.")(ablate.ablate)
app.add_typer(bench.app, name="bench", short_help="Benchmarks: correctness first, then time.")
app.add_typer(data.app, name="data", short_help="Prepare, look at and check data sets.")
app.command("quickstart", short_help="Compose lyrics-tiny and run an image through it.")(quickstart.quickstart)


_shown: set[str] = set()


def _print_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """One line on standard error, once; where in our source a warning was raised is of no use to the person who can act
    on it.
    """
    meant = issubclass(category, UserWarning | FormerSettingWarning) and not issubclass(category, FutureWarning)
    if meant and str(message) not in _shown:
        _shown.add(str(message))
        print(printable(f"lyrics: warning: {message}"), file=sys.stderr)


def main() -> None:
    """Entry point of the ``lyrics`` command."""
    # Python looks through every object for garbage as it ends: a second, once torch is there.
    atexit.register(gc.freeze)
    _shown.clear()
    warnings.simplefilter("always", FormerSettingWarning)
    warnings.showwarning = _print_warning  # type: ignore[assignment]
    try:
        app()
    except LyricsError as error:
        print(printable(f"lyrics: {error}"), file=sys.stderr)
        # What the user wrote is wrong (2), or what was asked for could not be done (1).
        sys.exit(2 if isinstance(error, SpecError | ImageError | PromptError) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
