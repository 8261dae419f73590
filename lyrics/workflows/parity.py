"""Compare a model's answers across batches, number types and implementations of attention.

A reference is asked first: float32, one question at a time. Each comparison asks the same questions otherwise and says
how many answers differ, how far the logits of the language model are from the reference's, and whether the boxes of the
answers are where they were.

- Answers are greedy, as ``generate`` gives them.
- Logits are read along the *reference's* answer (teacher forcing) and its end, so that one changed word does not
  count again in every word after it. Their differences are shares of the reference's largest logit.
- A box of the reference is held against the box of the same name, and of the same place among those of that name, in
  the other answer; one without such a box has an IoU of 0.
- Implementations of attention are held against ``reference`` on the query transformer's outputs for the same images
  and texts.

Letters: T tokens of an answer, V vocabulary, P images, Q queries, D width.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lyrics.core.answers import Answer
from lyrics.core.build import build_part
from lyrics.core.contracts import BuildContext, QueryTransformer
from lyrics.core.errors import LyricsError, SpecError, WeightsError, did_you_mean
from lyrics.core.language.prompting import fitted_prompt, spatial_text
from lyrics.core.language.prompts import Exchange
from lyrics.core.language.soft_prompts import embed
from lyrics.core.loading import load_model
from lyrics.core.model import LyricsModel
from lyrics.core.pictures.inputs import Pictures, picture_list
from lyrics.core.refining.refinement import Refinement
from lyrics.core.registry.registry import Registry
from lyrics.core.resolve import resolve
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs
from lyrics.core.weights.model_folder import holds_all_tensors, is_frozen
from lyrics.core.weights.tensors import WEIGHTS_FILE
from lyrics.kernels import ImplementationError, available_implementations

COMPARISONS = ("batch", "attention", "bfloat16", "4bit")
_QUANTIZED = {"language_model.options.quantization": "4bit"}


@dataclass(frozen=True)
class Tolerance:
    """How far a comparison may be from the reference.

    Args:
        answers: share of the answers that may differ.
        logit: worst difference of a logit, as a share of the reference's largest.
        iou: mean IoU that the boxes of answers must keep.
        output: worst difference of an output of the query transformer, as a share of the largest; of ``attention``
            alone.
    """

    answers: float = 0.0
    logit: float = 0.0
    iou: float = 1.0
    output: float = 0.0


#: By comparison. float32 differs in the order of sums alone; bfloat16 keeps 8 bits of a number, so a rounding is 0.4 %
#: and some dozens of layers add up to a few per cent; nf4 keeps 4 bits of each weight. Words follow where the two best
#: are nearly equal.
TOLERANCES: Mapping[str, Tolerance] = {
    "batch": Tolerance(answers=0.0, logit=1e-3, iou=0.99),
    "attention": Tolerance(output=1e-4),
    "bfloat16": Tolerance(answers=0.2, logit=0.05, iou=0.8),
    "4bit": Tolerance(answers=0.5, logit=0.25, iou=0.5),
}
_KEYS: Mapping[str, tuple[str, ...]] = {
    name: ("output",) if name == "attention" else ("answers", "logit", "iou") for name in TOLERANCES
}


def with_tolerance(tolerances: Mapping[str, Tolerance], name: str, key: str, value: Any) -> dict[str, Tolerance]:
    """Return the tolerances with one changed. Raises ``SpecError`` for a name, a key or a value that is none."""
    if name not in COMPARISONS:
        raise SpecError(
            f"tolerance {name}.{key}: there is no comparison {name!r}; there are {', '.join(COMPARISONS)}."
            f"{did_you_mean(name, COMPARISONS)}"
        )
    if key not in _KEYS[name]:
        raise SpecError(f"tolerance {name}.{key}: {name} has {', '.join(_KEYS[name])}.{did_you_mean(key, _KEYS[name])}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise SpecError(f"tolerance {name}.{key}: is a number from 0 on, not {value!r}.")
    return {**tolerances, name: replace(tolerances[name], **{key: float(value)})}


@dataclass(frozen=True)
class ParityQuestion:
    """What is asked of which image (or images, or none), and how a report calls it."""

    name: str
    pictures: Pictures
    text: str


@dataclass(frozen=True)
class Said:
    """An answer, what the refiner saw in its images, and logits [T,V] (float32, on the CPU).

    The logits are along the answer that was forced, T its tokens and its end.
    """

    answer: Answer
    seen: tuple[Refinement, ...]
    target_ids_T: torch.Tensor
    logits_TV: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """What came out of one comparison. Numbers that it has none of (boxes where no answer has one) are None.

    Args:
        name: one of ``COMPARISONS``; of several implementations each is one of its own.
        variant: what was held against the reference, such as ``batch 8`` or ``attention sdpa``.
        questions: how many were asked.
        differing: names of the questions whose answers differ.
        worst_logit, largest_logit: the worst difference, and the reference's largest logit, both absolute.
        boxes: of the reference's answers.
        mean_iou, worst_iou: of those boxes.
        worst_output, largest_output: of the query transformer, absolute.
        exceeded: what is beyond its tolerance, in words.
    """

    name: str
    variant: str
    questions: int
    tolerance: Tolerance
    differing: tuple[str, ...] = ()
    worst_logit: float | None = None
    largest_logit: float | None = None
    boxes: int = 0
    mean_iou: float | None = None
    worst_iou: float | None = None
    worst_output: float | None = None
    largest_output: float | None = None
    exceeded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "within": not self.exceeded}
        data["tolerance"] = {key: getattr(self.tolerance, key) for key in _KEYS[self.name]}
        # JSON has no infinity.
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in data.items()
        }


@dataclass(frozen=True)
class ParityReport:
    """All comparisons, and those that could not be made, each with its reason."""

    questions: int
    comparisons: tuple[Comparison, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def within(self) -> bool:
        return not any(one.exceeded for one in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        comparisons = [one.to_json() for one in self.comparisons]
        return {
            "questions": self.questions,
            "within": self.within,
            "comparisons": comparisons,
            "skipped": dict(self.skipped),
        }


#: Gives the model in a number type, with overrides of its specification; always the same weights.
Load = Callable[[torch.dtype, Mapping[str, Any]], LyricsModel]


def loader(
    name: str, *, overrides: Mapping[str, Any], weights: str, device: str | None, downloads: bool | None = None
) -> Load:
    """Return the model of that name (``lyrics.core.loading``), read anew each time, but for what may be random.

    With a preset or a specification that is what training changes, whose weights no checkpoint need name, and with
    ``weights="random"`` everything: drawn once and kept.
    """
    drawn: dict[str, torch.Tensor] = {}

    def load(dtype: torch.dtype, more: Mapping[str, Any]) -> LyricsModel:
        if more and (Path(name) / WEIGHTS_FILE).is_file() and holds_all_tensors(name):
            raise WeightsError(
                f"{name}: holds the weights of its language model, and 4 bits can only be loaded from the checkpoint "
                "that a spec names. Compare a folder that was saved with trainable_only=True, the run that it was "
                "exported from, or a preset."
            )
        changes = {**overrides, **more}
        model = load_model(name, overrides=changes, weights=weights, downloads=downloads, device=device, dtype=dtype)
        if drawn:
            model.load_state_dict(drawn, strict=weights == "random")
        else:
            kept = model.state_dict().items()
            drawn.update((key, tensor) for key, tensor in kept if weights == "random" or not is_frozen(model, key))
        return model

    return load


def parity(
    load: Load,
    questions: Sequence[ParityQuestion],
    *,
    compare: Sequence[str] | None = None,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    batch: int = 8,
    max_new_tokens: int = 32,
    progress: Callable[[str], None] = lambda stage: None,
) -> ParityReport:
    """Hold a model against itself. No two models are held in memory at a time, unless ``load`` keeps one.

    Args:
        load: see ``Load``.
        questions: at least one.
        compare: some of ``COMPARISONS``; without it, all that can be made here. One that is named and cannot be
            made is an error.
        tolerances: by comparison.
        batch: questions that are answered together in the comparison ``batch``.
        max_new_tokens: of an answer.
        progress: called with the name of what begins.

    Raises ``SpecError`` for a comparison that does not exist, ``LyricsError`` for one that was named and cannot be
    made, and what the model raises for an image or a question that it cannot answer.
    """
    if not questions:
        raise SpecError("parity: there is no question to ask.")
    for name in compare or ():
        if name not in COMPARISONS:
            raise SpecError(f"--compare {name}: is one of {', '.join(COMPARISONS)}.{did_you_mean(name, COMPARISONS)}")
    wanted = tuple(compare or COMPARISONS)
    found: list[Comparison] = []
    skipped: dict[str, str] = {}
    progress("reference: float32, one question at a time")
    model = load(torch.float32, {})
    reference = speak(model, questions, batch=1, max_new_tokens=max_new_tokens)

    def compared(name: str, variant: str, said: Sequence[Said]) -> Comparison:
        return compare_answers(name, variant, questions, reference, said, tolerances[name])

    if "batch" in wanted:
        progress(f"batch {batch}")
        said = speak(model, questions, batch=batch, max_new_tokens=max_new_tokens, reference=reference)
        found.append(compared("batch", f"batch {batch}", said))
    if "attention" in wanted:
        progress("implementations of attention")
        made, reasons = compare_attention(model, questions, tolerances["attention"])
        if not made and "attention" in (compare or ()):
            raise LyricsError(f"attention: cannot be compared: {'; '.join(reasons.values())}")
        found += made
        skipped |= reasons
    del model
    variants: tuple[tuple[str, torch.dtype, Mapping[str, Any]], ...] = (
        ("bfloat16", torch.bfloat16, {}),
        ("4bit", torch.float32, _QUANTIZED),
    )
    for name, dtype, overrides in variants:
        if name not in wanted:
            continue
        progress(name)
        try:
            if name == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
                raise LyricsError("bitsandbytes is not installed. Run: pip install 'lyrics-vl[quant]'")
            variant = load(dtype, overrides)
        except LyricsError as error:
            if compare is not None:
                raise
            skipped[name] = str(error)
            continue
        said = speak(variant, questions, batch=1, max_new_tokens=max_new_tokens, reference=reference)
        found.append(compared(name, name, said))
        del variant
    return ParityReport(len(questions), tuple(found), skipped)


@torch.no_grad()
def speak(
    model: LyricsModel,
    questions: Sequence[ParityQuestion],
    *,
    batch: int,
    max_new_tokens: int,
    reference: Sequence[Said] | None = None,
) -> list[Said]:
    """Return answers to the questions, ``batch`` together, and logits.

    The logits are along the reference's answers (without it, along these).

    Logits are comparable along the same prompt alone: a box that is off by a thousandth is another token, and a model
    that copies it another certainty. So for the logits the prompt states the objects that the reference's refiner saw;
    answers are of the model's own.
    """
    said: list[Said] = []
    for start in range(0, len(questions), batch):
        asked = questions[start : start + batch]
        shown = [picture_list(question.pictures) for question in asked]
        encoded = model.look(
            [picture for own in shown for picture in own],
            [question.text for question, own in zip(asked, shown, strict=True) for _ in own],
        )
        dialogues, end = [], 0
        for question, own in zip(asked, shown, strict=True):
            dialogues.append((Exchange(question.text, None, tuple(range(end, end + len(own)))),))
            end += len(own)
        answers = model.answer(dialogues, encoded, max_new_tokens=max_new_tokens)
        ends = [exchange.images[-1] + 1 if exchange.images else 0 for (exchange,) in dialogues]
        seen = [encoded.refinements[end - len(own) : end] for end, own in zip(ends, shown, strict=True)]
        forced = [one.text for one in answers]
        if reference is not None:
            known = reference[start : start + batch]
            forced = [one.answer.text for one in known]
            stated = tuple(refinement for one in known for refinement in one.seen)
            written = tuple(spatial_text(refinement, model.spec.codec) for refinement in stated)
            encoded = replace(encoded, refinements=stated, spatial_texts=written)
        prompts = [
            fitted_prompt(
                (replace(dialogue[0], answer=text),),
                encoded,
                int(model.language_model.max_positions),
                model.spec,
                model.language_model,
            )
            for dialogue, text in zip(dialogues, forced, strict=True)
        ]
        soft = embed(prompts, encoded.soft_tokens_PQD, model.language_model, "right")
        logits_BLV = model.language_model(soft.embeddings_BLD, soft.mask_BL)
        for row, answer in enumerate(answers):
            targets_L = soft.targets_BL[row, 1:]
            logits_TV = logits_BLV[row, :-1][targets_L.to(logits_BLV.device)].float().cpu()
            said.append(Said(answer, seen[row], soft.ids_BL[row, 1:][targets_L], logits_TV))
    return said


def compare_answers(
    name: str,
    variant: str,
    questions: Sequence[ParityQuestion],
    reference: Sequence[Said],
    said: Sequence[Said],
    tolerance: Tolerance,
) -> Comparison:
    """Hold answers against the reference's. Logits that are not numbers, or of other tokens, are infinitely far."""
    differing: list[str] = []
    overlaps: list[float] = []
    worst = largest = 0.0
    for question, ours, theirs in zip(questions, reference, said, strict=True):
        if ours.answer.text != theirs.answer.text:
            differing.append(question.name)
        overlaps += box_overlaps(ours.answer, theirs.answer)
        largest = max(largest, float(ours.logits_TV.abs().max()))
        if torch.equal(ours.target_ids_T, theirs.target_ids_T):
            distance = float((ours.logits_TV - theirs.logits_TV).abs().max())
            worst = max(worst, math.inf if math.isnan(distance) else distance)
        else:
            worst = math.inf
    mean_iou = sum(overlaps) / len(overlaps) if overlaps else None
    exceeded = []
    if len(differing) > tolerance.answers * len(questions):
        exceeded.append(f"{len(differing)} of {len(questions)} answers differ, {tolerance.answers:.0%} may")
    if not worst <= tolerance.logit * largest:
        exceeded.append(f"a logit differs by {worst:.3g}, {tolerance.logit:g} of the largest ({largest:.3g}) may be")
    if mean_iou is not None and mean_iou < tolerance.iou:
        exceeded.append(f"the mean IoU of boxes is {mean_iou:.3f}, at least {tolerance.iou:g} must be")
    return Comparison(
        name,
        variant,
        len(questions),
        tolerance,
        tuple(differing),
        worst,
        largest,
        len(overlaps),
        mean_iou,
        min(overlaps, default=None),
        exceeded=tuple(exceeded),
    )


def box_overlaps(reference: Answer, other: Answer) -> Iterator[float]:
    """For each box of the reference's answer, its IoU with the box of the same name and turn in the other.

    0 where there is none.
    """
    found = dict(zip(_by_name(other), (one.box_norm for one in other.objects), strict=True))
    for key, one in zip(_by_name(reference), reference.objects, strict=True):
        yield one.box_norm.iou(found[key]) if key in found else 0.0


def _by_name(answer: Answer) -> Iterator[tuple[str, int]]:
    """(name, how many of that name came before) of each object."""
    seen: Counter[str] = Counter()
    for one in answer.objects:
        yield one.tag, seen[one.tag]
        seen[one.tag] += 1


# --- implementations of attention ----------------------------------------------------------------------------------


@torch.no_grad()
def compare_attention(
    model: LyricsModel, questions: Sequence[ParityQuestion], tolerance: Tolerance, *, registry: Registry | None = None
) -> tuple[list[Comparison], dict[str, str]]:
    """Return the query transformer's outputs under every implementation that can run here, against ``reference``.

    Returns the comparisons, and why others could not be made. The query transformer's component must have an option
    ``attention``.
    """
    calls = _calls(model, questions)
    if not calls:
        return [], {"attention": "no question has an image, so the query transformer reads nothing."}
    try:
        definition = _outputs(_with_attention(model, "reference", registry), calls)
    except SpecError as error:
        return [], {"attention": f"the query transformer's attention cannot be chosen: {error}"}
    largest = max(float(one.abs().max()) for one in definition)
    made: list[Comparison] = []
    skipped: dict[str, str] = {}
    for implementation in available_implementations():
        name = implementation.name
        if name == "reference":
            continue
        try:
            if not implementation.available:
                raise ImplementationError(implementation.reason)
            outputs = _outputs(_with_attention(model, name, registry), calls)
        except (ImplementationError, SpecError) as error:
            skipped[f"attention {name}"] = str(error)
            continue
        distances = [float((a - b).abs().max()) for a, b in zip(definition, outputs, strict=True)]
        worst = max(math.inf if math.isnan(distance) else distance for distance in distances)
        exceeded: tuple[str, ...] = ()
        if not worst <= tolerance.output * largest:
            exceeded = (
                f"an output differs by {worst:.3g}, {tolerance.output:g} of the largest ({largest:.3g}) may be",
            )
        made.append(
            Comparison(
                "attention",
                f"attention {name}",
                len(questions),
                tolerance,
                worst_output=worst,
                largest_output=largest,
                exceeded=exceeded,
            )
        )
    return made, skipped


_Call = tuple[list[Stream], Features]


def _calls(model: LyricsModel, questions: Sequence[ParityQuestion]) -> list[_Call]:
    """Return what the query transformer is given for the questions' images, all images of a question in one call."""
    calls: list[_Call] = []

    def note(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.append((arguments[0], arguments[1]))

    handle = model.query_transformer.register_forward_pre_hook(note)
    try:
        for question in questions:
            pictures = picture_list(question.pictures)
            model.look(pictures, [question.text] * len(pictures))
    finally:
        handle.remove()
    return calls


def _with_attention(model: LyricsModel, implementation: str, registry: Registry | None) -> QueryTransformer:
    """A query transformer like the model's, with its weights, under another implementation. Raises ``SpecError``."""
    resolved = resolve(model.spec, {"query_transformer.options.attention": implementation}, registry=registry)
    sources = {} if model.refiner is None else model.refiner.local_sources
    local_dims = {source: expert.feature_dim for source, expert in sources.items()}
    context = BuildContext("random", image_dim=model.encoder.feature_dim, local_dims=local_dims)
    built = build_part(resolved.parts["query_transformer"], context)
    built.load_state_dict(model.query_transformer.state_dict())
    found: QueryTransformer = built.to(model.device, model.dtype).eval()
    return found


def _outputs(query_transformer: QueryTransformer, calls: Sequence[_Call]) -> list[torch.Tensor]:
    """Return every wanted segment of every call, float32 on the CPU."""
    found = []
    for streams, features in calls:
        outputs: StreamOutputs = query_transformer(streams, features)
        found += [outputs(stream.name, name).float().cpu() for stream in streams for name in stream.wanted]
    return found
