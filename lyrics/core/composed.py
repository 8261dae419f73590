"""The parts of a model in one module: what they are, and which of them a stage trains.

Shapes: Q queries (visual, then grounding), S spatial tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import nn

from lyrics.core.contracts import (
    Abilities,
    Expert,
    ImageEncoder,
    LanguageModel,
    MergesLora,
    Objective,
    QueryTransformer,
)
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.language.spatial_tokens import spatial_kinds
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.refinement import Refinement
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.spec import ModelSpec
from lyrics.core.stage1.batch import ObjectTokens
from lyrics.core.stage1.distributed import SharedOut, world_size
from lyrics.core.stage1.streams import QUERY_SEGMENTS, SpecialTokens, Stream, Text, full
from lyrics.core.stage1.texts import Texts

STREAM = "stage2"


class ComposedModel(nn.Module):
    """Image encoder and refiner, query transformer, projection, language model, and objectives.

    The refiner is frozen, and the image encoder unless the specification's ``train_image_encoder`` is set.

    ``spec`` is the fully resolved specification, with the distribution of every part; it is saved with the weights.
    ``abilities`` says what the parts can do beside what they must; ``shards`` is set while training shares the language
    model out over the ranks.
    """

    encoder: ImageEncoder
    query_transformer: QueryTransformer
    language_model: LanguageModel

    def __init__(
        self,
        *,
        encoder: ImageEncoder,
        refiner: VisualRefiner | None,
        query_transformer: QueryTransformer,
        language_model: LanguageModel,
        objectives: Mapping[str, Objective],
        spec: ModelSpec,
    ) -> None:
        super().__init__()
        self.trains_encoder = spec.train_image_encoder
        self.encoder = encoder.requires_grad_(self.trains_encoder).eval()
        self.refiner = refiner
        self.query_transformer = query_transformer
        self.projection = nn.Linear(query_transformer.hidden_size, language_model.hidden_size)
        self.language_model = language_model
        self.objectives = nn.ModuleDict(cast(dict[str, nn.Module], dict(objectives)))
        self.spec = spec
        self.abilities = Abilities.of(query_transformer, language_model)
        self.shards: SharedOut | None = None
        #: Names in the language model that its adaptation trains; the first stage freezes them, so it is noted here.
        self.adapted = frozenset(name for name, one in language_model.named_parameters() if one.requires_grad)
        self.processor = Processor({name: expert.preprocessing for name, expert in self.experts.items()})

    def set_refiner(self, refiner: VisualRefiner | None) -> None:
        """Put another refiner in the place of the model's own, with what its images are prepared for."""
        self.refiner = refiner
        self.processor = Processor({name: expert.preprocessing for name, expert in self.experts.items()})

    def drop_experts(self) -> None:
        """Let go of the refiner's experts: the model then reads images of which is known what was seen, and no
        others.
        """
        self.set_refiner(None if self.refiner is None else self.refiner.without_experts())

    @property
    def experts(self) -> dict[str, Expert]:
        """The frozen parts that look at images, by name: ``image_encoder``, and those that the refiner has."""
        return {"image_encoder": self.encoder, **(self.refiner.experts if self.refiner is not None else {})}

    @property
    def experts_by_path(self) -> dict[str, Expert]:
        """The same by their places in the specification: ``refiner.detector``."""
        return {name if name == "image_encoder" else f"refiner.{name}": one for name, one in self.experts.items()}

    @property
    def losses(self) -> dict[str, Objective]:
        """The objectives by name, as what they are."""
        return cast(dict[str, Objective], dict(self.objectives.items()))

    def computed_losses(self) -> dict[str, Objective]:
        """Those of a training step: of one process all whose weight is not 0, and of several all, as data parallelism
        waits for a gradient of every parameter.
        """
        counted = {name: loss for name, loss in self.losses.items() if self.spec.objectives[name].weight}
        return counted if counted and world_size() == 1 else self.losses

    @property
    def device(self) -> torch.device:
        return self.projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projection.weight.dtype

    def train(self, mode: bool = True) -> Self:
        """Training mode for the parts that are trained; the refiner and a frozen image encoder stay in evaluation
        mode.
        """
        super().train(mode)
        if not self.trains_encoder:
            self.encoder.eval()
        return self

    def trainable_parameters(self, stage: str) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains, by their names in the state dict; all others are frozen by this call.

        Stage ``pretrain`` trains the query transformer and the objectives (section 3.2); stage ``instruct`` the query
        transformer without its vocabulary head, the projection, and what the language model's adaptation leaves
        trainable (section 3.3). Both train the image encoder where the specification says so.
        """
        stage1 = self.abilities.stage1
        head = {id(parameter) for parameter in (() if stage1 is None else stage1.stage1_parameters())}
        wanted: dict[str, nn.Parameter] = {}
        for name, parameter in self.named_parameters():
            part, _, rest = name.partition(".")
            if stage == "pretrain":
                trained = part in ("query_transformer", "objectives")
            elif stage == "instruct":
                trained = part == "projection" or (part == "query_transformer" and id(parameter) not in head)
                trained = trained or (part == "language_model" and rest in self.adapted)
            else:
                raise ValueError(f"there is no stage {stage!r}; there are pretrain and instruct")
            trained = trained or (part == "encoder" and self.trains_encoder)
            parameter.requires_grad_(trained)
            if trained:
                wanted[name] = parameter
        return wanted

    def merge_lora(self) -> None:
        """See the language model's ``merge_lora``. A merged model answers; it is not saved or trained."""
        self._lora().merge_lora()

    def unmerge_lora(self) -> None:
        """See the language model's ``unmerge_lora``."""
        self._lora().unmerge_lora()

    def _lora(self) -> MergesLora:
        if self.abilities.lora is None:
            raise WeightsError("this model's language model has no LoRA that can be merged into its weights.")
        return self.abilities.lora

    # --- texts as token ids ----------------------------------------------------------------------

    @property
    def texts(self) -> Texts:
        """How objects and captions become the query transformer's token ids."""
        return Texts.of(self.abilities.text, self.spec.codec)

    def _objects(self, refinements: Sequence[Refinement]) -> ObjectTokens:
        return self.texts.objects(refinements)

    def _kinds(self, refinements: Sequence[Refinement], objects: ObjectTokens) -> list[list[list[int]]]:
        """Return what each token of ``objects`` is, object by object."""
        reader = self.abilities.text
        if reader is None:
            return [[] for _ in refinements]
        return [
            spatial_kinds(found.objects, count, reader.tokenizer, self.spec.codec, found.size_px)
            for found, count in zip(refinements, objects.objects_B.tolist(), strict=True)
        ]

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        return self.texts.words(texts)

    def _special(self) -> SpecialTokens:
        return self.texts.special()

    def _stream(self, refinements: Sequence[Refinement], instructions: Sequence[str]) -> Stream:
        return self.stage2_stream(self._objects(refinements).rows(), self._words(instructions))

    def stage2_stream(self, spatial_ids: Sequence[Sequence[int]], instruction_ids: Sequence[Sequence[int]]) -> Stream:
        """Return what the query transformer reads for each image in stage 2, from token ids without special tokens."""
        segments = self.query_transformer.segments
        special = self._special()
        text = {}
        if "spatial" in self.spec.sees and "S" in segments:
            if special.bos < 0:
                raise SpecError(
                    "sees: names spatial, whose text begins with [BOS], and the query transformer's tokenizer has no "
                    "such token; set sees=[instruction], or give it a tokenizer with [BOS]."
                )
            text["S"] = Text.from_lists([[special.bos, *ids] for ids in spatial_ids])
        if "instruction" in self.spec.sees and "C" in segments:
            text["C"] = Text.from_lists([[special.cls, *ids, special.sep] for ids in instruction_ids])
        rows = torch.arange(len(spatial_ids))
        queries = [segment for segment in QUERY_SEGMENTS if segment in segments]
        return Stream(
            STREAM,
            visibility=full("".join([*queries, *text])),
            sample_R=rows,
            image_index_R=rows,
            text=text,
            wanted=dict.fromkeys(queries, "all"),
        )
