"""How the shipped experts were made: trained one after the other on scenes that are drawn as they are needed, resumable
at any step.

Batch ``k`` of an expert is rows ``k * batch`` to ``(k + 1) * batch`` of the data set, so no data state is kept: a
stopped training goes on from its newest checkpoint as if it had not been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from lyrics.core.contracts import BuildContext, Dataset
from lyrics.core.data.build import build_dataset
from lyrics.core.data.draws import generator
from lyrics.core.errors import WeightsError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.pictures.processor import prepare
from lyrics.core.registry.component import Options
from lyrics.core.runs.checkpoint import Checkpoint, load, newest_valid, prune, remove_leftovers, save
from lyrics.core.runs.disk import Disk
from lyrics.core.trained import load_parameters
from lyrics.core.training.optimizer import load_optimizer, optimizer_tensors
from lyrics.core.types import DetectedObject, ImageBatch, Preprocessing, Sample
from lyrics.plugins.tiny import TinyDetectorOptions, TinySegmenterOptions, TinyTaggerOptions, TinyVitOptions
from lyrics.plugins.tiny import detector as detector_file
from lyrics.plugins.tiny import segmenter as segmenter_file
from lyrics.plugins.tiny import tagger as tagger_file
from lyrics.plugins.tiny import vit as vit_file
from lyrics.plugins.tiny.expert_losses import (
    EncoderWithNames,
    Objects,
    adamw,
    detector_loss,
    encoder_loss,
    fit,
    segmenter_loss,
    tagger_loss,
)
from lyrics.plugins.tiny.expert_vocabulary import NOUNS, VOCABULARY, word_tag
from lyrics.plugins.tiny.looks import (
    EncoderWithLooks,
    SegmenterWithLooks,
    encoder_looks_loss,
    seen_objects,
    segmenter_looks_loss,
)
from lyrics.plugins.tiny.presets import FINE_OPTIONS
from lyrics.plugins.tiny.trained_weights import OPTIONS_KEY, list_files, load_weights, weights_file

Say = Callable[[str], None]

#: Steps between two checkpoints, and between two lines of the log.
SAVE_EVERY, LOG_EVERY = 100, 20
#: Boxes that the segmenter is trained with are off by up to this share of their sides at each edge, as a detector's
#: are.
BOX_JITTER = 0.06


@dataclass(frozen=True)
class ExpertTraining:
    """How one expert is trained.

    ``after`` names the training that lends it its first weights: the layers that they share, or all.
    """

    component: str
    steps: int
    batch: int
    learning_rate: float
    after: str | None = None
    #: The row of its first image.
    first_row: int = 0
    #: Its folder; one expert may be trained more than once.
    name: str = ""
    #: The most objects of a scene. Crowded scenes have more small things on large ones, which are what is missed.
    max_objects: int = 8
    #: Whether it is for fine scenes, with ``FINE_OPTIONS``.
    fine: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.component)


#: In the order of training. The last one of a component is the one that ships.
PLANS = (
    ExpertTraining("tiny-detector", steps=1200, batch=16, learning_rate=2e-3),
    ExpertTraining("tiny-segmenter", steps=300, batch=16, learning_rate=2e-3, after="tiny-detector"),
    ExpertTraining("tiny-vit", steps=2500, batch=16, learning_rate=1e-3, after="tiny-detector"),
    ExpertTraining(
        "tiny-detector",
        steps=2800,
        batch=16,
        learning_rate=1.5e-3,
        after="tiny-detector",
        first_row=1200 * 16,
        name="tiny-detector-2",
    ),
    ExpertTraining(
        "tiny-detector",
        steps=2000,
        batch=32,
        learning_rate=1e-3,
        after="tiny-detector-2",
        first_row=4000 * 16,
        name="tiny-detector-3",
    ),
    ExpertTraining(
        "tiny-detector",
        steps=1800,
        batch=32,
        learning_rate=1e-3,
        after="tiny-detector-3",
        first_row=8000 * 16,
        name="tiny-detector-4",
        max_objects=14,
    ),
    ExpertTraining("tiny-tagger", steps=1000, batch=16, learning_rate=2e-3, after="tiny-detector-2"),
    ExpertTraining(
        "tiny-tagger",
        steps=1200,
        batch=32,
        learning_rate=1e-3,
        after="tiny-tagger",
        first_row=12000 * 16,
        name="tiny-tagger-2",
        max_objects=14,
    ),
)

#: The experts for fine scenes, in a folder of their own.
FINE_PLANS = (
    ExpertTraining("tiny-detector", steps=1500, batch=16, learning_rate=2e-3, fine=True),
    ExpertTraining("tiny-vit", steps=1500, batch=32, learning_rate=1e-3, fine=True),
    ExpertTraining("tiny-segmenter", steps=2000, batch=16, learning_rate=2e-3, fine=True),
    # A bite out of a shape is seen once shapes are: who lies on whom is learned last.
    ExpertTraining(
        "tiny-segmenter",
        steps=600,
        batch=16,
        learning_rate=1e-3,
        after="tiny-segmenter",
        first_row=2000 * 16,
        name="tiny-segmenter-2",
        fine=True,
    ),
    ExpertTraining(
        "tiny-segmenter",
        steps=800,
        batch=16,
        learning_rate=1e-3,
        after="tiny-segmenter-2",
        first_row=2600 * 16,
        name="tiny-segmenter-3",
        fine=True,
    ),
    ExpertTraining("tiny-tagger", steps=800, batch=16, learning_rate=2e-3, after="tiny-detector", fine=True),
)

_OPTIONS: Mapping[str, type[Options]] = {
    "tiny-detector": TinyDetectorOptions,
    "tiny-tagger": TinyTaggerOptions,
    "tiny-segmenter": TinySegmenterOptions,
    "tiny-vit": TinyVitOptions,
}
_BUILDS: Mapping[str, Callable[[Any, BuildContext], nn.Module]] = {
    "tiny-detector": detector_file.build,
    "tiny-tagger": tagger_file.build,
    "tiny-segmenter": segmenter_file.build,
    "tiny-vit": vit_file.build,
}
_FINE_LOSSES: Mapping[str, Callable[[Any, ImageBatch, Any], torch.Tensor]] = {
    "tiny-detector": detector_loss,
    "tiny-tagger": tagger_loss,
    "tiny-segmenter": segmenter_looks_loss,
    "tiny-vit": encoder_looks_loss,
}
_LOSSES: Mapping[str, Callable[[Any, ImageBatch, Any], torch.Tensor]] = {
    "tiny-detector": detector_loss,
    "tiny-tagger": tagger_loss,
    "tiny-segmenter": segmenter_loss,
    "tiny-vit": encoder_loss,
}


def options_of(component: str, *, fine: bool) -> Options:
    """What an expert is built with: its defaults, or those for fine scenes."""
    return _OPTIONS[component](**(FINE_OPTIONS[component] if fine else {}))


def build_expert(component: str, folder: Path | None = None, *, fine: bool = False) -> Any:
    """An expert in evaluation mode: with the weights of ``folder``, or untrained, the same every time.

    Raises ``WeightsError`` for a file that is missing or does not fit.
    """
    options = options_of(component, fine=fine)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expert = _BUILDS[component](options, BuildContext("random"))
    if folder is not None:
        load_weights(expert, component, options, folder)
    return expert.eval()


def train_expert(plan: ExpertTraining, out: Path, dataset: Dataset, say: Say = print) -> nn.Module:
    """Train one expert, or go on with it, with checkpoints in ``out/COMPONENT``. What is finished is only read back.

    Returns the expert, within what it is trained with if there is more of it.

    Raises ``WeightsError`` when ``out`` holds a training of another plan, or not the one that this goes on from;
    ``CheckpointError`` for checkpoints of another model.
    """
    module = _trainable(plan.component, fine=plan.fine)
    parameters = dict(module.named_parameters())
    optimizer = adamw(module)
    disk, folder = Disk(), out / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(disk, folder)
    done = 0
    if newest := newest_valid(folder, say):
        checkpoint = load(newest)
        if checkpoint.state["plan"] != asdict(plan):
            raise WeightsError(
                f"{folder} holds a training by another plan, {checkpoint.state['plan']}; give another folder, or "
                "delete it."
            )
        load_parameters(parameters, checkpoint.trained, str(newest))
        load_optimizer(optimizer, parameters, checkpoint.optimizer, str(newest))
        done = checkpoint.step
    elif plan.after is not None:
        lent = _newest(plan.after, out).trained
        trunk = {name: tensor for name, tensor in lent.items() if "trunk." in name}
        borrowed = _borrow(parameters, lent if plan.name != plan.component else trunk)
        say(f"{plan.name}: {borrowed} of {len(parameters)} tensors begin as those of {plan.after}")
    last = [time.perf_counter(), float(done)]

    def after_step(step: int, loss: float) -> None:
        if step % LOG_EVERY == 0 or step == plan.steps:
            seconds, (last[0], last[1]) = time.perf_counter() - last[0], (time.perf_counter(), step - last[1])
            say(f"{plan.name}: step {step} of {plan.steps}, loss {loss:.4f}, {seconds / last[1]:.3f} s/step")
            last[1] = step
        if step % SAVE_EVERY == 0 or step == plan.steps:
            trained = {name: parameter.detach() for name, parameter in parameters.items()}
            state = {"step": step, "plan": asdict(plan)}
            save(disk, folder, Checkpoint(trained, optimizer_tensors(optimizer, parameters), state), {})
            prune(disk, folder, keep=2)

    fit(
        module,
        batches(dataset, plan, expert_of(module).preprocessing, first=done),
        (_FINE_LOSSES if plan.fine else _LOSSES)[plan.component],
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        optimizer=optimizer,
        done=done,
        after_step=after_step,
    )
    return module


def expert_of(module: nn.Module) -> Any:
    """The part of what is trained that is kept."""
    if isinstance(module, SegmenterWithLooks):
        return module.segmenter
    return module.encoder if isinstance(module, (EncoderWithNames, EncoderWithLooks)) else module


def _trainable(component: str, *, fine: bool) -> nn.Module:
    expert: Any = build_expert(component, fine=fine)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if component == "tiny-vit":
            return EncoderWithLooks(expert) if fine else EncoderWithNames(expert, VOCABULARY)
        trained: nn.Module = SegmenterWithLooks(expert) if fine and component == "tiny-segmenter" else expert
        return trained


def _newest(name: str, out: Path) -> Checkpoint:
    newest = newest_valid(out / name, print)
    if newest is None:
        raise WeightsError(f"{out} holds no training of {name}; train it first.")
    return load(newest)


@torch.no_grad()
def _borrow(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> int:
    """Copies the tensors of the same name and shape; returns how many."""
    borrowed = 0
    for name, parameter in parameters.items():
        lent = tensors.get(name, tensors.get(name.removeprefix("encoder.").removeprefix("segmenter.")))
        if lent is not None and lent.shape == parameter.shape:
            parameter.copy_(lent)
            borrowed += 1
    return borrowed


def scenes(split: str, count: int, max_objects: int = 8, *, fine: bool = False) -> Dataset:
    """The first ``count`` rows of a split of ``scenes``."""
    options = {"split": split, "scenes": count, "max_objects": max_objects}
    return build_dataset("scenes", {**options, "attributes": "fine" if fine else "plain"})


def scenes_for(plan: ExpertTraining) -> Dataset:
    """All scenes that a training draws, and those before its first."""
    return scenes("train", plan.first_row + plan.steps * plan.batch, plan.max_objects, fine=plan.fine)


def annotated(sample: Sample, size_px: tuple[int, int]) -> tuple[DetectedObject, ...]:
    """All that can be named in a scene of ``size_px`` (width, height): its objects, and its words with their whole box
    as mask.

    In a fine scene also what they look like.
    """
    fine = "ground" in sample.extra
    words = []
    for word in sample.extra["words"]:
        box = Box(*word["box_norm"])
        tag = NOUNS[-1] if fine else word_tag(word["text"])
        words.append(DetectedObject(tag, box, 1.0, Mask.from_box(box, size_px)))
    objects = (*sample.objects, *words)
    return seen_objects(sample, objects) if fine else objects


def drawn(dataset: Dataset, rows: Sequence[int]) -> tuple[list[Image], list[tuple[DetectedObject, ...]]]:
    """The images of some rows, and what is in them."""
    pictures, objects = [], []
    for row in rows:
        sample = dataset[row]
        pictures.append(dataset.picture(sample))
        objects.append(annotated(sample, pictures[-1].size))
    return pictures, objects


def batches(
    dataset: Dataset, plan: ExpertTraining, preprocessing: Preprocessing, *, first: int = 0
) -> Iterator[tuple[ImageBatch, Objects]]:
    """The plan's batches from batch ``first`` on, to the end of the data set."""
    for start in range(plan.first_row + first * plan.batch, len(dataset) - plan.batch + 1, plan.batch):
        rows = range(start, start + plan.batch)
        pictures, objects = drawn(dataset, rows)
        if plan.component == "tiny-segmenter":
            objects = [_jittered(found, row) for found, row in zip(objects, rows, strict=True)]
        yield prepare(pictures, preprocessing), objects


def _jittered(objects: Sequence[DetectedObject], row: int) -> tuple[DetectedObject, ...]:
    """The objects with boxes that are a little off, the same for the same row; masks stay."""
    draws = generator(0, "tiny-segmenter: boxes", row).uniform(-BOX_JITTER, BOX_JITTER, (len(objects), 4))
    moved = []
    for obj, (x1, y1, x2, y2) in zip(objects, draws.tolist(), strict=True):
        box = obj.box_norm
        width, height = box.x2 - box.x1, box.y2 - box.y1
        off = Box.clip(box.x1 + x1 * width, box.y1 + y1 * height, box.x2 + x2 * width, box.y2 + y2 * height)
        assert off is not None
        moved.append(replace(obj, box_norm=off))
    return tuple(moved)


def trained(component: str, out: Path) -> tuple[nn.Module, int]:
    """What ``train_expert`` has made so far, in evaluation mode, and its step.

    Raises ``WeightsError`` where there is nothing.
    """
    module, checkpoint = _trained(component, out)
    return module, checkpoint.step


def _trained(component: str, out: Path) -> tuple[nn.Module, Checkpoint]:
    made = [plan.name for plan in (*PLANS, *FINE_PLANS) if plan.component == component and (out / plan.name).is_dir()]
    name = made[-1] if made else component
    checkpoint = _newest(name, out)
    module = _trainable(component, fine=checkpoint.state["plan"]["fine"])
    load_parameters(dict(module.named_parameters()), checkpoint.trained, str(out / name))
    return module.eval(), checkpoint


def export(component: str, out: Path, folder: Path) -> int:
    """Write the expert to ``folder`` in half precision as far as it is trained, and its sha256 to the list there.

    Returns its step.
    """
    module, checkpoint = _trained(component, out)
    options = options_of(component, fine=checkpoint.state["plan"]["fine"])
    state = {name: tensor.half().contiguous() for name, tensor in expert_of(module).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    told = {"format": "pt", OPTIONS_KEY: options.model_dump_json(exclude_unset=True)}
    (folder / weights_file(component)).write_bytes(tensors_to_bytes(state, told))
    list_files(folder)
    return checkpoint.step
