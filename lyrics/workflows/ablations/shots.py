"""Table 6: in-context learning from 0, 1 and 4 exemplars.

They stand before the question as a conversation with their images.

The paper says "naive random sample to construct the few-shot exemplars" and "averaged scores for five different seeds"
(section 5.6). Here they are drawn from the benchmark's other samples of the same task that have another image, as a
function of the seed and the sample's row; the first exemplar of four is the one of one. An exemplar is asked as the
benchmark asks, and answered as training answers (``lyrics.core.data.conversation``).

Where they do not fit into the language model's context, the first are left out until the rest fits with all that the
refiner saw. ``exemplars.jsonl`` says for every row which exemplars were drawn and which of them were left out.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lyrics.core.answers import Answer
from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.contracts import Benchmark, LimitsAnswers
from lyrics.core.data.conversation import converse
from lyrics.core.data.draws import generator
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation import predictions
from lyrics.core.evaluation.answering import answer, open_run, picture_of
from lyrics.core.evaluation.benchmark import MAX_NEW_TOKENS
from lyrics.core.evaluation.looking import Asking, Conversation, joined
from lyrics.core.evaluation.report import write_report
from lyrics.core.evaluation.runner import Result, score, write
from lyrics.core.json_reading import parse_json, read_text
from lyrics.core.language.prompting import fitted_prompt
from lyrics.core.language.prompts import Exchange
from lyrics.core.types import Sample
from lyrics.workflows.ablations.runs import Evaluating
from lyrics.workflows.ablations.tables import Ablation, Published, ScoreRow, rows_of

if TYPE_CHECKING:
    from lyrics.core.geometry import Size
    from lyrics.core.language.prompting import Encoded
    from lyrics.core.model import LyricsModel

SHOTS = (0, 1, 4)
SEEDS = 5
DRAWN = "exemplars.jsonl"
_ROW = "few_shot_row"

PUBLISHED: Published = MappingProxyType(
    {
        (benchmark, split, f"{shots}-shot"): value
        for benchmark, split, values in (
            ("vqav2", "", (81.2, 85.2, 86.1)),
            ("refcocog", "test", (88.26, 91.39, 91.36)),
        )
        for shots, value in zip(SHOTS, values, strict=True)
    }
)


# --- drawing -------------------------------------------------------------------------------------------------------


class Pool:
    """Every sample of a benchmark, to draw exemplars from.

    Args:
        samples: in the benchmark's order.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._rows: dict[str, list[int]] = {}
        for row, sample in enumerate(samples):
            self._rows.setdefault(_task(sample), []).append(row)
        self._shared = Counter((_task(sample), sample.image) for sample in samples)

    def draw(self, row: int, shots: int, seed: int) -> list[int]:
        """Return rows of ``shots`` different exemplars for the sample of a row.

        Raises ``LyricsError`` where there are not so many.
        """
        own = self.samples[row]
        rows = self._rows[_task(own)]
        others = len(rows) - (1 if own.image is None else self._shared[_task(own), own.image])
        if others < shots:
            raise LyricsError(
                f"{own.source}: only {others} other samples of the task {_task(own)!r} have another image, too few "
                f"for {shots} exemplars."
            )
        random = generator(seed, "few-shot exemplars", row)
        found: list[int] = []
        while len(found) < shots:
            drawn = rows[int(random.integers(len(rows)))]
            same_picture = own.image is not None and self.samples[drawn].image == own.image
            if drawn != row and drawn not in found and not same_picture:
                found.append(drawn)
        return found


def _task(sample: Sample) -> str:
    return str(sample.extra.get("task", ""))


def reference(sample: Sample, row: int, seed: int, codec: str, size: Size | None) -> str:
    """Return the right answer as it is trained; of several captions one, as the seed has it.

    Raises ``LyricsError`` for a sample without one.
    """
    # Without the other objects no template asks whether the expression is in a box, which is answered by yes or no.
    turns = converse(replace(sample, objects=sample.objects[:1]), seed=seed, position=row, codec=codec, size=size)
    if not turns or not turns[0].answer:
        raise LyricsError(f"{sample.source}: has no reference answer here, so it cannot be an exemplar.")
    return turns[0].answer


# --- asking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exemplar:
    """A sample with its row, its image and what is asked of it."""

    row: int
    sample: Sample
    picture: Any
    instruction: str


@dataclass(frozen=True)
class ShownWithExemplars:
    """What stands in the place of an image: the image of a row, after those of its exemplars."""

    row: int
    picture: Any
    exemplars: tuple[Exemplar, ...]


class FewShotBenchmark:
    """A benchmark whose ``picture`` is a ``ShownWithExemplars``, for ``FewShot`` to answer; samples carry their row.

    It scores nothing.
    """

    def __init__(self, benchmark: Benchmark, pool: Pool, shots: int, seed: int) -> None:
        self.benchmark, self.pool, self.shots, self.seed = benchmark, pool, shots, seed
        self.max_new_tokens = benchmark.max_new_tokens if isinstance(benchmark, LimitsAnswers) else MAX_NEW_TOKENS

    def samples(self) -> Iterator[Sample]:
        for row, sample in enumerate(self.pool.samples):
            # A text-only sample is asked through its image's place, too.
            yield replace(sample, image=sample.image or "", extra={**sample.extra, _ROW: row})

    def prompt(self, sample: Sample) -> str:
        return self.benchmark.prompt(self.pool.samples[sample.extra[_ROW]])

    def picture(self, sample: Sample) -> ShownWithExemplars:
        row: int = sample.extra[_ROW]
        exemplars = tuple(self._exemplar(drawn) for drawn in self.pool.draw(row, self.shots, self.seed))
        return ShownWithExemplars(row, picture_of(self.benchmark, self.pool.samples[row]), exemplars)

    def _exemplar(self, row: int) -> Exemplar:
        sample = self.pool.samples[row]
        return Exemplar(row, sample, picture_of(self.benchmark, sample), self.benchmark.prompt(sample))

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.benchmark.score(predictions, samples)


class FewShot(Asking):
    """Answers with a model after exemplars, and writes down which.

    Args:
        model: answers.
        seed: of the references' draws.
        drawn: file that a line is added to for every row.
    """

    def __init__(self, model: LyricsModel, seed: int, drawn: Path) -> None:
        super().__init__(model)
        self.seed, self.drawn = seed, drawn

    def generate(
        self, pictures: Sequence[ShownWithExemplars], instructions: Sequence[str], *, max_new_tokens: int
    ) -> list[Answer]:
        asked = [self.conversation(entry, text) for entry, text in zip(pictures, instructions, strict=True)]
        shown = [picture for one in asked for picture in one.pictures]
        encoded = self.model.look(shown, [text for one in asked for text in one.instructions])
        return self.answer_seen(asked, encoded, CLEAR, max_new_tokens=max_new_tokens)

    def conversation(self, entry: ShownWithExemplars, instruction: str) -> Conversation:
        """Return the exemplars, each with its image and its answer, and the question."""
        shown: list[Any] = []
        asked: list[str] = []

        def exchange(picture: Any, instruction: str, answer: str | None) -> Exchange:
            own = () if picture is None else (len(shown),)
            if own:
                shown.append(picture)
                asked.append(instruction)
            return Exchange(instruction, answer, own)

        before = [exchange(one.picture, one.instruction, self._reference(one)) for one in entry.exemplars]
        dialogue = [*before, exchange(entry.picture, instruction, None)]
        return Conversation(tuple(shown), tuple(asked), dialogue, entry)

    def answer_seen(
        self, conversations: Sequence[Conversation], encoded: Encoded, condition: Condition, *, max_new_tokens: int
    ) -> list[Answer]:
        """Return answers; without a condition it is written down which exemplars they had."""
        room = int(self.model.language_model.max_positions) - max_new_tokens
        dialogues = joined(conversations)
        fitting = [self.fitting(dialogue, encoded, room) for dialogue in dialogues]
        answers = self.model.answer(fitting, encoded, max_new_tokens=max_new_tokens)
        lines = []
        for one, fitted in zip(conversations, fitting, strict=True):
            rows = [exemplar.row for exemplar in one.entry.exemplars]
            left_out = rows[: len(one.dialogue) - len(fitted)]
            lines.append(json.dumps({"row": one.entry.row, "exemplars": rows, "dropped": left_out}))
        if condition.changes_nothing:
            # Before the predictions are written, so that every prediction has its line.
            predictions.append(self.drawn, lines)
        return answers

    def _reference(self, one: Exemplar) -> str:
        from lyrics.core.pictures.images import open_image

        size = None if one.picture is None else open_image(one.picture).size
        return reference(one.sample, one.row, self.seed, self.model.spec.codec, size)

    def fitting(self, dialogue: Sequence[Exchange], encoded: Encoded, room: int) -> list[Exchange]:
        """Return the conversation without the first exemplars, as few as must be.

        Then it has ``room`` with all that the refiner saw.
        """
        model = self.model
        kept = list(dialogue)
        while len(kept) > 1:
            if len(fitted_prompt(kept, encoded, sys.maxsize, model.spec, model.language_model)) <= room:
                break
            del kept[0]
        return kept


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropped:
    """Exemplars that did not fit into the context, of those that were drawn."""

    benchmark: str
    shots: int
    dropped: int
    drawn: int


def few_shot(
    load: Callable[[], LyricsModel], described: str, evaluating: Evaluating, out: Path, seeds: int = SEEDS
) -> tuple[list[ScoreRow], list[Dropped]]:
    """Return rows of a trained model for every number of shots and every seed, and what did not fit.

    Arguments as for ``architecture.answered``. Nothing is drawn for 0 shots, so these have one row.
    """
    pools = {name: Pool(tuple(one.samples())) for name, one in evaluating.benchmarks.items()}
    rows: list[ScoreRow] = []
    left_out: list[Dropped] = []
    models: list[LyricsModel] = []

    def model() -> LyricsModel:
        if not models:
            models.append(load())
        return models[0]

    for shots in SHOTS:
        if not shots:
            results = evaluating(model, out / "0-shot", described)
            rows += rows_of("0-shot", None, None, results)
            continue
        counts: dict[str, list[int]] = {name: [0, 0] for name in pools}
        for seed in range(seeds):
            folder = out / f"{shots}-shot" / f"seed-{seed}"
            about = f"{described}, {shots} exemplars, seed {seed}"
            for name, pool in pools.items():
                result, dropped, drawn = _one(model, evaluating, name, pool, shots, seed, folder, about)
                rows += rows_of(f"{shots}-shot", None, seed, [result])
                counts[name][0] += dropped
                counts[name][1] += drawn
            write_report(folder)
        left_out += [Dropped(name, shots, *counts[name]) for name in pools]
    return rows, left_out


def _one(
    model: Callable[[], LyricsModel],
    evaluating: Evaluating,
    name: str,
    pool: Pool,
    shots: int,
    seed: int,
    out: Path,
    described: str,
) -> tuple[Result, int, int]:
    """Return the result of one benchmark, and how many exemplars were left out of how many."""
    benchmark = evaluating.benchmarks[name]
    about = {**evaluating.about.get(name, {}), "model": described}
    asking = FewShotBenchmark(benchmark, pool, shots, seed)
    run = open_run(name, asking, out, limit=evaluating.limit, about=about)
    if run.missing():
        with evaluating.bars() as progress:
            few = FewShot(model(), seed, run.folder / DRAWN)
            title = f"{name}, {shots} shots, seed {seed}"
            answer(
                run,
                few,
                batch=evaluating.batch,
                progress=lambda done, total: progress(title, done, total),  # type: ignore[arg-type]
            )
    scored = replace(run, benchmark=benchmark, samples=tuple(pool.samples[: len(run.samples)]))
    result, verdict = score(scored)
    write(scored, result, verdict)
    dropped, drawn = _dropped(run.folder, len(run.samples), shots)
    return result, dropped, drawn


def _dropped(folder: Path, samples: int, shots: int) -> tuple[int, int]:
    """(left out, drawn) of the first ``samples`` rows."""
    path = folder / DRAWN
    by_row: dict[int, int] = {}
    try:
        for text in read_text(path).splitlines():
            line = parse_json(text)
            by_row[int(line["row"])] = len(line["dropped"])
    except (ValueError, KeyError, TypeError) as error:
        raise LyricsError(f"{path}: cannot be read: {error}. Remove {folder} to answer again.") from None
    missing = [row for row in range(samples) if row not in by_row]
    if missing:
        raise LyricsError(
            f"{path}: does not say which exemplars {len(missing)} answers had, the first of row {missing[0]}. Remove "
            f"{folder} to go on."
        )
    return sum(by_row[row] for row in range(samples)), shots * samples


def table_6(
    rows: Sequence[ScoreRow],
    left_out: Sequence[Dropped],
    facts: Mapping[str, str],
    about: Mapping[str, Mapping[str, str]],
) -> Ablation:
    """Return what is written."""
    notes = [
        f"{one.benchmark}, {one.shots}-shot: {one.dropped:,} of {one.drawn:,} exemplars did not fit into the context "
        "and were left out."
        for one in left_out
    ]
    notes.append("Exemplars are other samples of the benchmark, of the same task and with another image.")
    return Ablation(
        "table-6",
        "Table 6: in-context learning",
        rows,
        facts,
        notes,
        PUBLISHED,
        about,
        {f"{shots}-shot": float(shots) for shots in SHOTS},
        "shots",
    )
