"""``hf-zero-shot-detector``: transformers' detectors of any phrase (``AutoModelForZeroShotObjectDetection``).

Shapes: B images, Q queries, P phrases, M local tokens, D width.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForZeroShotObjectDetection

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.language.phrase_prompts import (
    BERT_DELIMITERS,
    PromptWriter,
    tokenizer_delimiters,
)
from lyrics.core.language.phrase_prompts import (
    stand_in_tokenizer as grounding_stand_in,
)
from lyrics.core.onednn import use_onednn
from lyrics.core.types import Detection, DetectorOutput, ImageBatch
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.core.weights.transformers_files import TOKENIZER_PATTERNS, load_tokenizer
from lyrics.plugins.hf import HfZeroShotDetectorOptions
from lyrics.plugins.hf.clip_words import ClipWords, check_tokenizer, stand_in_tokenizer
from lyrics.plugins.hf.detections import canvases, check_phrases, corners, detections_of
from lyrics.plugins.hf.families import FAMILIES, Family, Grounding, OmDetTurbo, Owl, Round
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network

logger = logging.getLogger(__name__)

_DELIMITERS_FILE = "delimiters.json"


class HfZeroShotDetector(KeepsConfig):
    """Images and phrases -> detections of the caller's own phrases, and query states as local tokens.

    A query is a detection of each phrase whose score is above the threshold; of two boxes for one phrase that overlap
    more than ``nms_iou``, the better stays. Phrases of one spelling (case, spaces, and for Grounding DINO full stops
    and question marks apart) are one: the first is reported.

    Images of one canvas size that are asked for the same phrases run together, others apart, so that an image's result
    does not depend on its neighbors.

    Local tokens [B, M, D + 4]: the state and the box (center x, center y, width, height; a share of the canvas) of each
    query, or of the best ``max_tokens`` where there are more (OWLv2's by objectness, OWL-ViT's by their best score).
    Where a network needs a phrase to make them and there is none, they are masked.
    """

    def __init__(
        self, options: HfZeroShotDetectorOptions, network: Any, source: CheckpointSource, family: Family
    ) -> None:
        super().__init__()
        self.options = options
        self.network = network
        use_onednn(network)
        self.family = family
        self.config = source.config
        self.entries = source.entries
        self.preprocessing = source.preprocessing
        self.num_tokens = min(family.num_queries, options.max_tokens)
        self.feature_dim = family.width + 4
        given = options.score_threshold
        self.threshold = family.threshold if given is None else given

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """Detections in descending score, and tokens.

        Raises ``ValueError`` unless there is one list of phrases per image.
        """
        check_phrases(images, phrases)
        parameter = next(self.network.parameters())
        found: list[tuple[Detection, ...]] = [()] * len(images)
        tokens_BMD = parameter.new_zeros(len(images), self.num_tokens, self.feature_dim)
        mask_BM = torch.zeros(tokens_BMD.shape[:2], dtype=torch.bool, device=tokens_BMD.device)
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        distinct = [self._distinct(names) for names in phrases]
        for image, names in enumerate(distinct):
            groups[images.frames[image].size, *names].append(image)
        for group in groups.values():
            names = distinct[group[0]]
            rounds = self.family.answers(canvases(images, group, parameter), names)
            for row, image in enumerate(group):
                found[image] = self._detections(rounds, row, names, images.frames[image], image)
                if rounds and (best := self._best_queries(rounds[0], row)) is not None:
                    states_MD, places_M4 = rounds[0].states_BQD[row][best], rounds[0].places_BQ4[row][best]
                    tokens_BMD[image] = torch.cat([states_MD, places_M4.to(states_MD)], dim=-1).to(tokens_BMD)
                    mask_BM[image] = True
        return DetectorOutput(tuple(found), tokens_BMD, mask_BM)

    def _distinct(self, phrases: Sequence[str]) -> list[str]:
        """The first phrase of each spelling."""
        first: dict[str, str] = {}
        for phrase in phrases:
            first.setdefault(self.family.spelling(phrase), phrase)
        return [phrase for spelled, phrase in first.items() if spelled]

    def _detections(
        self, rounds: Sequence[Round], row: int, names: Sequence[str], frame: Any, image: int
    ) -> tuple[Detection, ...]:
        found: list[Detection] = []
        for one in rounds:
            found += detections_of(
                one.scores_BQP[row].detach(),
                corners(one.boxes_BQ4[row]).detach(),
                [names[number] for number in one.phrases],
                frame,
                threshold=self.threshold,
                nms_iou=self.options.nms_iou,
                limit=self.options.max_detections,
            )[0]
        if len(rounds) > 1:
            logger.info("image %d: %d phrases are detected in %d prompts", image, len(names), len(rounds))
        best = sorted(found, key=lambda detection: -detection.score)[: self.options.max_detections]
        return tuple(best)

    def _best_queries(self, answer: Round, row: int) -> torch.Tensor | slice | None:
        if answer.states_BQD.shape[1] <= self.num_tokens:
            return slice(None)
        return None if answer.ranks_BQ is None else answer.ranks_BQ[row].topk(self.num_tokens).indices

    def save_files(self, folder: Path) -> None:
        """The network's configuration, how images are prepared for it, and the text encoder's tokenizer."""
        super().save_files(folder)
        self.family.tokenizer.save_pretrained(folder)
        if isinstance(self.family, Grounding):
            text = json.dumps(self.family.writer.delimiters) + "\n"
            (folder / _DELIMITERS_FILE).write_text(text, encoding="utf-8")


def build(options: HfZeroShotDetectorOptions, context: BuildContext) -> HfZeroShotDetector:
    """Return the component ``hf-zero-shot-detector``.

    Raises:
        SpecError: nothing says what it is, or the stand-in tokenizer does not fit.
        WeightsError: checkpoint or tokenizer are not found, or do not fit.
    """
    source = find_source(options, context, AutoModelForZeroShotObjectDetection, "zero-shot detector")
    family = FAMILIES.get(source.config.model_type)
    if family is None:
        raise SpecError(
            f"{source.name}: how a {source.config.model_type!r} is asked is not known here; there are "
            f"{', '.join(FAMILIES)}."
        )
    words = _tokenizer(options, context, source)
    network = make_network(AutoModelForZeroShotObjectDetection._model_mapping[type(source.config)], source)
    if context.weights == "meta":
        torch.nn.Module.to(network, "meta")  # some parameters do not follow the device that is in force
    made: Family
    if family is Grounding:
        tokenizer, delimiters = words
        known = network.model.special_tokens
        network.model.special_tokens = torch.tensor(delimiters, dtype=known.dtype, device=known.device)
        made = Grounding(network, source.config, PromptWriter(tokenizer, delimiters, int(source.config.max_text_len)))
    else:
        text: Any = source.config.text_config
        clip_words = ClipWords(words[0], int(text.max_position_embeddings))
        made = (Owl if family is Owl else OmDetTurbo)(network, source.config, clip_words)
    return HfZeroShotDetector(options, network, source, made).eval()


def _tokenizer(
    options: HfZeroShotDetectorOptions, context: BuildContext, source: CheckpointSource
) -> tuple[Any, tuple[int, int, int, int]]:
    """The text encoder's tokenizer; and for Grounding DINO its delimiters."""
    vocabulary = int(source.config.text_config.vocab_size)
    is_grounding = FAMILIES[source.config.model_type] is Grounding
    folder = source.folder if context.files is not None or context.weights == "pretrained" else None
    if options.tokenizer is not None and context.files is None and context.weights == "pretrained":
        folder = locate_checkpoint(options.tokenizer, also=TOKENIZER_PATTERNS, downloads=context.downloads)
    if folder is None:
        return (
            (_grounding_stand_in(vocabulary), BERT_DELIMITERS)
            if is_grounding
            else (
                stand_in_tokenizer(vocabulary),
                BERT_DELIMITERS,
            )
        )
    tokenizer = load_tokenizer(folder)
    if not is_grounding:
        check_tokenizer(tokenizer, vocabulary, folder)
        return tokenizer, BERT_DELIMITERS
    if (folder / _DELIMITERS_FILE).is_file():
        stored = read_json(folder / _DELIMITERS_FILE, WeightsError)
        if not (isinstance(stored, list) and len(stored) == 4 and all(isinstance(one, int) for one in stored)):
            raise WeightsError(f"{folder / _DELIMITERS_FILE}: holds no four token ids; save the model again.")
        first, second, third, fourth = stored
        return tokenizer, (first, second, third, fourth)
    return tokenizer, tokenizer_delimiters(tokenizer, folder)


def _grounding_stand_in(vocabulary: int) -> Any:
    tokenizer = grounding_stand_in()
    if vocabulary < len(tokenizer):
        raise SpecError(
            f"the text encoder's vocab_size is {vocabulary}, but without pretrained weights the built-in tokenizer "
            f"stands in, which has {len(tokenizer)} tokens; set it to {len(tokenizer)} or more."
        )
    return tokenizer
