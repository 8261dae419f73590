"""A model and a data set that cost nothing, with the interface that training uses: everything about training is tested
with them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lyrics.core.data.collate import InstructionExamples, PretrainExamples
from lyrics.core.data.stream import Example
from lyrics.core.geometry import Frame
from lyrics.core.language.prompts import Exchange
from lyrics.core.pictures.processor import ModelImages
from lyrics.core.runs.config import TrainConfig, load_config
from lyrics.core.stage1.state import Loss
from lyrics.core.types import ImageBatch, Sample

SIDE, WIDTH, WORDS = 4, 16, 11


class Numbers:
    """Row i is a picture of noise and a caption of ``i % 5`` words, so that batches have different numbers of words."""

    def __init__(self, rows: int = 97) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Sample:
        caption = " ".join(f"w{(index * 7 + k) % WORDS}" for k in range(index % 5))
        return Sample(image=str(index), captions=(caption,), source=f"numbers {index}")

    def picture(self, sample: Sample) -> Image.Image:
        assert sample.image is not None
        noise = np.random.default_rng(int(sample.image)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return Image.fromarray(noise)


def images_of(examples: Sequence[Example]) -> ModelImages:
    pictures = [example.picture for example in examples]
    pixels = torch.stack([torch.from_numpy(np.asarray(one, dtype=np.float32).copy()) / 255 - 0.5 for one in pictures])
    frames = tuple(Frame.of(SIDE, SIDE) for _ in examples)
    names = tuple(example.sample.image or "" for example in examples)
    sizes = tuple((SIDE, SIDE) for _ in examples)
    return ModelImages(names, sizes, {"image_encoder": ImageBatch(pixels.permute(0, 3, 1, 2), frames, names)})


def collate_pretrain(examples: Sequence[Example]) -> PretrainExamples:
    return PretrainExamples(
        images_of(examples),
        tuple(example.sample.captions[0] for example in examples),
        tuple(example.position for example in examples),
        tuple(example.row for example in examples),
    )


def collate_instruct(examples: Sequence[Example]) -> InstructionExamples:
    dialogues = tuple((Exchange("say", example.sample.captions[0], (i,)),) for i, example in enumerate(examples))
    return InstructionExamples(images_of(examples), dialogues, tuple(example.position for example in examples))


class Trunk(nn.Sequential):
    """With a forward of its own: torch.compile leaves torch's alone."""

    compiled_alone = True

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for part in self:
            hidden = part(hidden)
        return hidden


class StandIn(nn.Module):
    """Frozen features, a trained trunk with dropout and query tokens, a head per stage.

    ``icg`` has a term per word, ``msp`` a term per word of captions longer than three words, so none in some batches,
    and ``extra`` is a parameter that only ``msp`` uses.
    """

    def __init__(self, dropout: float = 0.1, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3 * SIDE * SIDE, WIDTH).requires_grad_(False)
        self.query_tokens_QD = nn.Parameter(torch.randn(2, WIDTH) * 0.1)
        self.trunk = Trunk(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Dropout(dropout))
        self.head = nn.Linear(WIDTH, WORDS)
        self.extra = nn.Parameter(torch.zeros(WIDTH))
        self.answers = nn.Linear(WIDTH, WORDS)
        self.to(dtype)
        self.poison: Mapping[int, str] = {}  # position -> the loss that becomes nan there

    def trainable_parameters(self, stage: str) -> dict[str, nn.Parameter]:
        frozen = ("encoder.", "answers.") if stage == "pretrain" else ("encoder.", "head.", "extra")
        found = {}
        for name, parameter in self.named_parameters():
            trained = not name.startswith(frozen)
            parameter.requires_grad_(trained)
            if trained:
                found[name] = parameter
        return found

    def _words(
        self, batch: Any, captions: Sequence[str], head: nn.Module, least: int, shift: torch.Tensor | float = 0.0
    ) -> Loss:
        pixels_BCHW = batch.images.to("cpu", self.encoder.weight.dtype).by_expert["image_encoder"].pixels_BCHW
        with torch.no_grad():
            features_BD = self.encoder(pixels_BCHW.flatten(1))
        hidden_BD = self.trunk(features_BD + self.query_tokens_QD.mean(0)) + shift
        logits_BW = head(hidden_BD).log_softmax(-1)
        total, count = logits_BW.sum() * 0, 0
        for row, caption in zip(logits_BW, captions, strict=True):
            words = [int(word[1:]) for word in caption.split()]
            if len(words) >= least:
                total = total - row[words].sum()
                count += len(words)
        return Loss(total, count)

    def _poisoned(self, batch: Any, losses: dict[str, Loss]) -> dict[str, Loss]:
        for position, name in self.poison.items():
            if position in batch.positions and name in losses:
                losses[name] = Loss(losses[name].sum * float("nan"), losses[name].count)
        return losses

    def pretraining_step(self, batch: PretrainExamples, *, seed: int, step: int) -> dict[str, Loss]:
        icg = self._words(batch, batch.captions, self.head, 1)
        losses = {"icg": icg}
        if any(len(caption.split()) > 3 for caption in batch.captions):
            losses["msp"] = self._words(batch, batch.captions, self.head, 4, self.extra)
        else:
            losses["msp"] = Loss(icg.sum.detach() * 0, 0)
        return self._poisoned(batch, losses)

    def instruction_step(self, batch: InstructionExamples) -> dict[str, Loss]:
        captions = [dialogue[0].answer or "" for dialogue in batch.dialogues]
        return self._poisoned(batch, {"answer": self._words(batch, captions, self.answers, 1)})


def config(out: Path | str, stage: str = "pretrain", **changes: Any) -> TrainConfig:
    """A short run; ``a__b`` in a keyword stands for ``a.b``."""
    base = {
        "stage": stage,
        "out": str(out),
        "device": "cpu",
        "model": {
            "spec": "lyrics-tiny",
            "overrides": {"objectives": {"icg": "icg", "msp": {"use": "msp", "weight": 0.5}}},
        },
        "data": {"sets": {"numbers": {"use": "scenes"}}, "augmentation": None, "workers": 0},
        "optimization": {"steps": 12, "global_batch": 8, "learning_rate": 1e-2},
        "checkpoint": {"every_steps": 4},
        "logging": {"trackers": []},
    }
    return load_config(base, {path.replace("__", "."): value for path, value in changes.items()})


COLLATE = {"pretrain": collate_pretrain, "instruct": collate_instruct}


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A number that differs when a bit differs."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].detach().reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    return f"{total:08x}"
