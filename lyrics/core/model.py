"""``LyricsModel``: a composed model, and the way of a picture through it.

Shapes: B pictures, N image tokens, Q queries (visual, then grounding), L tokens of the language model, D width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from lyrics.core.images import ImageLike
from lyrics.core.processor import ModelImages, Processor
from lyrics.core.refinement import Refinement
from lyrics.core.refiner import VisualRefiner
from lyrics.core.spatial import SpatialObject, format_objects
from lyrics.core.spec import ModelSpec
from lyrics.core.streams import QUERY_SEGMENTS, Features, SpecialTokens, Stream, Text, full

STREAM = "stage2"


@dataclass(frozen=True)
class Encoded:
    """Pictures as the language model receives them.

    ``soft_tokens_BQD`` are the projected query outputs, D wide as the language model's embeddings. ``refinements`` say what the refiner
    saw, and ``spatial_texts`` how it was written down.
    """

    soft_tokens_BQD: torch.Tensor
    refinements: tuple[Refinement, ...]
    spatial_texts: tuple[str, ...]


class LyricsModel(nn.Module):
    """Image encoder and refiner (both frozen) -> query transformer -> projection -> language model.

    Made by ``lyrics.build_model``. ``spec`` is the fully resolved specification, with the distribution of every part; it is saved with the
    weights.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        refiner: VisualRefiner | None,
        query_transformer: nn.Module,
        language_model: nn.Module,
        objectives: Mapping[str, nn.Module],
        spec: ModelSpec,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.refiner = refiner
        self.query_transformer = query_transformer
        self.projection = nn.Linear(int(query_transformer.hidden_size), int(language_model.hidden_size))  # type: ignore[arg-type]
        self.language_model = language_model
        self.objectives = nn.ModuleDict(objectives)
        self.spec = spec
        experts = {"image_encoder": encoder}
        if refiner is not None:
            experts |= refiner.experts
        self.processor = Processor({name: expert.preprocessing for name, expert in experts.items()})  # type: ignore[misc]

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    def train(self, mode: bool = True) -> Self:
        """Training mode for the parts that are trained; the image encoder and the refiner stay in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(
        self, images: ModelImages, phrases: Sequence[Sequence[str]] | None = None
    ) -> tuple[Features, tuple[Refinement, ...]]:
        """Frozen features of prepared pictures, and what the refiner saw. ``phrases`` take the place of the tagger's tags."""
        dtype = self.projection.weight.dtype
        image_tokens_BND = self.encoder(images.by_expert["image_encoder"].pixels_BCHW)
        if self.refiner is None:
            sizes_and_names = zip(images.sizes_px, images.names, strict=True)
            refinements = tuple(Refinement(size_px, name=name) for size_px, name in sizes_and_names)
            return Features(image_tokens_BND.to(dtype)), refinements
        refined = self.refiner.refine(images, phrases)
        local = {source: (tokens.to(dtype), mask) for source, (tokens, mask) in refined.local.items()}
        return Features(image_tokens_BND.to(dtype), local), refined.refinements

    def encode(
        self,
        pictures: Sequence[ImageLike],
        instructions: Sequence[str] | None = None,
        *,
        phrases: Sequence[Sequence[str]] | None = None,
    ) -> Encoded:
        """Pictures (paths or PIL images) -> soft tokens, one instruction per picture.

        One stream {V, G, S, C} in which everything sees everything (section 3.3: "semantic-aware visual feature extraction"); S is the
        spatial representation and C the instruction, each where the spec's ``sees`` names it. Raises ``ImageError`` naming the picture.
        """
        if instructions is not None and len(instructions) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures need as many instructions, not {len(instructions)}")
        images = self.processor.images(pictures, self.device, dtype=self.projection.weight.dtype)
        features, refinements = self.features(images, phrases)
        spatial_texts = tuple(self._spatial_text(refinement) for refinement in refinements)
        stream = self._stream(spatial_texts, instructions or [""] * len(pictures))
        outputs = self.query_transformer([stream], features)
        queries_BQD = torch.cat([outputs(STREAM, segment) for segment in stream.wanted], dim=1)
        return Encoded(self.projection(queries_BQD), refinements, spatial_texts)

    def _spatial_text(self, refinement: Refinement) -> str:
        objects = [SpatialObject(found.tag, found.box_norm, found.score) for found in refinement.objects]
        return format_objects(objects, self.spec.codec, refinement.size_px)

    def _stream(self, spatial_texts: Sequence[str], instructions: Sequence[str]) -> Stream:
        segments: tuple[str, ...] = self.query_transformer.segments  # type: ignore[assignment]
        special = SpecialTokens.from_tokenizer(self.query_transformer.tokenizer)
        text = {}
        if "spatial" in self.spec.sees and "S" in segments:
            text["S"] = Text.from_lists([[special.bos, *self._query_ids(words)] for words in spatial_texts])
        if "instruction" in self.spec.sees and "C" in segments:
            text["C"] = Text.from_lists([[special.cls, *self._query_ids(words), special.sep] for words in instructions])
        rows = torch.arange(len(spatial_texts))
        queries = [segment for segment in QUERY_SEGMENTS if segment in segments]
        return Stream(
            STREAM,
            visibility=full("".join([*queries, *text])),
            sample_R=rows,
            image_index_R=rows,
            text=text,
            wanted=dict.fromkeys(queries, "all"),
        )

    def _query_ids(self, words: str) -> list[int]:
        """Word pieces of a user's text, which never become special tokens, cut where the query transformer's positions end."""
        longest = int(self.query_transformer.max_positions) - 2  # type: ignore[arg-type]
        ids = self.query_transformer.tokenizer(words, add_special_tokens=False, split_special_tokens=True).input_ids  # type: ignore[operator]
        return list(ids[:longest])

    @torch.no_grad()
    def generate(
        self,
        pictures: Sequence[ImageLike],
        instructions: Sequence[str],
        *,
        phrases: Sequence[Sequence[str]] | None = None,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """One answer per picture and instruction, greedy (section 5.1).

        The language model reads the soft tokens, the spatial representation, and the instruction, in this order.
        """
        encoded = self.encode(pictures, instructions, phrases=phrases)
        if not pictures:
            return []
        tokenizer: Any = self.language_model.tokenizer
        rows = []
        for soft_QD, spatial, instruction in zip(
            encoded.soft_tokens_BQD, encoded.spatial_texts, instructions, strict=True
        ):
            words = f"{spatial}\n{instruction}" if spatial else instruction
            ids = tokenizer(words, add_special_tokens=False, split_special_tokens=True).input_ids
            start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
            before = self._embed(start)
            rows.append(torch.cat([before, soft_QD.to(before.dtype), self._embed(ids)]))
        longest = max(len(row) for row in rows)
        embeddings_BLD = torch.zeros(len(rows), longest, rows[0].shape[1], dtype=rows[0].dtype, device=self.device)
        mask_BL = torch.zeros(len(rows), longest, dtype=torch.long, device=self.device)
        for index, row in enumerate(rows):
            embeddings_BLD[index, longest - len(row) :] = row
            mask_BL[index, longest - len(row) :] = 1
        answers = self.language_model.generate(embeddings_BLD, mask_BL, max_new_tokens=max_new_tokens)  # type: ignore[operator]
        return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        ids_1L = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        return self.language_model.embed(ids_1L)[0]  # type: ignore[operator,no-any-return]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``spec.json`` and ``model.safetensors`` to ``folder``. Raises ``WeightsError`` for a model on the meta device."""
        from lyrics.core.weights import save_weights

        save_weights(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> LyricsModel:
        """The model that ``save_pretrained`` wrote to ``folder``. Raises ``WeightsError`` or ``SpecError`` naming the file."""
        from lyrics.core.build import build_model
        from lyrics.core.weights import spec_file

        return build_model(spec_file(folder), weights=folder, device=device, dtype=dtype)
