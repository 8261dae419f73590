"""Measure what stage 1 taught, on samples with captions.

That is retrieval among many, matching, masked objects, and captions of the query transformer.

Shapes: B samples of a batch, N of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lyrics.core.contracts import (
    ChoosesNegatives,
    CountsCorrect,
    Dataset,
    RestoresText,
    WithNegatives,
    WritesCaptions,
)
from lyrics.core.data.collate import Collator, PretrainExamples
from lyrics.core.data.stream import Example
from lyrics.core.errors import GeometryError, MissingRequirementError, SpecError
from lyrics.core.evaluation.metrics.captions import caption_scores, has_java
from lyrics.core.language.codecs import coordinate_share
from lyrics.core.language.spatial_tokens import COORDINATE
from lyrics.core.stage1.batch import PretrainBatch, Spatial
from lyrics.core.stage1.negatives import Negatives
from lyrics.core.stage1.state import StepState
from lyrics.core.stage1.step import pretrain_state
from lyrics.core.stage1.streams import Features, Text, merge

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

#: A masked coordinate is near that is restored to within this share of the image's side.
NEAR = 0.02


@dataclass(frozen=True)
class Alignment:
    """Shares by name, each with how many it is of.

    ``captions`` are those that the query transformer wrote, in the order of the rows.

    ``notes`` say what could not be had, and why.
    """

    samples: int
    shares: Mapping[str, tuple[float, int]]
    captions: tuple[str, ...]
    caption_scores: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Part:
    """A batch as the objectives read it, and the samples' references."""

    features: Features
    texts: PretrainBatch
    references: list[tuple[str, ...]]


@torch.no_grad()
def alignment(
    model: LyricsModel,
    dataset: Dataset,
    *,
    samples: int,
    batch: int = 50,
    seed: int = 0,
    longest_caption: int = 48,
    twins: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Alignment:
    """Measure a model after stage 1 on the first ``samples`` rows.

    - Retrieval: each image among the texts of all samples, and the other way round (R@1). A text is the sample's
      caption with the refiner's spatial text, as the contrastive objective has it; ``captions alone`` leaves the
      spatial text empty.
    - What else the objectives count (``accuracy``), batch by batch: pairs judged, with hard negatives among ``batch``
      samples, and tokens predicted, with masks drawn as for a step that is never trained. For masked coordinates also
      the share restored to within ``NEAR`` of the image's side, for all, and for objects that are the only masked one
      of their image (with several, only their order tells which is which).
    - With ``twins``, rows 2k and 2k + 1 being images of one layout: how often a caption is judged to match its own
      image, and not to match the twin's. The spatial text is the image's own in both. Captions that both twins have
      are left out.
    - Captions: greedy, by the objective that can write and end them (``captions``, ``ends_captions``), held against
      all of the sample's; without pycocoevalcap a note says that they have no scores.

    Raises ``SpecError`` for a model without objectives, and for batches that part twins.
    """
    if twins and batch % 2:
        raise SpecError(f"batches of {batch} samples would part twins; take an even number.")
    if not model.objectives:
        raise SpecError(
            "this model has no objectives, so stage 1 cannot be measured; give its specification some of those that "
            "'lyrics list objective' names."
        )
    model.eval()
    objectives = model.losses.values()
    writer = next((one for one in objectives if isinstance(one, WritesCaptions) and one.ends_captions), None)
    parts: list[_Part] = []
    counts: dict[str, list[int]] = {}
    written: list[str] = []
    collator = Collator("pretrain", model.processor, seed=seed, codec=model.spec.codec)
    for examples in _batches(dataset, samples, batch):
        prepared = collator(examples)
        assert isinstance(prepared, PretrainExamples)
        features, texts = model.pretraining_inputs(prepared, seed, 0, kinds=True)
        state = pretrain_state(model.query_transformer, model.losses, features, texts)
        for objective in model.losses.values():
            # What chooses negatives is measured below, among all samples.
            if isinstance(objective, CountsCorrect) and not isinstance(objective, ChoosesNegatives):
                _add(counts, objective.accuracy(state))
            if isinstance(objective, RestoresText):
                _add(counts, _near(model, objective, state))
        if twins:
            _add(counts, _twins(model, features, texts))
        parts.append(_Part(features, texts, [one.sample.captions for one in examples]))
        if writer is not None and model.abilities.text is not None:
            ids = writer.captions(model.query_transformer, features, texts, longest_caption)
            written += model.abilities.text.tokenizer.batch_decode(ids, skip_special_tokens=True)
        say(f"{sum(len(part.texts) for part in parts)} of {samples} samples")
    shares = {name: (right / max(count, 1), count) for name, (right, count) in counts.items()}
    chooser = next((one for one in model.losses.values() if isinstance(one, ChoosesNegatives)), None)
    if chooser is not None:
        features, texts = _joined(parts)
        shares |= _retrieval(model, chooser, features, texts, "")
        empty = Spatial.from_objects([[] for _ in range(len(texts))])
        shares |= _retrieval(model, chooser, features, replace(texts, spatial=empty), ", captions alone")
    scores: Mapping[str, float] = {}
    notes: tuple[str, ...] = ()
    if written:
        references = [one for part in parts for one in part.references]
        try:
            scored = caption_scores(written, references, java=has_java())
            scores, notes = scored.scores, scored.notes
        except MissingRequirementError as error:
            notes = (str(error),)
    return Alignment(sum(len(part.texts) for part in parts), shares, tuple(written), scores, notes)


def _add(counts: dict[str, list[int]], found: Mapping[str, tuple[int, int]]) -> None:
    for name, (right, count) in found.items():
        both = counts.setdefault(name, [0, 0])
        both[0] += right
        both[1] += count


def _near(model: LyricsModel, objective: RestoresText, state: StepState) -> dict[str, tuple[int, int]]:
    """Masked coordinates that are restored nearly; none where they cannot be told apart or are no shares of a side."""
    spatial, reader = state.batch.spatial, model.abilities.text
    if spatial.kind_BL is None or reader is None:
        return {}
    masked_BL = objective.masked(state.batch)
    restored_BL = spatial.text.ids_RL.masked_scatter(masked_BL, objective.restored(state))
    near = {False: [0, 0], True: [0, 0]}  # whether the object is the only masked one
    for row, masked_L in enumerate(masked_BL):
        alone = len(spatial.object_BL[row][masked_L].unique()) == 1
        coordinates_L = masked_L & (spatial.kind_BL[row] == COORDINATE)
        for unit in spatial.unit_BL[row][coordinates_L].unique().tolist():
            at_L = coordinates_L & (spatial.unit_BL[row] == unit)
            texts = [
                str(reader.tokenizer.decode(ids[at_L].tolist())) for ids in (spatial.text.ids_RL[row], restored_BL[row])
            ]
            try:
                wanted, found = (coordinate_share(text, model.spec.codec) for text in texts)
            except GeometryError:
                return {}
            # As far as the codec writes it: half a step more or less is rounding.
            near[alone][0] += wanted is not None and found is not None and abs(wanted - found) <= NEAR + 1e-9
            near[alone][1] += 1
    name = f"masked coordinates within {NEAR:.0%} of the side"
    both = near[False][0] + near[True][0], near[False][1] + near[True][1]
    return {name: both, f"{name}, one object masked": (near[True][0], near[True][1])}


def _twins(model: LyricsModel, features: Features, texts: PretrainBatch) -> dict[str, tuple[int, int]]:
    """Captions judged of their own image and of the twin's, by the objective that matches pairs."""
    matching = {
        name: one
        for name, one in model.losses.items()
        if isinstance(one, WithNegatives) and isinstance(one, CountsCorrect)
    }
    # A last one without its twin is left out.
    pairs = torch.arange(len(texts) // 2 * 2)
    features, texts = _chosen(features, pairs), _chosen_texts(texts, pairs)
    swapped = texts.caption.rows(pairs ^ 1)
    differ_B = (texts.caption.lengths_R != swapped.lengths_R) | (
        texts.caption.ids_RL.masked_fill(~texts.caption.mask_RL, 0) != swapped.ids_RL.masked_fill(~swapped.mask_RL, 0)
    ).any(1)
    rows = differ_B.nonzero()[:, 0]
    shown = _chosen(features, rows)
    none = Negatives(torch.full((len(rows),), -1), torch.full((len(rows),), -1))
    counts = [0, 0]
    for caption, match in ((texts.caption, True), (swapped, False)):
        asked = replace(_chosen_texts(texts, rows), caption=caption.rows(rows))
        for name, objective in matching.items() if len(rows) else ():
            state = pretrain_state(model.query_transformer, {name: objective}, shown, asked, none)
            for right, count in objective.accuracy(state).values():
                counts[0] += right if match else count - right
                counts[1] += count
    return {"ITM accuracy on twins": (counts[0], counts[1])}


def _chosen(features: Features, rows: torch.Tensor) -> Features:
    at = rows.to(features.image_tokens_BND.device)
    return Features(
        features.image_tokens_BND[at],
        {name: (tokens[at], mask[at]) for name, (tokens, mask) in features.local.items()},
        None if features.image_mask_BN is None else features.image_mask_BN[at],
    )


def _chosen_texts(texts: PretrainBatch, rows: torch.Tensor) -> PretrainBatch:
    spatial = texts.spatial
    kinds = None if spatial.kind_BL is None else spatial.kind_BL[rows]
    chosen = Spatial(spatial.text.rows(rows), spatial.object_BL[rows], spatial.unit_BL[rows], kinds)
    images = None if texts.image_B is None else texts.image_B[rows]
    sample_B = texts.sample_B[rows]
    return replace(texts, spatial=chosen, caption=texts.caption.rows(rows), sample_B=sample_B, image_B=images)


def _batches(dataset: Dataset, samples: int, size: int) -> Iterator[list[Example]]:
    rows = range(min(samples, len(dataset)))
    for start in range(0, len(rows), size):
        found = []
        for row in rows[start : start + size]:
            sample = dataset[row]
            found.append(Example(row, "", row, sample, dataset.picture(sample)))
        yield found


def _retrieval(
    model: LyricsModel, chooser: ChoosesNegatives, features: Features, texts: PretrainBatch, label: str
) -> dict[str, tuple[float, int]]:
    streams = merge(list(chooser.streams(texts)))
    outputs = model.query_transformer(streams, model.query_transformer.project(features))
    similarity = chooser.similarity(outputs, texts)
    size = len(texts)
    right = torch.arange(size, device=similarity.image_to_text_BN.device)
    return {
        f"{name} R@1 of {size}{label}": (float((logits_NN.argmax(dim=1) == right).float().mean()), size)
        for name, logits_NN in (
            ("image to text", similarity.image_to_text_BN),
            ("text to image", similarity.text_to_image_BN),
        )
    }


def _joined(parts: Sequence[_Part]) -> tuple[Features, PretrainBatch]:
    """All batches as one."""
    names = parts[0].features.local.keys()
    features = Features(
        torch.cat([part.features.image_tokens_BND for part in parts]),
        {
            name: (
                _stacked([part.features.local[name][0] for part in parts]),
                _stacked([part.features.local[name][1] for part in parts]),
            )
            for name in names
        },
    )
    first = parts[0].texts
    spatial = Spatial(
        _text([part.texts.spatial.text for part in parts]),
        _stacked([part.texts.spatial.object_BL for part in parts], -1),
        _stacked([part.texts.spatial.unit_BL for part in parts], -1),
    )
    return features, replace(
        first,
        spatial=spatial,
        caption=_text([part.texts.caption for part in parts]),
        sample_B=torch.cat([part.texts.sample_B for part in parts]),
        image_B=torch.cat([part.texts.image_B for part in parts if part.texts.image_B is not None]),
    )


def _text(texts: Sequence[Text]) -> Text:
    return Text(_stacked([one.ids_RL for one in texts]), torch.cat([one.lengths_R for one in texts]))


def _stacked(tensors: Sequence[torch.Tensor], filler: float = 0) -> torch.Tensor:
    """[B, L, ...] of several lengths L, one under the other."""
    longest = max(tensor.shape[1] for tensor in tensors)
    wide = [tensor.new_full((len(tensor), longest, *tensor.shape[2:]), filler) for tensor in tensors]
    for room, tensor in zip(wide, tensors, strict=True):
        room[:, : tensor.shape[1]] = tensor
    return torch.cat(wide)
