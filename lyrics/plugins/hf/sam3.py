"""``sam3``: SAM 3 (Carion et al. 2025), boxes and masks of everything that a phrase names, in one pass.

Shapes: B images, C color channels, H and W pixels of the canvas, P phrases, Q queries, M detections, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, Sam3Model

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import WeightsError
from lyrics.core.geometry import Box, Frame
from lyrics.core.masks import Mask
from lyrics.core.onednn import use_onednn
from lyrics.core.refining.canvas_masks import CanvasToOriginal
from lyrics.core.types import Detection, DetectorOutput, ImageBatch
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.core.weights.transformers_files import TOKENIZER_PATTERNS, load_tokenizer
from lyrics.plugins.hf import Sam3Options
from lyrics.plugins.hf.clip_words import ClipWords, check_tokenizer, stand_in_tokenizer
from lyrics.plugins.hf.detections import check_phrases, spelling
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    """What the network says of one image and some phrases.

    ``scores_PQ`` are probabilities, ``boxes_PQ4`` xyxy as shares of the canvas, ``masks_PQhw`` logits.
    """

    scores_PQ: torch.Tensor
    boxes_PQ4: torch.Tensor
    masks_PQhw: torch.Tensor
    states_PQD: torch.Tensor


class Sam3(KeepsConfig):
    """Images and phrases -> detections with their masks, and a local token for each.

    A query is a detection of a phrase when its score times the probability that the phrase is there at all is above
    ``score_threshold``. Its mask is where its logits, enlarged bilinearly to the original image, are above 0. An image
    is encoded once, whatever it is asked for; ``phrases_per_pass`` phrases go through the decoder together. Phrases of
    one spelling (case and spaces apart) are one: the first is reported.

    Local tokens [B, M, D + 4]: the query's last state and its box (center x, center y, width, height; a share of the
    canvas), one for each detection, in their order.
    """

    def __init__(self, options: Sam3Options, network: Any, source: CheckpointSource, words: ClipWords) -> None:
        super().__init__()
        self.options = options
        self.network = network
        use_onednn(network)
        self.words = words
        self.config = source.config
        self.entries = source.entries
        self.preprocessing = source.preprocessing
        self.feature_dim = int(source.config.detr_decoder_config.hidden_size) + 4

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """Detections in descending score, their masks, and tokens.

        Raises ``ValueError`` unless there is one list of phrases per image.
        """
        check_phrases(images, phrases)
        parameter = next(self.network.parameters())
        results = [
            self._detect(images.pixels_BCHW[image : image + 1].to(parameter), asked, images.frames[image])
            for image, asked in enumerate(map(_distinct, phrases))
        ]
        most = max((len(found) for found, _, _ in results), default=0)
        tokens_BMD = parameter.new_zeros(len(images), most, self.feature_dim)
        mask_BM = torch.zeros(len(images), most, dtype=torch.bool, device=parameter.device)
        for image, (found, _, tokens_MD) in enumerate(results):
            tokens_BMD[image, : len(found)] = tokens_MD
            mask_BM[image, : len(found)] = True
        detections = tuple(tuple(found) for found, _, _ in results)
        return DetectorOutput(detections, tokens_BMD, mask_BM, tuple(tuple(masks) for _, masks, _ in results))

    def _detect(
        self, pixels_1CHW: torch.Tensor, phrases: Sequence[str], frame: Frame
    ) -> tuple[list[Detection], list[Mask], torch.Tensor]:
        """One image's detections, their masks, and their tokens [M, D]."""
        if not phrases:
            return [], [], pixels_1CHW.new_zeros(0, self.feature_dim)
        vision = self.network.get_vision_features(pixels_1CHW)
        width, height = frame.size
        candidates: list[tuple[float, int, int, Box, _Answer, int]] = []
        for first in range(0, len(phrases), self.options.phrases_per_pass):
            answer = self._ask(vision, phrases[first : first + self.options.phrases_per_pass])
            boxes_px = (answer.boxes_PQ4.float() * answer.boxes_PQ4.new_tensor([width, height] * 2)).cpu().numpy()
            for row, query in (answer.scores_PQ > self.options.score_threshold).nonzero().tolist():
                box = frame.box_from_canvas(boxes_px[row, query])
                if box is not None:
                    score = float(answer.scores_PQ[row, query])
                    candidates.append((score, first + row, query, box, answer, row))
        candidates.sort(key=lambda one: -one[0])
        if len(candidates) > self.options.max_detections:
            message = "%d detections, of which the best %d are kept (max_detections)"
            logger.warning(message, len(candidates), self.options.max_detections)
            candidates = candidates[: self.options.max_detections]
        to_original = CanvasToOriginal(frame, pixels_1CHW.device)
        found, masks, tokens = [], [], []
        for score, phrase, query, box, answer, row in candidates:
            logits_11hw = answer.masks_PQhw[row, query][None, None].float()
            logits_HW = F.interpolate(logits_11hw, (height, width), mode="bilinear", align_corners=False)[0, 0]
            found.append(Detection(phrases[phrase], box, score))
            masks.append(Mask.from_array(to_original(logits_HW)))
            x1, y1, x2, y2 = answer.boxes_PQ4[row, query].unbind()
            place_4 = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            tokens.append(torch.cat([answer.states_PQD[row, query], place_4.to(answer.states_PQD)]))
        return found, masks, torch.stack(tokens) if tokens else pixels_1CHW.new_zeros(0, self.feature_dim)

    def _ask(self, vision: Any, phrases: Sequence[str]) -> _Answer:
        ids_PT, mask_PT = self.words.rows(
            self.words.tokens([spelling(phrase) for phrase in phrases]), vision.fpn_hidden_states[0].device
        )
        shared = type(vision)(
            last_hidden_state=vision.last_hidden_state,
            fpn_hidden_states=tuple(_repeated(one, len(phrases)) for one in vision.fpn_hidden_states),
            fpn_position_encoding=tuple(_repeated(one, len(phrases)) for one in vision.fpn_position_encoding),
        )
        with self._states() as states:
            output = self.network(vision_embeds=shared, input_ids=ids_PT, attention_mask=mask_PT)
        scores_PQ = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
        return _Answer(scores_PQ.detach(), output.pred_boxes.detach(), output.pred_masks.detach(), states[-1])

    @contextmanager
    def _states(self) -> Iterator[list[torch.Tensor]]:
        """The last states of the queries, which the network's answer leaves out."""
        seen: list[torch.Tensor] = []
        handle = self.network.detr_decoder.register_forward_hook(
            lambda module, inputs, output: seen.append(output.intermediate_hidden_states[-1])
        )
        try:
            yield seen
        finally:
            handle.remove()

    def save_files(self, folder: Path) -> None:
        """The network's configuration, how images are prepared for it, and the text encoder's tokenizer."""
        super().save_files(folder)
        self.words.tokenizer.save_pretrained(folder)


def _distinct(phrases: Sequence[str]) -> list[str]:
    """The first phrase of each spelling; none of an empty one."""
    first: dict[str, str] = {}
    for phrase in phrases:
        first.setdefault(spelling(phrase), phrase)
    return [phrase for spelled, phrase in first.items() if spelled]


def _repeated(tensor: torch.Tensor, times: int) -> torch.Tensor:
    return tensor.expand(times, *tensor.shape[1:])


def build(options: Sam3Options, context: BuildContext) -> Sam3:
    """Return the component ``sam3``.

    Raises:
        SpecError: nothing says what it is, or the stand-in tokenizer does not fit.
        WeightsError: checkpoint or tokenizer are not found, or do not fit.
    """
    source = find_source(options, context, AutoModel, "SAM 3", _image_part)
    vocabulary = int(source.config.text_config.vocab_size)
    folder = source.folder if context.files is not None or context.weights == "pretrained" else None
    if options.tokenizer is not None and context.files is None and context.weights == "pretrained":
        folder = locate_checkpoint(options.tokenizer, also=TOKENIZER_PATTERNS, downloads=context.downloads)
    if folder is None:
        tokenizer = stand_in_tokenizer(vocabulary)
    else:
        tokenizer = load_tokenizer(folder)
        check_tokenizer(tokenizer, vocabulary, folder)
    network = make_network(Sam3Model, source)
    words = ClipWords(tokenizer, int(source.config.text_config.max_position_embeddings))
    return Sam3(options, network, source, words).eval()


def _image_part(config: Any) -> Any:
    """The configuration of the detector of images in that of a video model, which the public checkpoint is of."""
    found = getattr(config, "detector_config", None) or config
    if found.model_type != "sam3":
        raise WeightsError(f"SAM 3: the checkpoint is of the model type {config.model_type!r}, not of sam3.")
    return found
