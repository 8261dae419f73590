"""The parts. Each is as simple as its contract allows; ``self.fault`` breaks it in one respect."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.streams import Features, Stream, StreamOutputs, Text, full
from lyrics.core.tokenizers import byte_tokenizer
from lyrics.core.training.batch import PretrainBatch
from lyrics.core.training.step import Loss, StepState
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing, Sample, SegmenterOutput, Tag
from tests.conformance_parts import PartOptions

PREPROCESSING = Preprocessing("longest", 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Part(nn.Module):
    """What the expert kinds share, faults included."""

    preprocessing = PREPROCESSING
    feature_dim = 4

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        if self.fault == "network":
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        if self.fault == "memory":
            self.table = nn.Parameter(torch.zeros(3, device="cpu"))
        if self.fault == "state":
            self.register_parameter(f"weight_{random.random()}".replace(".", ""), nn.Parameter(torch.zeros(1)))
        self.weight = nn.Parameter(torch.randn(3, self.feature_dim))

    def features(self, images: ImageBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels -> tokens [B,M,4] and where there is a picture [B,M]."""
        if self.fault == "empty" and not len(images):
            raise IndexError("no pictures")
        tokens = images.pixels_BCHW.flatten(2).transpose(1, 2) @ self.weight
        if self.fault == "batch" and len(images):
            tokens = tokens - tokens.mean(dim=0)
        if self.fault == "random":
            tokens = tokens + torch.rand(()) + 0.1
        mask = images.pixel_mask_BHW.flatten(1)
        return tokens, mask

    def name(self, images: ImageBatch, index: int) -> str:
        """Says something about a picture, or with a fault about its company."""
        return f"thing {len(images) if self.fault == 'batch' else images.frames[index].size[0]}"


class ImageEncoder(Part):
    preprocessing = Preprocessing("squash", 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        from lyrics.core.geometry import Frame

        frame = Frame.of(pixels_BCHW.shape[3], pixels_BCHW.shape[2])
        tokens, _ = self.features(ImageBatch(pixels_BCHW, (frame,) * len(pixels_BCHW)))
        if self.fault == "width":
            return tokens[..., :3]
        return tokens.long() if self.fault == "integers" else tokens


class Tagger(Part):
    def forward(self, images: ImageBatch) -> Any:
        self.features(images)
        scores = {"unsorted": (0.2, 0.8), "percent": (80.0, 20.0)}.get(self.fault, (0.8, 0.2))
        found = [[Tag(self.name(images, index), scores[0]), Tag("other", scores[1])] for index in range(len(images))]
        if self.fault == "strings":
            return [[tag.name for tag in tags] for tags in found]
        return found[:1] if self.fault == "count" else found


class Detector(Part):
    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        tokens, mask = self.features(images)
        found = []
        for row in phrases:
            asked = ["something"] if self.fault == "always" and not row else list(row)
            if self.fault == "batch detections" and len(images) > 1:
                asked = asked[:1]
            right = 0.5 + (0.1 * len(images) if self.fault == "batch boxes" else 0)
            box: Any = (0.0, 0.0, 10.0, 10.0) if self.fault == "pixels" else Box(0.1, 0.1, right, 0.5)
            names = [phrase.upper() if self.fault == "invented" else phrase for phrase in asked]
            best = 0.9 - (0.1 * len(images) if self.fault == "batch scores" else 0)
            scores = [best - 0.1 * index for index in range(len(names))]
            if self.fault == "unsorted":
                scores.reverse()
            if self.fault == "percent":
                scores = [100 * score for score in scores]
            found.append(tuple(Detection(*triple) for triple in zip(names, [box] * len(names), scores, strict=True)))
        if self.fault == "width":
            tokens = tokens[..., :3]
        return DetectorOutput(tuple(found), tokens, mask.float() if self.fault == "float mask" else mask)


class Segmenter(Part):
    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        tokens, _ = self.features(images)
        most = max((len(row) for row in boxes), default=0)
        if self.fault == "no boxes" and not most:
            raise ValueError("max() of nothing")
        found_BKD = torch.zeros(len(boxes), most, self.feature_dim)
        mask_BK = torch.zeros(len(boxes), most, dtype=torch.bool)
        masks = []
        for index, (row, frame) in enumerate(zip(boxes, images.frames, strict=True)):
            width, height = frame.size if self.fault == "canvas" else frame.original_size
            drawn = [Mask(width, height, (0, width * height)) for _ in row]
            masks.append(tuple(drawn[:1] if self.fault == "count" else drawn))
            found_BKD[index, : len(row)] = tokens[index, 0] + (len(images) if self.fault == "batch" else 0)
            mask_BK[index, : most if self.fault == "all exist" else len(row)] = True
        if self.fault == "width":
            found_BKD = found_BKD[..., :3]
        return SegmenterOutput(tuple(masks), found_BKD, mask_BK.float() if self.fault == "float mask" else mask_BK)


class QueryTransformer(nn.Module):
    hidden_size, num_queries, max_positions = 8, 2, 64
    segments = ("V", "C")

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.tokenizer = byte_tokenizer(("[PAD]", "[CLS]"))
        self.queries = nn.Parameter(torch.randn(self.num_queries, self.hidden_size))
        self.words = nn.Parameter(torch.randn(300, self.hidden_size))
        self.image = nn.Linear(context.image_dim, self.hidden_size)
        self.local = nn.ModuleDict({name: nn.Linear(dim, self.hidden_size) for name, dim in context.local_dims.items()})

    def forward(self, streams: Sequence[Stream], features: Features) -> StreamOutputs:
        seen_BD = self.image(features.image_tokens_BND).mean(1)
        for name, (tokens, _) in features.local.items():
            pooled = self.local[name](tokens).sum(1)
            seen_BD = seen_BD + (pooled / tokens.shape[1] if self.fault == "objects" else pooled)
        hidden, where, taken = [], {}, 0
        for stream in streams:
            assert stream.image_index_R is not None
            index = torch.arange(stream.num_rows) if self.fault == "index" else stream.image_index_R
            seen_RD = torch.zeros_like(seen_BD[index]) if self.fault == "blind" else seen_BD[index]
            for text in stream.text.values():
                if self.fault != "deaf":
                    mask = torch.ones_like(text.mask_RL) if self.fault == "batch" else text.mask_RL
                    seen_RD = seen_RD + (self.words[text.ids_RL] * mask[..., None]).sum(1)
            hidden.append((self.queries + seen_RD[:, None]).flatten(0, 1))
            rows = stream.num_rows * self.num_queries
            where[stream.name, "V"] = (torch.arange(taken, taken + rows), (stream.num_rows, self.num_queries))
            taken += rows
        return StreamOutputs(torch.cat(hidden)[:, : 7 if self.fault == "width" else None], where)


class LanguageModel(nn.Module):
    hidden_size = 8
    max_positions = 64

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.chat_template = "nonsense" if self.fault == "template" else "plain"
        self.adaptation = "anything" if self.fault == "adaptation" else "frozen" if self.fault == "trained" else "full"
        self.tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"))
        self.words = nn.Parameter(torch.randn(len(self.tokenizer), self.hidden_size))
        self.positions = nn.Parameter(torch.randn(64, self.hidden_size))

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        found = self.words[input_ids_BL]
        return found[..., :4] if self.fault == "width" else found

    def forward(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        if self.fault == "padding":
            positions = torch.arange(embeddings_BLD.shape[1]).expand(attention_mask_BL.shape)
        else:
            positions = (attention_mask_BL.cumsum(1) - 1).clamp(min=0)
        placed = (embeddings_BLD + self.positions[positions]) * attention_mask_BL[..., None]
        logits = torch.tanh(placed.cumsum(1)) @ self.words.T
        return logits[..., :3] if self.fault == "vocabulary" else logits

    @torch.no_grad()
    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        new = []
        for _ in range(max_new_tokens + (self.fault == "talkative")):
            new.append(self(embeddings_BLD, attention_mask_BL)[:, -1:].argmax(-1))
            if on_token is not None and not (self.fault == "secretive" and len(new) == 1):
                on_token(int(new[-1]))
            embeddings_BLD = torch.cat([embeddings_BLD, self.embed(new[-1])], dim=1)
            attention_mask_BL = torch.cat([attention_mask_BL, torch.ones_like(new[-1])], dim=1)
        return torch.cat(new, dim=1)


class Objective(nn.Module):
    """The mean square of the caption's hidden states, moved by a bias."""

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.bias = nn.Parameter(torch.zeros(context.query_dim))

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        rows = torch.arange(len(batch))
        text: dict[str, Text] = {"C": batch.caption}
        return [Stream("toy", full("VC"), batch.sample_B, rows, text, wanted={"C": "all"})]

    def loss(self, state: StepState) -> Loss:
        terms = (state.outputs("toy", "C") + self.bias).square().mean(1)
        if self.fault == "mean":
            return Loss(terms.mean(), 1)
        if self.fault == "one sample" and len(state.batch) == 1:
            return Loss(terms.sum() / 0, len(terms))
        if self.fault == "leftover":
            return Loss(terms.sum() + 1, len(terms))
        count: Any = float(len(terms)) if self.fault == "float count" else len(terms)
        return Loss(terms if self.fault == "vector" else terms.sum(), count)


class Dataset:
    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        self.fault = options.fault
        if self.fault == "open file":
            self.lock = threading.Lock()  # like an open file, it cannot go to another process

    def __len__(self) -> int:
        return 0 if self.fault == "nothing" else 3

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < 3 and self.fault != "endless":
            raise IndexError(index)
        if self.fault == "dicts":
            return {"image": f"{index}.jpg"}
        caption = f"{random.random()}" if self.fault == "random" else f"picture {index}"
        return Sample(f"{index}.jpg", (caption,), source="" if self.fault == "nameless" else f"toy:{index}")

    def picture(self, sample: Sample) -> Image.Image:
        return Image.new("L" if self.fault == "grey" else "RGB", (4, 3), 200)


class Benchmark:
    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        self.fault = options.fault

    def samples(self) -> Iterable[Sample]:
        return [] if self.fault == "nothing" else [Sample("a.jpg", source="toy:0", extra={"answer": "yes"})]

    def prompt(self, sample: Sample) -> str:
        return "" if self.fault == "silent" else "Is it?"

    def score(self, predictions: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, Any]:
        right = sum(p == s.extra["answer"] for p, s in zip(predictions, samples, strict=True))
        if self.fault == "words":
            return {"accuracy": f"{right} of {len(samples)}"}
        return {} if self.fault == "no metric" else {"accuracy": right / len(samples)}


def _builder(kind: type) -> Any:
    def build(options: PartOptions, context: BuildContext) -> Any:
        made = kind(options, context)
        if options.fault == "no module":
            return type("Plain", (), {name: getattr(made, name) for name in dir(made) if not name.startswith("__")})()
        return made

    return build


image_encoder = _builder(ImageEncoder)
tagger = _builder(Tagger)
detector = _builder(Detector)
segmenter = _builder(Segmenter)
query_transformer = _builder(QueryTransformer)
language_model = _builder(LanguageModel)
objective = _builder(Objective)
dataset = _builder(Dataset)
benchmark = _builder(Benchmark)
