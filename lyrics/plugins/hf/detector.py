"""``hf-detector``: transformers' detectors with classes of their own (``AutoModelForObjectDetection``).

Shapes: B images, C color channels, H and W pixels, Q queries, L classes, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForObjectDetection

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.onednn import use_onednn
from lyrics.core.types import Detection, DetectorOutput, ImageBatch
from lyrics.plugins.hf import HfDetectorOptions
from lyrics.plugins.hf.detections import canvases, check_phrases, corners, detections_of, of_one_size, spelling
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network

logger = logging.getLogger(__name__)

#: How some label lists call a number that stands for no class.
_NO_CLASS = ("n/a", "")


class HfDetector(KeepsConfig):
    """Images and phrases -> detections of the classes that the phrases name, and the query states as local tokens.

    A phrase names a class when the two are spelled alike, case and spaces apart; others are not looked for, which is
    logged once for each. A query is a detection of each class that was asked for and is more probable than
    ``score_threshold``: these networks give an object one query, so nothing is suppressed.

    Local tokens [B, Q, D + 4]: the decoder's last state and the box (center x, center y, width, height; a share of the
    canvas). They exist for every query (the mask is True), whether or not anything was detected or asked for.
    """

    def __init__(self, options: HfDetectorOptions, network: Any, source: CheckpointSource) -> None:
        super().__init__()
        self.options = options
        self.network = network
        use_onednn(network)
        self.config = source.config
        self.entries = source.entries
        self.preprocessing = source.preprocessing
        self.num_tokens = _num_queries(source.config)
        self.feature_dim = _width(source.config) + 4
        names = {int(index): str(name) for index, name in source.config.id2label.items()}
        self._classes = {spelling(name): index for index, name in sorted(names.items(), reverse=True)}
        self._classes = {name: index for name, index in self._classes.items() if name not in _NO_CLASS}
        #: The names of its classes.
        self.vocabulary = tuple(names[index] for index in sorted(self._classes.values()))
        self._unknown: set[str] = set()

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """Detections in descending score, and tokens.

        Raises ``ValueError`` unless there is one list of phrases per image.
        """
        check_phrases(images, phrases)
        parameter = next(self.network.parameters())
        found: list[tuple[Detection, ...]] = [()] * len(images)
        tokens_BQD = parameter.new_zeros(len(images), self.num_tokens, self.feature_dim)
        for group in of_one_size(images.frames):
            output = self.network(pixel_values=canvases(images, group, parameter))
            probabilities_BQL = self._probabilities(output.logits)
            # YOLOS returns the states of its patches before those of its queries.
            state_BQD = output.last_hidden_state[:, -self.num_tokens :]
            boxes_BQ4 = output.pred_boxes
            tokens_BQD[group] = torch.cat([state_BQD, boxes_BQ4.to(state_BQD)], dim=-1).to(tokens_BQD)
            for row, image in enumerate(group):
                asked = self._asked(phrases[image])
                found[image] = tuple(
                    detections_of(
                        probabilities_BQL[row][:, list(asked.values())].detach(),
                        corners(boxes_BQ4[row]).detach(),
                        list(asked),
                        images.frames[image],
                        threshold=self.options.score_threshold,
                        nms_iou=1.0,
                        limit=self.options.max_detections,
                    )[0]
                )
        mask_BM = torch.ones(tokens_BQD.shape[:2], dtype=torch.bool, device=tokens_BQD.device)
        return DetectorOutput(tuple(found), tokens_BQD, mask_BM)

    def _probabilities(self, logits_BQL: torch.Tensor) -> torch.Tensor:
        """Of each class by itself, or where the network has a last class for "nothing", of one class among all."""
        if logits_BQL.shape[-1] == self.config.num_labels + 1:
            return logits_BQL.float().softmax(dim=-1)[..., :-1]
        return logits_BQL.float().sigmoid()

    def _asked(self, phrases: Sequence[str]) -> dict[str, int]:
        """The class of each phrase that names one; of phrases for one class the first."""
        asked: dict[str, int] = {}
        for phrase in phrases:
            index = self._classes.get(spelling(phrase))
            if index is not None and index not in asked.values():
                asked[phrase] = index
            elif index is None and phrase not in self._unknown and not next(self.network.parameters()).is_meta:
                self._unknown.add(phrase)
                logger.warning(
                    "%.80r is none of the %d classes of this detector; it is not looked for", phrase, len(self._classes)
                )
        return asked


def _num_queries(config: Any) -> int:
    return _first_number(config, "num_queries", "num_detection_tokens")


def _width(config: Any) -> int:
    return _first_number(config, "d_model", "hidden_size")


def _first_number(config: Any, *names: str) -> int:
    found = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if found is None:
        raise SpecError(
            f"detector: a {config.model_type!r} has neither {' nor '.join(names)}, so its queries are not known."
        )
    return found


def build(options: HfDetectorOptions, context: BuildContext) -> HfDetector:
    """Return the component ``hf-detector``.

    Raises:
        SpecError: nothing says what it is.
        WeightsError: the checkpoint is not found, is no detector with classes of its own, or does not fit.
    """
    source = find_source(options, context, AutoModelForObjectDetection, "detector")
    side = source.preprocessing.size
    for name in ("eval_size", "anchor_image_size"):  # positions worked out beforehand, for one size
        given = getattr(source.config, name, None)
        if given is not None and set(given if isinstance(given, list | tuple) else (given,)) != {side}:
            setattr(source.config, name, None)
    network = make_network(AutoModelForObjectDetection._model_mapping[type(source.config)], source)
    return HfDetector(options, network, source).eval()
