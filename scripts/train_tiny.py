"""Rebuild the trained parts of ``lyrics-tiny``. A stage that was stopped goes on where it was; one that is finished is
not done again.

python scripts/train_tiny.py experts --out runs/tiny  # train the four experts, write runs/tiny/weights
python scripts/train_tiny.py model --out runs/tiny  # then the language model on plain and fine texts, stages 1 and 2
torchrun --nproc-per-node 2 scripts/train_tiny.py model --out runs/tiny --only text-8  # two processes; then without
python scripts/train_tiny.py all --out runs/tiny  # both
python scripts/train_tiny.py export --out runs/tiny  # write the weights of the newest checkpoints, finished or not
python scripts/train_tiny.py measure --weights runs/tiny/weights --split test --scenes 1000
python scripts/train_tiny.py probe --split test  # what each expert carries
python scripts/train_tiny.py align --split test --scenes 1000  # what stage 1 taught, and its gates
python scripts/train_tiny.py all --plain --out runs/plain  # lyrics-tiny-plain, in a folder of its own
python scripts/train_tiny.py align --plain --out runs/plain  # what its stage 1 taught
python scripts/train_tiny.py card --split test --out card  # these, and what the whole model answers
python scripts/train_tiny.py read --split test --scenes 100  # what the language model reads
python scripts/train_tiny.py annotate --split test --scenes 100 --to objects.jsonl  # what the experts should find
lyrics evaluate --model lyrics-tiny --benchmark scenes --split test --out scores  # what the whole model answers
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lyrics import Condition, LyricsError, LyricsModel, Refinement, build_dataset, build_model
from lyrics.cli._overrides import parse_overrides
from lyrics.cli.evaluate import asked_benchmarks
from lyrics.evaluation import alignment, evaluate
from lyrics.plugins.tiny import (
    measure_experts,
    probe_experts,
    stage1_gates,
    train_experts,
    train_model,
    trained_weights,
)
from lyrics.plugins.tiny.measure_reading import reading_accuracy
from lyrics.training import several_processes

EVERY_STAGE = (*train_model.STAGES, *train_model.PLAIN_STAGES)
#: Scenes that the card's figures are of: of the experts, of stage 1, of the whole model.
CARD_SCENES = (500, 1000, 200)


def experts(given: argparse.Namespace) -> None:
    for plan in train_experts.PLAIN_PLANS if given.plain else train_experts.FINE_PLANS:
        if given.only in (None, plan.name):
            train_experts.train_expert(plan, given.out, train_experts.scenes_for(plan), say)
            train_experts.export(plan.component, given.out, given.out / "weights")


def model(given: argparse.Namespace) -> None:
    settings = parse_overrides(given.set)
    asked = [stage for stage in EVERY_STAGE if stage.name == given.only]
    for stage in asked or train_model.stages(given.out, plain=given.plain):
        train_model.train_stage(stage, given.out, settings)
        if stage.name in train_model.MODELS and not several_processes():
            train_model.export_model(given.out, given.out / "weights", stage)


def everything(given: argparse.Namespace) -> None:
    experts(given)
    model(given)


def export(given: argparse.Namespace) -> None:
    to = given.to or given.out / "weights"
    if given.what in ("experts", "all"):
        for component in dict.fromkeys(plan.component for plan in train_experts.FINE_PLANS):
            step = train_experts.export(component, given.out, to)
            say(f"{component}: weights of step {step}")
    for stage in train_model.PLAIN_STAGES if given.plain else train_model.STAGES:
        if stage.name in train_model.MODELS and given.what in (stage.name, "all"):
            train_model.export_model(given.out, to, stage)


def measured(given: argparse.Namespace) -> None:
    figures: dict[str, Any] = expert_figures(given.weights, given.split, given.scenes, fine=not given.plain)
    if given.out is not None:
        encoder: Any = train_experts.trained("tiny-vit", given.out)[0]
        dataset = train_experts.scenes(given.split, given.scenes, fine=not given.plain)
        if given.plain:
            figures["encoder"] = measure_experts.measure_encoder(encoder, dataset)
        else:
            segmenter: Any = train_experts.trained("tiny-segmenter", given.out)[0]
            figures["looks"] = measure_experts.measure_looks(encoder, segmenter, dataset)
    say(json.dumps(figures, indent=1))


def probed(given: argparse.Namespace) -> None:
    """What each expert carries; fails where that is not as it is meant."""
    names = ("tiny-vit", "tiny-detector", "tiny-segmenter")
    encoder, detector, segmenter = (train_experts.build_expert(name, given.weights) for name in names)
    dataset = train_experts.scenes(given.split, given.things)  # each has one at least
    found = probe_experts.probe(*probe_experts.describe(encoder, detector, segmenter, dataset, given.things))
    say(json.dumps({"split": given.split, **found.to_json()}, indent=1) if given.json else probe_experts.table(found))
    if found.otherwise():
        raise LyricsError("not as meant: " + "; ".join(found.otherwise()))


def expert_figures(weights: Path, split: str, scenes: int, *, fine: bool = True) -> dict[str, Any]:
    tagger, detector, segmenter = (
        train_experts.build_expert(name, weights, fine=fine)
        for name in ("tiny-tagger", "tiny-detector", "tiny-segmenter")
    )
    dataset = train_experts.scenes(split, scenes, fine=fine)
    return {"split": split, **measure_experts.measure(tagger, detector, segmenter, dataset)}


def aligned(given: argparse.Namespace) -> None:
    """What stage 1 taught, and its gates; fails where one is not passed. Of plain scenes there are no gates."""
    if given.plain:
        if given.out is None:
            raise LyricsError("--plain: nothing of it ships; give the folder of its runs with --out.")
        stage = next(stage for stage in train_model.PLAIN_STAGES if stage.recipe == "tiny-plain-stage1")
        model = train_model.trained_model(train_model.stage_config(stage, given.out))
        say(json.dumps(alignment_figures(model, given.split, given.scenes, attributes="plain"), indent=1))
        return
    named = {stage.name: stage for stage in train_model.FINE_STAGE1}
    if (name := given.stage or train_model.FINE_STAGE1[-1].name) not in named:
        raise LyricsError(f"--stage {name}: there are {', '.join(named)}.")
    if given.out is None:
        model = build_model(given.model).eval()
    else:
        model = train_model.trained_model(train_model.stage_config(named[name], given.out))
    figures, found = stage1_gates.measure_gates(
        model, given.split, scenes=given.scenes, probes=given.probes, say=progress
    )
    say(json.dumps(figures, indent=1))
    if missed := [f"{gate.name} {gate.share:.3f}, wanted {gate.least:.3f}" for gate in found if not gate.passed]:
        raise LyricsError("gates that are not passed: " + "; ".join(missed))


def alignment_figures(model: LyricsModel, split: str, scenes: int, attributes: str = "fine") -> dict[str, Any]:
    dataset = build_dataset("lyrics-vl/scenes", {"split": split, "task": "caption", "attributes": attributes})
    found = alignment(model, dataset, samples=scenes, say=progress)
    shares = {name: {"share": round(share, 4), "of": count} for name, (share, count) in sorted(found.shares.items())}
    captions = {name: round(score, 4) for name, score in found.caption_scores.items()}
    figures = {"split": split, "samples": found.samples, **shares, "captions": captions}
    return {**figures, "notes": found.notes} if found.notes else figures


def card(given: argparse.Namespace) -> None:
    """All figures of the card: of the experts, of stage 1, of the whole model, with another scene's soft tokens, too.

    Answers that are in ``given.out`` are not made again.
    """
    of_experts, of_stage1, of_whole = (min(most, given.scenes or most) for most in CARD_SCENES)
    built, about = asked_benchmarks("scenes", None, given.split, [f"scenes.scenes={of_whole}"])
    (whole,) = evaluate(
        lambda: build_model("lyrics-tiny").eval(),
        built,
        given.out,
        about={name: {"model": "lyrics-tiny", **known} for name, known in about.items()},
        conditions=[Condition(soft="shuffled")],
        progress=lambda name, done, total: progress(f"{done} of {total} answers"),
    )
    figures = {
        "experts": expert_figures(trained_weights.WEIGHTS, given.split, of_experts),
        "lyrics-tiny-stage1": alignment_figures(build_model("lyrics-tiny-stage1"), given.split, of_stage1),
        "lyrics-tiny": {name: value for name, value in whole.to_json().items() if name != "details"},
        "conditions": whole.details["conditions"],
    }
    say(json.dumps(figures, indent=1))


def read(given: argparse.Namespace) -> None:
    options = {"split": given.split, "plain": True, "repeat": False, "box_error": 0.06, "max_objects": given.objects}
    if given.stage is None:
        model = build_model("lyrics-tiny", overrides={"refiner": None}).eval()
    else:
        stage = next(stage for stage in EVERY_STAGE if stage.name == given.stage)
        model = train_model.trained_model(train_model.stage_config(stage, given.out))
    options["attributes"] = "plain" if given.stage in [one.name for one in train_model.PLAIN_TEXTS] else "fine"
    found = reading_accuracy(model.language_model, build_dataset("lyrics-vl/scene-texts", options), given.scenes)
    say(json.dumps({kind: {"share": round(share, 4), "of": count} for kind, (share, count) in found.items()}, indent=1))


def annotate(given: argparse.Namespace) -> None:
    if not given.to.parent.is_dir():
        raise LyricsError(f"--to {given.to}: there is no folder {given.to.parent}; make it first.")
    dataset = train_experts.scenes(given.split, given.scenes)
    with given.to.open("w", encoding="utf-8") as file:
        for row in range(given.scenes):
            (picture,), (objects,) = train_experts.drawn(dataset, [row])
            truth = Refinement(picture.size, objects=objects, name=f"{given.split}/{row}")
            file.write(json.dumps(truth.to_json()) + "\n")
    say(f"{given.to}: what {given.scenes} scenes hold, for the experts named cached")


def say(line: str) -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """Raises ``ValueError``, of which argparse makes a message, unless it is at least 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True)

    stage = stages.add_parser("experts", help="train the image encoder, tagger, detector and segmenter")
    stage.add_argument("--out", type=Path, required=True, help="folder for checkpoints and weights")
    names = dict.fromkeys(plan.name for plan in (*train_experts.FINE_PLANS, *train_experts.PLAIN_PLANS))
    stage.add_argument("--only", choices=list(names), help="this one alone")
    stage.add_argument("--plain", action="store_true", help="those for plain scenes")
    stage.set_defaults(run=experts)

    stage_names = list(dict.fromkeys(one.name for one in EVERY_STAGE))
    stage = stages.add_parser("model", help="train the language model on text, then stage 1 and stage 2")
    stage.add_argument("--out", type=Path, required=True, help="folder for the runs and weights")
    stage.add_argument("--only", choices=stage_names, help="this stage alone")
    stage.add_argument("--plain", action="store_true", help="lyrics-tiny-plain")
    stage.add_argument("--set", action="append", metavar="PATH=VALUE", help="change the stages' configurations")
    stage.set_defaults(run=model)

    stage = stages.add_parser("all", help="experts, then model")
    stage.add_argument("--out", type=Path, required=True, help="folder for checkpoints, runs and weights")
    stage.add_argument("--plain", action="store_true", help="lyrics-tiny-plain")
    stage.set_defaults(run=everything, only=None, set=None)

    stage = stages.add_parser("export", help="write weights of the newest checkpoints")
    stage.add_argument("--what", choices=["experts", *train_model.MODELS, "all"], default="all")
    stage.add_argument("--out", type=Path, required=True, help="folder with the checkpoints")
    stage.add_argument("--to", type=Path, help="folder for the weights; OUT/weights unless given")
    stage.add_argument("--plain", action="store_true", help="lyrics-tiny-plain")
    stage.set_defaults(run=export)

    stage = stages.add_parser("measure", help="tags, boxes and masks on scenes that were not trained on")
    stage.add_argument("--weights", type=Path, default=trained_weights.WEIGHTS, help="the shipped ones unless given")
    stage.add_argument("--split", choices=["validation", "test", "held-out"], default="test")
    stage.add_argument("--scenes", type=positive, default=1000)
    stage.add_argument("--out", type=Path, help="folder with the checkpoints: measures also what their heads tell")
    stage.add_argument("--plain", action="store_true", help="experts for plain scenes, on plain scenes")
    stage.set_defaults(run=measured)

    stage = stages.add_parser("probe", help="what each expert carries: linear probes by attribute")
    stage.add_argument("--weights", type=Path, default=trained_weights.WEIGHTS, help="the shipped ones unless given")
    stage.add_argument("--split", choices=["validation", "test"], default="test")
    stage.add_argument("--things", type=positive, default=3000)
    stage.add_argument("--json", action="store_true", help="figures in place of a table")
    stage.set_defaults(run=probed)

    stage = stages.add_parser("align", help="what stage 1 taught, and whether it passes its gates")
    one = stage.add_mutually_exclusive_group()
    one.add_argument("--model", default="lyrics-tiny-stage1", help="a preset")
    one.add_argument("--out", type=Path, help="folder with a run of stage 1, measured in place of a preset")
    stage.add_argument("--split", choices=["validation", "test", "held-out"], default="test")
    stage.add_argument("--scenes", type=positive, default=1000)
    stage.add_argument("--plain", action="store_true", help="stage 1 of lyrics-tiny-plain, by --out")
    stage.add_argument("--stage", help="with --out, which of its stages; the last unless given")
    stage.add_argument("--probes", type=positive, default=1500, help="scenes of one thing for the probes")
    stage.set_defaults(run=aligned)

    stage = stages.add_parser(
        "card", help="all figures of the model card: experts, stage 1, and the whole model's answers"
    )
    stage.add_argument("--split", choices=["validation", "test", "held-out"], default="test")
    stage.add_argument("--scenes", type=positive, help="at most so many scenes for each figure, for a quick look")
    stage.add_argument("--out", type=Path, required=True, help="folder for the answers")
    stage.set_defaults(run=card)

    stage = stages.add_parser("read", help="questions about written scenes, answered by the packaged language model")
    stage.add_argument("--split", choices=["validation", "test", "held-out"], default="test")
    stage.add_argument("--scenes", type=positive, default=100)
    stage.add_argument("--objects", type=int, default=8, help="objects of a scene at most")
    texts = [one.name for one in EVERY_STAGE if one.recipe == "tiny-text"]
    stage.add_argument("--stage", choices=list(dict.fromkeys(texts)), help="after this stage, by a run")
    stage.add_argument("--out", type=Path, default=Path("runs/tiny"), help="with --stage: the folder with its run")
    stage.set_defaults(run=read)

    stage = stages.add_parser(
        "annotate", help="write what scenes hold as an objects.jsonl, to evaluate without the experts' errors"
    )
    stage.add_argument("--split", choices=["validation", "test", "held-out"], default="test")
    stage.add_argument("--scenes", type=positive, default=100)
    stage.add_argument("--to", type=Path, required=True, help="the file")
    stage.set_defaults(run=annotate)

    given = parser.parse_args()
    try:
        given.run(given)
    except LyricsError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
