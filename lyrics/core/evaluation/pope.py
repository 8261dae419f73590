"""POPE: does a model say that things are there which are not? (Li et al., 2023, arXiv 2305.10355, section 5.)

Of each image as many things that are there are asked about as things that are not. What is not there is drawn in one
of three ways:

- ``random``: any tag of the data set;
- ``popular``: the tags that most of the data set's images have;
- ``adversarial``: the tags that most often are in an image together with those that this image has (the sum over
  its tags of the number of images with both).

The positives of an image are the same in all three. Draws depend on the seed and the image's row alone; of equally
frequent tags the first in alphabetical order is taken. "Not there" means "not annotated": where annotations leave
things out, a true yes counts as wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lyrics.core.contracts import Dataset
from lyrics.core.data.draws import generator
from lyrics.core.data.templates import IF_FOUND, fill
from lyrics.core.errors import DatasetError
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.evaluation.metrics.yes_no import yes_no_scores, yes_or_no
from lyrics.core.evaluation.pointing import Real, evidence_scores, plain_name
from lyrics.core.evaluation.prompts import PROMPTS
from lyrics.core.types import Sample, Turn

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Negatives = Literal["random", "popular", "adversarial"]
#: POPE asks about three things that are there and three that are not, of 500 images.
PER_PICTURE, PICTURES = 3, 500


@dataclass(frozen=True)
class Frequencies:
    """In how many images each tag is, and each two of them; ``by_tag`` names tags in descending frequency."""

    tags: Counter[str]
    pairs: Mapping[str, Counter[str]]

    @cached_property
    def by_tag(self) -> tuple[str, ...]:
        return tuple(sorted(self.tags, key=lambda tag: (-self.tags[tag], tag)))

    @classmethod
    def of(cls, pictures: Sequence[frozenset[str]]) -> Frequencies:
        tags: Counter[str] = Counter()
        pairs: dict[str, Counter[str]] = {}
        for present in pictures:
            tags.update(present)
            for tag in present:
                pairs.setdefault(tag, Counter()).update(present - {tag})
        return cls(tags, pairs)


def tags_of(sample: Sample) -> frozenset[str]:
    """Return the names of a sample's objects, in lower case."""
    return frozenset(name for one in sample.objects if (name := plain_name(one.tag)))


def absent_tags(
    present: frozenset[str], frequencies: Frequencies, negatives: Negatives, count: int, seed: int, row: int
) -> list[str]:
    """``count`` tags that are not among those present, or fewer where there are not so many."""
    others = [tag for tag in frequencies.by_tag if tag not in present]
    if negatives == "random":
        return drawn(sorted(others), count, seed, "POPE: absent", row)
    if negatives == "adversarial":
        together: Counter[str] = Counter()
        for tag in present:
            together.update(frequencies.pairs.get(tag, {}))
        others.sort(key=lambda tag: (-together[tag], tag))
    return others[:count]


def drawn(tags: Sequence[str], count: int, seed: int, purpose: str, row: int) -> list[str]:
    """``count`` different tags at random, a function of (seed, purpose, row) and the tags."""
    order = generator(seed, purpose, row).permutation(len(tags))[:count]
    return [tags[int(index)] for index in order]


@dataclass(frozen=True)
class Probe:
    """Which questions are asked of a data set; see the module's text.

    Args:
        data: keeps the ``dataset`` contract; its samples have objects.
        negatives: how what is not there is drawn.
        pictures: how many are asked about, the first that have ``per_picture`` different tags at least.
        per_picture: questions about things that are there, and as many about things that are not.
        counted: images that frequencies are counted over, the first of the data set; None for all.
        seed: of the draws.
    """

    data: Dataset
    negatives: Negatives
    pictures: int = PICTURES
    per_picture: int = PER_PICTURE
    counted: int | None = None
    seed: int = 0

    @cached_property
    def frequencies(self) -> Frequencies:
        rows = len(self.data) if self.counted is None else min(self.counted, len(self.data))
        return Frequencies.of([tags_of(self.data[row]) for row in range(rows)])

    def questions(self) -> Iterator[tuple[Sample, str, bool]]:
        """(sample, tag, is it there?), a thing that is there and one that is not in turn.

        Raises ``DatasetError`` if there are none.
        """
        asked = 0
        for row in range(len(self.data)):
            if asked == self.pictures:
                return
            sample = self.data[row]
            present = tags_of(sample)
            absent = absent_tags(present, self.frequencies, self.negatives, self.per_picture, self.seed, row)
            if sample.image is None or len(present) < self.per_picture or len(absent) < self.per_picture:
                continue
            asked += 1
            there = drawn(sorted(present), self.per_picture, self.seed, "POPE: present", row)
            for yes, no in zip(there, absent, strict=True):
                yield sample, yes, True
                yield sample, no, False
        if not asked:
            raise DatasetError(
                f"POPE: no image of the data set has {self.per_picture} differently named objects, with "
                f"{self.per_picture} more names to ask about in the others; take a split with annotated objects, or a "
                "smaller per_picture."
            )


def with_article(tag: str) -> str:
    """ "a dog", "an apple"."""
    return f"{'an' if tag[:1] in tuple('aeiou') else 'a'} {tag}"


@dataclass(frozen=True)
class PopeBenchmark:
    """POPE's questions, answered with yes or no.

    Keeps the ``benchmark`` contract (``lyrics.core.evaluation.benchmark``).
    """

    probe: Probe
    max_new_tokens: int = 16

    def samples(self) -> Iterator[Sample]:
        for sample, tag, there in self.probe.questions():
            question = f"Is there {with_article(tag)} in the image?"
            yield _asking(sample, tag, there, turns=(Turn(question, "yes" if there else "no"),))

    def picture(self, sample: Sample) -> PILImage:
        return self.probe.data.picture(sample)

    def prompt(self, sample: Sample) -> str:
        return fill(PROMPTS["vqa"], {"Question": sample.turns[0].instruction})

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores

    def group(self, sample: Sample) -> str:
        """Return whether what is asked about is there."""
        return "there" if sample.extra["there"] else "not there"

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        said = [yes_or_no(one.answer) for one in predictions]
        right = [bool(sample.extra["there"]) for sample in samples]
        scores = {
            name: value if name == "unparsed" else 100 * value for name, value in yes_no_scores(said, right).items()
        }
        return Verdict(scores, tuple(float(answer == truth) for answer, truth in zip(said, right, strict=True)))


@dataclass(frozen=True)
class PopeBoxesBenchmark:
    """The same questions, asked for boxes.

    A box for what is not there is invented, and the refiner's evidence may tell.
    """

    probe: Probe
    max_new_tokens: int = 64

    def samples(self) -> Iterator[Sample]:
        for sample, tag, there in self.probe.questions():
            yield _asking(sample, tag, there, turns=())

    def picture(self, sample: Sample) -> PILImage:
        return self.probe.data.picture(sample)

    def prompt(self, sample: Sample) -> str:
        return fill(IF_FOUND, {"Tag": str(sample.extra["tag"])})

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return self.judge([Prediction.of_text(text) for text in predictions], samples).scores

    def group(self, sample: Sample) -> str:
        """Return whether what is asked about is there."""
        return "there" if sample.extra["there"] else "not there"

    def judge(self, predictions: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        """``boxes for what is not there``: answers with a box, of those about what is not there.

        ``found``: of the others, those whose first box is right for one of the things of that name.
        """
        found: list[float] = []
        invented: list[float] = []
        marks = []
        for one, sample in zip(predictions, samples, strict=True):
            if sample.extra["there"]:
                box = one.objects[0].box_norm if one.objects else None
                meant = [each.box_norm for each in sample.objects if plain_name(each.tag) == sample.extra["tag"]]
                found.append(float(any(box_is_right(box, target) for target in meant)))
                marks.append(found[-1])
            else:
                invented.append(float(bool(one.objects)))
                marks.append(1.0 - invented[-1])
        scores: dict[str, float] = {}
        if found:
            scores["found (IoU >= 0.5)"] = 100 * sum(found) / len(found)
        if invented:
            scores["boxes for what is not there"] = 100 * sum(invented) / len(invented)
        there = [[Real(each.tag, each.box_norm) for each in sample.objects] for sample in samples]
        evidence, curve = evidence_scores(predictions, there)
        return Verdict({**scores, **evidence}, tuple(marks), details=curve)


def _asking(sample: Sample, tag: str, there: bool, *, turns: tuple[Turn, ...]) -> Sample:
    """Return the sample as it is asked about one tag; its image and its objects stay."""
    extra: dict[str, Any] = {
        key: value for key, value in sample.extra.items() if key not in ("absent", "answers", "options")
    }
    extra |= {"sample_id": f"{sample.image} {tag}", "task": "pope", "tag": tag, "there": there}
    extra["answers"] = ("yes" if there else "no",)
    return replace(sample, captions=(), turns=turns, extra=extra)
