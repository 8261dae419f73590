"""Table 5: what is lost without a part of the model, in three readings.

The parts are the image encoder (ViT), the detector (ODM), the segmenter (SSM), and the refiner (VR).

*Blank* is the paper's: a trained model whose part sees a blank image. *Features* takes less away: what the part found
stays, and with it the spatial text; only its tokens are those of a blank image. *Removed* takes the part out of the
specification and trains both stages again. An image encoder cannot be absent, so without it a model is trained and
evaluated on blank images. A segmenter has no boxes without a detector, so it goes with it; of the refiner the tagger
is left then, whose tags reach nothing.

Three rows are other ways to build such a model, without a refiner: BLIP-2's, LLaVA's and Flamingo's. The connectors of
the last two read no text, so they have no stage 1; stage 2 gets its samples, too.

Two rows ask what reaches the language model by which way, of the whole model: *text only* has the soft tokens of
another sample, *soft only* has no spatial text in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.errors import LyricsError, SpecError, UnknownNameError, did_you_mean
from lyrics.core.evaluation.partners import exchange
from lyrics.core.registry.registry import default_registry
from lyrics.core.resolve import declared_segments, declaring, resolve
from lyrics.core.training.launch import several_processes
from lyrics.workflows.ablations.runs import (
    Evaluating,
    Stages,
    changed,
    train_once,
    trained_model,
)
from lyrics.workflows.ablations.tables import Ablation, Published, ScoreRow, rows_of
from lyrics.workflows.ablations.variants import (
    blank_tokens,
    check_looks,
    check_part,
    check_text,
    show_blank,
    show_text,
)

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel
    from lyrics.core.runs.config import TrainConfig
    from lyrics.core.spec import ModelSpec

READINGS = ("blank", "removed", "features")
#: Readings of a trained model; the other one trains.
ANSWERED = ("blank", "features")
FULL = "full"
#: Other ways, which have to be trained: variant -> query transformer.
BASELINES: Mapping[str, str] = MappingProxyType(
    {"blip2": "qformer", "mlp-projector": "mlp-projector", "perceiver-resampler": "perceiver-resampler"}
)


@dataclass(frozen=True)
class Variant:
    """A row of the paper's table.

    Args:
        name: in the paper.
        part: what the model must have.
        blank: experts that see a blank image in the reading ``blank``.
        blank_when_removed: and in the reading ``removed``.
        condition: of the soft tokens of the whole model.
        spatial_text: whether the whole model's language model reads what the refiner saw.
    """

    name: str
    part: str = "image_encoder"
    blank: tuple[str, ...] = ()
    blank_when_removed: tuple[str, ...] = ()
    condition: Condition = CLEAR
    spatial_text: bool = True

    @property
    def of_full(self) -> bool:
        """Whether it is the whole model that answers otherwise, so that nothing is trained for it."""
        return not self.condition.changes_nothing or not self.spatial_text


#: By the name of their folder, in the paper's order.
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "full": Variant("Lyrics"),
        "no-vit": Variant("w/o ViT", "image_encoder", ("image_encoder",), ("image_encoder",)),
        "no-odm": Variant("w/o ODM", "refiner.detector", ("detector",)),
        "no-ssm": Variant("w/o SSM", "refiner.segmenter", ("segmenter",)),
        "no-vr": Variant("w/o VR", "refiner", ("tagger", "detector", "segmenter")),
        "blip2": Variant("BLIP-2's way", "refiner"),
        "mlp-projector": Variant("LLaVA's way", "refiner"),
        "perceiver-resampler": Variant("Flamingo's way", "refiner"),
        "text-only": Variant("text only", condition=Condition(soft="shuffled")),
        "soft-only": Variant("soft only", "refiner", spatial_text=False),
    }
)

PUBLISHED: Published = MappingProxyType(
    {
        (benchmark, split, VARIANTS[variant].name): value
        for benchmark, split, values in (
            ("vqav2", "", (81.2, 78.5, 80.6, 80.8, 77.2)),
            ("refcocog", "test", (88.26, 86.11, 87.55, 87.08, 83.25)),
        )
        for variant, value in zip(VARIANTS, values, strict=False)
    }
)


def chosen(only: Sequence[str], reading: str) -> list[str]:
    """Return the variants of a reading, all or those named.

    Raises ``UnknownNameError``; ``SpecError`` for one that the reading does not have.
    """
    there = [name for name in VARIANTS if name not in BASELINES or reading == "removed"]
    for name in only:
        if name not in VARIANTS:
            raise UnknownNameError(
                f"--only {name}: there is no such variant.{did_you_mean(name, VARIANTS)} There are "
                f"{', '.join(VARIANTS)}."
            )
        if name not in there:
            raise SpecError(f"--only {name}: is trained without a refiner; it needs --reading removed.")
    return [name for name in there if not only or name in only]


def check_exchange(evaluating: Evaluating, names: Sequence[str]) -> None:
    """Raise ``LyricsError`` where soft tokens are to be exchanged and some sample has none to get them from.

    That is before anything is done.
    """
    seeds = {one.condition.seed for one in map(VARIANTS.__getitem__, names) if one.condition.soft == "shuffled"}
    for name, benchmark in evaluating.benchmarks.items() if seeds else ():
        samples = tuple(islice(benchmark.samples(), evaluating.limit))
        for seed in seeds:
            try:
                exchange(name, samples, [int(sample.image is not None) for sample in samples], seed)
            except LyricsError as error:
                raise LyricsError(f"{str(error).rstrip('.')}, or leave text-only out with --only.") from None


# --- blank and features --------------------------------------------------------------------------------------------


def answered(
    reading: str,
    load: Callable[[], LyricsModel],
    described: str,
    evaluating: Evaluating,
    out: Path,
    only: Sequence[str] = (),
) -> list[ScoreRow]:
    """Rows of a trained model, with a blank image (``blank``) or its tokens (``features``) for one part at a time.

    Args:
        reading: one of ``ANSWERED``.
        load: gives the model; called only if an answer is missing.
        described: which model it is; answers of another one are refused.
        evaluating: how.
        out: a folder for each variant.
        only: some of ``VARIANTS``, or none for all.

    Raises ``SpecError`` for a model without the part that a variant is about, before anything is answered.
    """
    names = chosen(only, reading)
    check_exchange(evaluating, names)
    change = {"blank": show_blank, "features": blank_tokens}[reading]
    said = {"blank": "blank for", "features": "blank tokens for"}[reading]
    models: list[LyricsModel] = []

    def shown(variant: Variant) -> LyricsModel:
        if not models:
            models.append(load())
            for name in names:
                check_part(models[0].spec, VARIANTS[name].name, VARIANTS[name].part)
                check_looks(models[0].spec, VARIANTS[name].name, VARIANTS[name].blank)
                if not VARIANTS[name].spatial_text:
                    check_text(models[0].spec, VARIANTS[name].name)
            whole.append(models[0].spec.spatial_in_prompt)
        model = models[0]
        there = [expert for expert in variant.blank if expert in model.processor.preprocessing]
        return show_text(change(model, there), whole[0] and variant.spatial_text)

    whole: list[bool] = []
    rows: list[ScoreRow] = []
    for name in names:
        variant = VARIANTS[name]
        nothing = f", {said} {', '.join(variant.blank)}" if variant.blank else ""
        results = evaluating(
            lambda variant=variant: shown(variant),  # type: ignore[misc]
            out / name,
            f"{described}{nothing}{_otherwise(variant)}",
            variant.condition,
        )
        rows += rows_of(variant.name, reading, None, results)
    return rows


def _otherwise(variant: Variant) -> str:
    """Return how the whole model answers otherwise, for the record of its answers."""
    return "" if variant.spatial_text else ", no spatial text"


# --- removed -------------------------------------------------------------------------------------------------------


def without(spec: ModelSpec, name: str) -> dict[str, Any]:
    """Return the overrides of a specification that make it the variant's.

    Raises ``SpecError`` for a model without the part.
    """
    variant = VARIANTS[name]
    check_part(spec, variant.name, variant.part)
    if name in (FULL, "no-vit") or variant.of_full:
        return {}
    if name in BASELINES:
        return _baseline(spec, BASELINES[name])
    gone = {
        "no-odm": {"refiner.detector": None, "refiner.segmenter": None},
        "no-ssm": {"refiner.segmenter": None},
        "no-vr": {"refiner": None},
    }[name]
    if spec.query_transformer.options.get("local_dims") is not None:
        # Else it would go on waiting for tokens that nobody gives.
        gone["query_transformer.options.local_dims"] = None
    return gone


def _baseline(spec: ModelSpec, use: str) -> dict[str, Any]:
    """As the preset ``blip2-13b`` is to ``lyrics-13b``: no refiner, another query transformer with the visual queries
    alone, and the objectives that its segments allow: there is nothing to mask, and without text nothing at all.
    """
    registry = default_registry()
    known = registry.component("query-transformer", use).component.options.model_fields
    own = spec.query_transformer.options
    options = {key: value for key, value in own.items() if key in known}
    if "num_queries" in known and "num_visual" in own:
        options["num_queries"] = own["num_visual"]
    reader = resolve(spec, {"query_transformer": {"use": use, "options": options}})
    segments = declared_segments(reader.parts["query_transformer"], "segments") or ()
    objectives = {
        name: slot.model_dump(mode="json")
        for name, slot in spec.objectives.items()
        if set(declared_segments(reader.parts[f"objectives.{name}"], "needs_segments") or ()) <= set(segments)
    }
    return {
        "refiner": None,
        "query_transformer": {"use": use, "options": options},
        "objectives": objectives,
        "sees": ["instruction"] if set(segments) & {"S", "C"} else [],
    }


def variant_config(config: TrainConfig, name: str, seed: int, out: Path, **more: Any) -> TrainConfig:
    """Return a stage of a variant."""
    overrides = {f"model.spec.{path}": value for path, value in without(config.model.spec, name).items()}
    if config.data.drop_queries_text and "spatial" not in overrides.get("model.spec.sees", ("spatial",)):
        overrides["data.drop_queries_text"] = 0.0
    found = config.with_overrides(overrides)
    if config.data.refined is not None and not declaring(found.model.spec, "reads_known_objects"):
        more["data.refined"] = None
    return changed(found, {"seed": seed, "out": str(out), **more})


def removed(stages: Stages, evaluating: Evaluating, out: Path, seeds: int, only: Sequence[str] = ()) -> list[ScoreRow]:
    """Return rows of models that are trained without the part, both stages; arguments as for ``answered``.

    None under torchrun, which trains only.

    Raises ``SpecError`` for a model without the part that a variant is about, before anything is trained.
    """
    for config in (stages.pretrain, stages.finetune):
        if config.model.weights not in ("pretrained", "random"):
            raise SpecError(
                f"{config.stage}: model.weights={config.model.weights} is a model with all its parts, and variants "
                "lack some; set it to pretrained or random."
            )
    names = chosen(only, "removed")
    check_exchange(evaluating, names)
    runs = []
    for name in names:
        for seed in stages.seeds(seeds):
            variant = VARIANTS[name]
            if not variant.spatial_text:
                check_text(stages.finetune.model.spec, variant.name)
            trained = FULL if variant.of_full else name
            folder = out / trained / f"seed-{seed}"
            first = variant_config(stages.pretrain, trained, seed, folder / "pretrain")
            start: dict[str, Any] = {"model.start_from": first.out}
            if not first.model.spec.objectives:
                start = {"optimization.steps": _steps_of_both(stages)}
            second = variant_config(stages.finetune, trained, seed, folder / "finetune", **start)
            runs.append((name, seed, first, second))
    rows: list[ScoreRow] = []
    for name, seed, first, second in runs:
        variant = VARIANTS[name]
        what = VARIANTS[FULL].name if variant.of_full else variant.name
        for stage, config in (("stage 1", first), ("stage 2", second)):
            if config is first and not first.model.spec.objectives:
                continue
            train_once(config, f"{what}, removed, seed {seed}, {stage}", variant.blank_when_removed)
        if several_processes():
            continue

        def made(second: TrainConfig = second, variant: Variant = variant) -> LyricsModel:
            model = trained_model(second, evaluating, variant.blank_when_removed)
            return model if variant.spatial_text else show_text(model, False)

        results = evaluating(
            made,
            out / name / f"seed-{seed}" / "results",
            f"table 5, removed, {name}, seed {seed}",
            variant.condition,
        )
        rows += rows_of(variant.name, "removed", seed, results)
    return rows


def _steps_of_both(stages: Stages) -> int:
    """Steps of stage 2 that see as many samples as both stages."""
    one, two = stages.pretrain.optimization, stages.finetune.optimization
    return two.steps + math.ceil(one.steps * one.global_batch / two.global_batch)


# --- all -----------------------------------------------------------------------------------------------------------

_NOTES = {
    "blank": "blank: the part sees a white image, the others the original; greedy answers, so nothing is drawn and "
    "there are no seeds.",
    "features": "features: what the part finds stays, and with it the spatial text; its tokens are those of a white "
    "image, for the same "
    "phrases and boxes. The image encoder gives tokens alone, so w/o ViT is the same as in blank; the tagger gives "
    "none.",
    "removed": "removed: the part is not in the specification, and both stages were trained without it. Without the "
    "detector the segmenter "
    "has no boxes and is removed with it; w/o ODM and w/o VR then differ in the tagger alone, whose tags reach "
    "nothing. Without ViT the image encoder is there and sees a white image, in training and in evaluation.",
}


def _of_variants(rows: Sequence[ScoreRow]) -> list[str]:
    without_text = (
        "no refiner, and a connector that reads no text: there is no stage 1, and stage 2 has its samples, too."
    )
    said = {
        "LLaVA's way": f"LLaVA's way: {without_text}",
        "Flamingo's way": f"Flamingo's way: {without_text}",
        "text only": "text only: the whole model, with the soft tokens of another sample of the same task and "
        "another image.",
        "soft only": "soft only: the whole model, with no spatial text in the language model's prompt; the query "
        "transformer reads "
        "what it was trained to read.",
    }
    there = {row.variant for row in rows}
    return [text for name, text in said.items() if name in there]


def table_5(rows: Sequence[ScoreRow], facts: Mapping[str, str], about: Mapping[str, Mapping[str, str]]) -> Ablation:
    """Return what is written of the rows of some readings."""
    readings = list(dict.fromkeys(row.reading for row in rows))
    return Ablation(
        "table-5",
        "Table 5: the parts of the architecture",
        rows,
        facts,
        [*(_NOTES[reading] for reading in readings if reading is not None), *_of_variants(rows)],
        PUBLISHED,
        about,
    )
