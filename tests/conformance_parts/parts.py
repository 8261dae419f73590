"""The parts. Each is as simple as its contract allows; ``self.fault`` breaks it in one respect."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.core.language.past import Past
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.masks import Mask
from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs, Text, full
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
        if self.fault == "unread":
            self.pooling = nn.Linear(2, 2)
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
        masks = []
        for detections, frame in zip(found, images.frames, strict=True):
            width, height = frame.size if self.fault == "canvas masks" else frame.original_size
            drawn = (Mask(width, height, (0, width * height)),) * len(detections)
            masks.append(drawn[:-1] if self.fault == "mask count" else drawn)
        exists = mask.float() if self.fault == "float mask" else mask
        return DetectorOutput(tuple(found), tokens, exists, tuple(masks))


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


class Joined:
    """Features of which a fault loses or mixes up those that are joined."""

    def __init__(self, features: Features, fault: str) -> None:
        self.features, self.fault = features, fault

    def followed_by(self, other: Joined) -> Joined:
        if self.fault == "swapped":
            return Joined(other.features.followed_by(self.features), self.fault)
        nothing = replace(other.features, image_tokens_BND=torch.zeros_like(other.features.image_tokens_BND))
        return Joined(self.features.followed_by(nothing), self.fault)


@dataclass(frozen=True)
class Kept:
    """Streams that are laid out when they are run."""

    streams: Sequence[Stream]
    images: int
    local_tokens: Mapping[str, int]

    def pin_memory(self) -> Kept:
        return self


class QueryTransformer(nn.Module):
    """One layer of attention, by the plain definition of streams: row by row, every token as its table says."""

    hidden_size, num_queries, max_positions = 8, 2, 64
    segments = ("V", "C")

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.tokenizer = byte_tokenizer(("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]"))
        self.queries = nn.Parameter(torch.randn(self.num_queries, self.hidden_size))
        self.words = nn.Parameter(torch.randn(300, self.hidden_size))
        self.places = nn.Parameter(torch.randn(self.max_positions, self.hidden_size))
        self.image = nn.Linear(context.image_dim, self.hidden_size)
        self.local = nn.ModuleDict({name: nn.Linear(dim, self.hidden_size) for name, dim in context.local_dims.items()})
        self.attention = nn.Linear(self.hidden_size, 3 * self.hidden_size)
        if self.fault == "idle":
            self.unused = nn.Parameter(torch.zeros(1))
        if self.fault == "forgetful":
            self.moved = random.random()

    def project(self, features: Features) -> Any:
        return Joined(features, self.fault) if self.fault in ("swapped", "far") else features

    def token_logits(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        return hidden_nD @ self.words.T

    def planner(self, image_tokens: int) -> type[Kept]:
        return Kept

    def run_planned(self, planned: Kept, features: Any) -> StreamOutputs | None:
        if features.num_images != planned.images:
            return None
        found = self(planned.streams, features)
        return found if self.fault != "planned" else StreamOutputs.of({("queries", "V"): -found("queries", "V")})

    def seen(self, features: Features) -> torch.Tensor:
        """What the images show: [B, D]."""
        seen_BD = self.image(features.image_tokens_BND).mean(1)
        for name, (tokens, mask) in features.local.items():
            pooled = (self.local[name](tokens) * mask[..., None]).sum(1)
            seen_BD = seen_BD + (pooled / tokens.shape[1] if self.fault == "objects" else pooled)
        if self.fault == "values":
            seen_BD = seen_BD * (float(seen_BD.detach().sum()) + 1)
        return seen_BD + self.moved if self.fault == "forgetful" else seen_BD

    def tokens(self, stream: Stream, seen_BD: torch.Tensor, row: int) -> tuple[torch.Tensor, list[tuple[str, int]]]:
        """Embeddings of a row [L, D], and each token's segment and place in it."""
        rows, names = [], []
        if stream.image_index_R is not None:
            index = row if self.fault == "index" else int(stream.image_index_R[row])
            shown = torch.zeros_like(seen_BD[0]) if self.fault == "blind" else seen_BD[index]
            rows.append(self.queries + shown)
            names += [("V", place) for place in range(self.num_queries)]
        for name, text in stream.text.items():
            length = text.ids_RL.shape[1] if self.fault == "batch" else int(text.lengths_R[row])
            first = text.first_position
            rows.append(self.words[text.ids_RL[row, :length]] + self.places[first : first + length])
            names += [(name, place) for place in range(length)]
        return torch.cat(rows), names

    def allowed(self, stream: Stream, names: list[tuple[str, int]], others: int) -> torch.Tensor:
        """Which token of a row sees which, and the ``others`` of its prefix: bool [L, L + others]."""
        table = []
        for segment, place in names:
            line = []
            for column, other in names:
                how = stream.visibility.get((segment, column), "none")
                how = "none" if self.fault == "deaf" and (segment, column) == ("V", "C") else how
                before = other <= place or self.fault == "peeking"
                line.append(how == "full" or (how == "causal" and before))
            table.append(line + [True] * others)
        return torch.tensor(table, dtype=torch.bool).view(len(names), len(names) + others)

    def forward(self, streams: Sequence[Stream], features: Any) -> StreamOutputs:
        seen_BD = self.seen(features.features if isinstance(features, Joined) else features)
        embedded = {
            stream.name: [self.tokens(stream, seen_BD, row) for row in range(stream.num_rows)] for stream in streams
        }
        found = {}
        for stream in streams:
            hidden = []
            for row, (own_LD, names) in enumerate(embedded[stream.name]):
                prefix = 0 if stream.prefix_row_R is None else int(stream.prefix_row_R[row])
                prefix = row if stream.prefix_row_R is None else prefix
                before = [] if stream.prefix is None else [embedded[stream.prefix][prefix][0]]
                query_LD, key_LD, value_LD = self.attention(torch.cat([own_LD, *before])).chunk(3, dim=-1)
                scores = query_LD[: len(own_LD)] @ key_LD.T
                hides = ~self.allowed(stream, names, sum(len(one) for one in before)).to(scores.device)
                weights = scores.masked_fill(hides, -1e9).softmax(dim=-1)
                hidden.append((own_LD + weights @ value_LD, names))
            for segment, wanted in stream.wanted.items():
                found[stream.name, segment] = self.chosen(hidden, segment, wanted)
        if self.fault == "detached":
            found = {key: value.detach().requires_grad_() for key, value in found.items()}
        return StreamOutputs.of(
            {key: value[..., : 7 if self.fault == "width" else None] for key, value in found.items()}
        )

    def chosen(self, hidden: Sequence[Any], segment: str, wanted: Any) -> torch.Tensor:
        rows = [own_LD[[place for place, (name, _) in enumerate(names) if name == segment]] for own_LD, names in hidden]
        if segment == "V":
            return torch.stack(rows)
        if isinstance(wanted, torch.Tensor):
            return torch.cat(
                [one if self.fault == "all rows" else one[wanted[row, : len(one)]] for row, one in enumerate(rows)]
            )
        return torch.stack([one[0] for one in rows]) if wanted == "first" else torch.cat(rows)


class Rows:
    """A running batch that reads each row again from its beginning."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows: list[torch.Tensor] = []

    def join(self, embeddings_BLD: torch.Tensor, attention_mask_BL: torch.Tensor) -> torch.Tensor:
        new = [row[mask.bool()] for row, mask in zip(embeddings_BLD, attention_mask_BL, strict=True)]
        self.rows += new
        return self._last(new)

    def read(self, ids_R: torch.Tensor) -> torch.Tensor:
        words = self.model.embed(ids_R)
        self.rows = [torch.cat([row, word[None]]) for row, word in zip(self.rows, words, strict=True)]
        return self._last(self.rows)

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in (sorted(rows) if self.model.fault == "muddled" else rows)]

    def _last(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        found = [self.model(row[None], torch.ones(1, len(row), dtype=torch.long))[0, -1] for row in rows]
        return torch.stack(found)


class LanguageModel(nn.Module):
    hidden_size = 8
    max_positions = 512

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.chat_template = "nonsense" if self.fault == "template" else "plain"
        self.adaptation = "anything" if self.fault == "adaptation" else "frozen" if self.fault == "trained" else "full"
        self.tokenizer = byte_tokenizer(("<pad>", "<s>", "</s>"))
        self.words = nn.Parameter(torch.randn(len(self.tokenizer), self.hidden_size))
        self.positions = nn.Parameter(torch.randn(512, self.hidden_size))
        if self.fault == "forgetful":
            self.moved = random.random()
        if self.fault == "merging":
            self.adaptation = "lora"
            self.words.requires_grad_(False)
            self.delta = nn.Parameter(torch.zeros(len(self.tokenizer), self.hidden_size))
            self.lora_merged = False

    def merge_lora(self) -> None:
        """With the fault that there is LoRA at all, it is added twice."""
        self.words.data += 2 * self.delta.data
        self.lora_merged = True

    def unmerge_lora(self) -> None:
        self.words.data -= 2 * self.delta.data
        self.lora_merged = False

    def embed(self, input_ids_BL: torch.Tensor) -> torch.Tensor:
        found = self.words[input_ids_BL]
        return found[..., :4] if self.fault == "width" else found

    packs = True

    @property
    def ends(self) -> list[int]:
        return [self.tokenizer.eos_token_id]

    def running(self) -> Rows | None:
        faults = ("width", "vocabulary", "padding", "forgetful", "values")  # which are told by checks of their own
        return None if self.fault in faults else Rows(self)

    def forward(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor | None,
        positions_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attention_mask_BL is None:
            assert positions_BL is not None
            starts = [] if self.fault == "mixing" else (positions_BL[0, 1:] == 0).nonzero().flatten().tolist()
            lengths = torch.diff(torch.tensor([0, *(start + 1 for start in starts), embeddings_BLD.shape[1]])).tolist()
            parts = embeddings_BLD[:1].split(lengths, dim=1)
            rows = torch.cat([self(part, torch.ones(part.shape[:2], dtype=torch.long)) for part in parts], dim=1)
            rest = [
                self(row[None], None, place[None])
                for row, place in zip(embeddings_BLD[1:], positions_BL[1:], strict=True)
            ]
            return torch.cat([rows, *rest])
        if self.fault == "padding":
            positions = torch.arange(embeddings_BLD.shape[1]).expand(attention_mask_BL.shape)
        else:
            positions = (attention_mask_BL.cumsum(1) - 1).clamp(min=0)
        placed = (embeddings_BLD + self.positions[positions]) * attention_mask_BL[..., None]
        words = self.words + self.delta if self.fault == "merging" and not self.lora_merged else self.words
        if self.fault == "forgetful":
            words = words + self.moved
        if self.fault == "values":
            placed = placed * (float(placed.detach().sum()) + 1)
        if self.fault == "detached":
            placed = placed.detach()
        logits = torch.tanh(placed.cumsum(1)) @ words.T
        return logits[..., :3] if self.fault == "vocabulary" else logits

    @torch.no_grad()
    def generate(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: Any = None,
    ) -> torch.Tensor:
        new = []
        for _ in range(max_new_tokens + (self.fault == "talkative")):
            logits_BV = self(embeddings_BLD, attention_mask_BL)[:, -1]
            if generation_config is not None and generation_config.do_sample and self.fault != "no dice":
                likely_BV = (logits_BV / generation_config.temperature).softmax(-1)
                new.append(torch.multinomial(likely_BV, 1))
            else:
                new.append(logits_BV.argmax(-1, keepdim=True))
            if on_token is not None and not (self.fault == "secretive" and len(new) == 1):
                on_token(int(new[-1]))
            embeddings_BLD = torch.cat([embeddings_BLD, self.embed(new[-1])], dim=1)
            attention_mask_BL = torch.cat([attention_mask_BL, torch.ones_like(new[-1])], dim=1)
        return torch.cat(new, dim=1)

    def generate_scored(
        self,
        embeddings_BLD: torch.Tensor,
        attention_mask_BL: torch.Tensor,
        *,
        keys: Sequence[Hashable] = (),
        past: Past | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads everything again to say how probable it was."""
        if past is None:
            ids_BL = self.generate(embeddings_BLD, attention_mask_BL, **options)
        else:
            ids_BL = self.resume(embeddings_BLD, keys, past, **options)
        if self.fault in ("overconfident", "width", "vocabulary"):
            return ids_BL, torch.zeros(ids_BL.shape)
        whole_BLD = torch.cat([embeddings_BLD, self.embed(ids_BL)], dim=1)
        mask_BL = torch.cat([attention_mask_BL, torch.ones_like(ids_BL)], dim=1)
        with torch.no_grad():
            logits_BLV = self(whole_BLD, mask_BL)[:, embeddings_BLD.shape[1] - 1 : -1]
        return ids_BL, logits_BLV.log_softmax(-1).gather(2, ids_BL[..., None])[..., 0]

    def resume(
        self,
        embeddings_1LD: torch.Tensor,
        keys: Sequence[Hashable],
        past: Past,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        generation_config: Any = None,
    ) -> torch.Tensor:
        """Keeps the embeddings themselves."""
        weights = self.words._version
        if past.state is not None and (past.weights == weights or self.fault == "old weights"):
            shared = len(past.keys) if self.fault == "old prompt" else past.shared(keys)
            embeddings_1LD = torch.cat([past.state[:, :shared], embeddings_1LD[:, shared:]], dim=1)
        past.keys, past.state, past.weights = tuple(keys), embeddings_1LD, weights
        mask_1L = torch.ones(embeddings_1LD.shape[:2], dtype=torch.long)
        return self.generate(
            embeddings_1LD,
            mask_1L,
            max_new_tokens=max_new_tokens,
            on_token=on_token,
            generation_config=generation_config,
        )


class Objective(nn.Module):
    """The mean square of the caption's hidden states, moved by a bias."""

    def __init__(self, options: PartOptions, context: BuildContext) -> None:
        super().__init__()
        self.fault = options.fault
        self.bias = nn.Parameter(torch.zeros(context.query_dim))

    def streams(self, batch: PretrainBatch) -> list[Stream]:
        rows = torch.arange(len(batch))
        if self.fault == "values" and bool(self.bias.any()):
            return []
        text: dict[str, Text] = {"C": batch.caption}
        return [
            Stream(
                "toy",
                full("VGC" if self.fault == "segments" else "VC"),
                batch.sample_B,
                rows,
                text,
                wanted={"C": "all"},
            )
        ]

    def loss(self, state: StepState) -> Loss:
        hidden_nD = state.outputs("toy", "C")
        if self.fault == "comparing":
            hidden_nD = hidden_nD - hidden_nD.mean(0)
        terms = (hidden_nD + self.bias).square().mean(1)
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
        return Image.new("L" if self.fault == "gray" else "RGB", (4, 3), 200)


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
