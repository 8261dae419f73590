"""From predictions and samples to the scores of a benchmark: one judge per metric.

Samples without reference answers (of test splits whose answers are on a server) give no score, and a note says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.metrics.captions import caption_scores, has_java
from lyrics.core.evaluation.metrics.exact import exact_match
from lyrics.core.evaluation.metrics.options import chosen_option
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.evaluation.metrics.vqa import Variant, vqa_accuracy
from lyrics.core.types import Sample

Predictions = Sequence[Prediction]
Samples = Sequence[Sample]

_ON_A_SERVER = Verdict(
    {},
    notes=(
        "No score: the split has no reference answers here (they are on a server). predictions.jsonl has the answers.",
    ),
)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_group(name: str, values: Sequence[float], groups: Sequence[Any]) -> dict[str, float]:
    """Return the mean times 100 of each group's values, as ``NAME, GROUP``; samples of the group None are in none.

    One group alone is left out.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        if group is not None:
            found[str(group)].append(value)
    return {f"{name}, {group}": 100 * mean(found[group]) for group in sorted(found)} if len(found) > 1 else {}


def captions(predictions: Predictions, samples: Samples) -> Verdict:
    """CIDEr, BLEU, ROUGE-L and METEOR.

    By domain too, where the set has domains (NoCaps), in CIDEr within the whole set.
    """
    if not all(sample.captions for sample in samples):
        return _ON_A_SERVER
    found = caption_scores(
        [one.answer for one in predictions], [sample.captions for sample in samples], java=has_java()
    )
    name = next(name for name in found.scores if name.startswith("CIDEr"))
    domains = [sample.extra.get("domain") for sample in samples]
    # A domain's captions are weighed within the whole set, the published scores of a domain within that domain.
    per_domain = by_group(f"{name} within all", [value / 100 for value in found.cider], domains)
    return Verdict({**found.scores, **per_domain}, found.cider, found.notes)


def _answered(
    predictions: Predictions,
    samples: Samples,
    *,
    name: str,
    right: Callable[[str, Sequence[str]], float],
    group: str = "",
) -> Verdict:
    """The mean of a metric of (answer, reference answers), and that of each group (a key of ``Sample.extra``)."""
    references = [tuple(sample.extra.get("answers", ())) for sample in samples]
    if not all(references):
        return _ON_A_SERVER
    marks = tuple(float(right(one.answer, true)) for one, true in zip(predictions, references, strict=True))
    groups = [sample.extra.get(group) for sample in samples]
    return Verdict({name: 100 * mean(marks), **by_group(name, marks, groups)}, marks)


def vqa(variant: Variant) -> Callable[[Predictions, Samples], Verdict]:
    """VQA accuracy in a variant, for each type of answer, too."""
    return partial(
        _answered,
        name=f"VQA accuracy ({variant})",
        right=lambda said, true: vqa_accuracy(said, true, variant),
        group="answer_type",
    )


exact = partial(_answered, name="exact match", right=exact_match)


def options(predictions: Predictions, samples: Samples) -> Verdict:
    """Return the accuracy of option letters; ``unparsed`` counts answers that choose nothing."""
    marks, unparsed = [], 0
    for one, sample in zip(predictions, samples, strict=True):
        choices = [str(option) for option in sample.extra["options"]]
        right = sample.turns[0].answer
        if not right:
            return _ON_A_SERVER
        chosen = chosen_option(one.answer, choices)
        unparsed += chosen is None
        marks.append(float(chosen == choices.index(right)))
    return Verdict({"accuracy": 100 * mean(marks), "unparsed": unparsed}, tuple(marks))


def rec(predictions: Predictions, samples: Samples) -> Verdict:
    """Return the accuracy at IoU 0.5 of the first box of an answer; ``unparsed`` counts answers without a box.

    Marks are the IoU.
    """
    right, overlaps, unparsed = [], [], 0
    for one, sample in zip(predictions, samples, strict=True):
        box, target = (one.objects[0].box_norm if one.objects else None), sample.objects[0].box_norm
        unparsed += box is None
        right.append(float(box_is_right(box, target)))
        overlaps.append(0.0 if box is None else box.iou(target))
    scores = {"accuracy (IoU >= 0.5)": 100 * mean(right), "mean IoU": 100 * mean(overlaps), "unparsed": unparsed}
    return Verdict(scores, tuple(overlaps), points=tuple(right))
