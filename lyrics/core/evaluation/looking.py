"""Answer samples under conditions.

Each image is looked at once for all conditions that change its soft tokens alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from lyrics.core.answers import Answer
from lyrics.core.conditions import Condition
from lyrics.core.contracts import LimitsAnswers
from lyrics.core.errors import LyricsError, SpecError, UnknownNameError
from lyrics.core.evaluation.answering import BenchmarkRun, Shard, picture_of, put_down
from lyrics.core.evaluation.benchmark import MAX_NEW_TOKENS
from lyrics.core.evaluation.impairment import impaired
from lyrics.core.evaluation.partners import Partners, exchange
from lyrics.core.language.prompting import Encoded
from lyrics.core.language.prompts import Dialogue, Exchange
from lyrics.core.pictures.inputs import is_image, picture_list
from lyrics.core.resolve import declaring

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel


@dataclass(frozen=True)
class Conversation:
    """What is asked of one sample: images, the instruction that each is looked at with, and the dialogue.

    The dialogue counts the images from 0.

    ``entry`` is what the benchmark shows.
    """

    pictures: tuple[Any, ...]
    instructions: tuple[str, ...]
    dialogue: Dialogue
    entry: Any = None


def joined(conversations: Sequence[Conversation]) -> list[Dialogue]:
    """Their dialogues, with the images of all of them counted on."""
    found: list[Dialogue] = []
    before = 0
    for one in conversations:
        found.append(
            [
                replace(exchange, images=tuple(before + number for number in exchange.images))
                for exchange in one.dialogue
            ]
        )
        before += len(one.pictures)
    return found


@runtime_checkable
class LooksAndAnswers(Protocol):
    """What conditions need: a model that looks at images and answers apart from it.

    ``lyrics.LyricsModel`` is made one by ``Asking``.
    """

    def conversation(self, entry: Any, instruction: str) -> Conversation:
        """Return what is asked of a sample that shows ``entry`` (what ``generate`` takes for one instruction)."""
        ...

    def check(self, conditions: Iterable[Condition]) -> None:
        """Raise ``SpecError`` for a condition that cannot be met; warn of one that is met in part."""
        ...

    def look(self, pictures: Sequence[Any], instructions: Sequence[str], *, condition: Condition) -> Encoded: ...

    def answer_seen(
        self, conversations: Sequence[Conversation], encoded: Encoded, condition: Condition, *, max_new_tokens: int
    ) -> list[Answer]:
        """Answer conversations; ``encoded`` has the images of all of them, in order, under ``condition``."""
        ...


class Asking:
    """A model that is asked one question about what a sample shows."""

    def __init__(self, model: LyricsModel) -> None:
        self.model = model

    def conversation(self, entry: Any, instruction: str) -> Conversation:
        own = picture_list(entry)
        dialogue = (Exchange(instruction, None, tuple(range(len(own)))),)
        return Conversation(tuple(own), (instruction,) * len(own), dialogue, entry)

    def check(self, conditions: Iterable[Condition]) -> None:
        blurred = {expert for one in conditions if one.blur_px for expert in self._blurred(one)}
        stored = sorted(_reading_stored_objects(self.model) & {f"refiner.{one}" for one in blurred})
        if stored:
            warnings.warn(
                f"{', '.join(stored)}: reads stored objects and does not look at the image, so blur changes nothing "
                "for it.",
                stacklevel=2,
            )

    def _blurred(self, condition: Condition) -> list[str]:
        found = [expert for expert in self.model.experts if condition.blurs(expert)]
        if not found:
            raise SpecError(
                f"blur_parts={condition.blur_parts}: this model has no refiner, so no expert would see the blurred "
                "image; blur the encoder."
            )
        return found

    def look(self, pictures: Sequence[Any], instructions: Sequence[str], *, condition: Condition) -> Encoded:
        return self.model.look(pictures, instructions, condition=condition)

    def answer_seen(
        self, conversations: Sequence[Conversation], encoded: Encoded, condition: Condition, *, max_new_tokens: int
    ) -> list[Answer]:
        return self.model.answer(joined(conversations), encoded, max_new_tokens=max_new_tokens)


def _reading_stored_objects(model: LyricsModel) -> set[str]:
    try:
        return set(declaring(model.spec, "reads_known_objects"))
    except UnknownNameError:  # made of parts that are not installed as plugins; nothing is known of these
        return set()


def asking(model: Any) -> LooksAndAnswers:
    """The model as one that looks and answers apart. Raises ``LyricsError`` for one that does both in one call."""
    if isinstance(model, LooksAndAnswers):
        return model
    if not all(callable(getattr(model, name, None)) for name in ("look", "answer")):
        raise LyricsError(
            f"{type(model).__name__}: conditions need a model that looks and answers apart, as lyrics.LyricsModel "
            "does; leave them out."
        )
    return Asking(model)


@dataclass(frozen=True, eq=False)
class _Seen:
    conversation: Conversation
    encoded: Encoded


def exchanges(runs: Mapping[Condition, BenchmarkRun], model: LooksAndAnswers) -> dict[Condition, Partners]:
    """Who gets whose soft tokens, for each condition of one benchmark that exchanges them. Looks at nothing.

    Raises ``LyricsError`` where a sample has no partner.
    """
    return {one: _partners(run, model, one.seed) for one, run in runs.items() if one.soft == "shuffled"}


def answer_under(
    runs: Mapping[Condition, BenchmarkRun],
    partners: Mapping[Condition, Partners],
    model: LooksAndAnswers,
    *,
    batch: int = 8,
    shard: Shard = (0, 1),
    progress: Callable[[Condition, int, int], None] = lambda condition, done, total: None,
) -> None:
    """Answer what is missing of a process's share of one benchmark, under each condition.

    Args:
        runs: of the same samples.
        partners: of ``exchanges``.
        model: what answers.
        batch: samples that are answered together.
        shard: as for ``lyrics.core.evaluation.runner.evaluate``.
        progress: called with (condition, samples answered, samples of the share).

    Raises what ``lyrics.core.evaluation.answering.answer`` does.
    """
    by_look: dict[Condition, list[Condition]] = {}
    for condition in runs:
        by_look.setdefault(condition.look, []).append(condition)
    for look, conditions in by_look.items():
        _answer_looked(look, {one: runs[one] for one in conditions}, partners, model, batch, shard, progress)


def _answer_looked(
    look: Condition,
    runs: Mapping[Condition, BenchmarkRun],
    partners: Mapping[Condition, Partners],
    model: LooksAndAnswers,
    batch: int,
    shard: Shard,
    progress: Callable[[Condition, int, int], None],
) -> None:
    run = next(iter(runs.values()))
    total = len(range(shard[0], len(run.samples), shard[1]))
    missing = {one: set(each.missing(shard)) for one, each in runs.items()}
    done = {one: total - len(rows) for one, rows in missing.items()}
    for one in runs:
        progress(one, done[one], total)
    order: Iterable[int] = next((partners[one].order for one in runs if one in partners), range(len(run.samples)))
    rows = [row for row in order if any(row in each for each in missing.values())]
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    tokens = run.benchmark.max_new_tokens if isinstance(run.benchmark, LimitsAnswers) else MAX_NEW_TOKENS

    def needed(part: Sequence[int]) -> list[int]:
        """Return the rows of a part, and those whose soft tokens they get."""
        others = [
            partners[one].of[row]
            for one in runs
            if one in partners
            for row in part
            if row in missing[one] and row in partners[one].of
        ]
        return list(dict.fromkeys([*part, *others]))

    last = {row: number for number, part in enumerate(parts) for row in needed(part)}
    seen: dict[int, _Seen] = {}
    for number, part in enumerate(parts):
        new = [row for row in needed(part) if row not in seen]
        for start in range(0, len(new), batch):
            some = new[start : start + batch]
            asked = [
                model.conversation(picture_of(run.benchmark, run.samples[row]), run.prompts[run.ids[row]])
                for row in some
            ]
            seen |= zip(some, _looked(model, asked, look), strict=True)
        for condition, each in runs.items():
            own = [row for row in part if row in missing[condition]]
            if not own:
                continue
            encoded = _under(condition, own, seen, partners.get(condition))
            conversations = [seen[row].conversation for row in own]
            answers = model.answer_seen(conversations, encoded, condition, max_new_tokens=tokens)
            put_down(each, own, answers, shard)
            done[condition] += len(own)
            progress(condition, done[condition], total)
        seen = {row: one for row, one in seen.items() if last[row] > number}


def _looked(model: LooksAndAnswers, asked: Sequence[Conversation], look: Condition) -> Iterator[_Seen]:
    """All images of some samples in one look."""
    encoded = model.look(
        [picture for one in asked for picture in one.pictures],
        [instruction for one in asked for instruction in one.instructions],
        condition=look,
    )
    end = 0
    for one in asked:
        yield _Seen(one, encoded.rows(end, end + len(one.pictures)))
        end += len(one.pictures)


def _under(condition: Condition, rows: Sequence[int], seen: Mapping[int, _Seen], partners: Partners | None) -> Encoded:
    """Return the images of some rows, with the soft tokens that the condition gives them."""
    encoded = reduce(Encoded.followed_by, (seen[row].encoded for row in rows))
    keys = [(row, number) for row in rows for number in range(len(seen[row].conversation.pictures))]
    others_PQD = None
    if partners is not None:
        whose = [seen[partners.of.get(row, row)].encoded for row in rows]
        others_PQD = torch.cat([one.soft_tokens_PQD for one in whose])
    return impaired(encoded, condition, keys, others_PQD)


def _partners(run: BenchmarkRun, model: LooksAndAnswers, seed: int) -> Partners:
    """Who gets whose soft tokens, over all samples of a benchmark. Looks at nothing."""
    shows = [row for row, sample in enumerate(run.samples) if sample.image is not None]
    counts = [0] * len(run.samples)
    # One image each, as nearly all benchmarks have it, need not be opened to be counted.
    one_each = bool(shows) and is_image(picture_of(run.benchmark, run.samples[shows[0]]))
    for row in shows:
        counts[row] = 1
        if not one_each:
            entry = picture_of(run.benchmark, run.samples[row])
            counts[row] = len(model.conversation(entry, run.prompts[run.ids[row]]).pictures)
    return exchange(run.name, run.samples, counts, seed)
