"""How each family of zero-shot detectors is asked, and what it answers.

Shapes: B images, C color channels, H and W pixels, Q queries, P phrases, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from lyrics.core.language import phrase_prompts
from lyrics.core.language.phrase_prompts import PromptWriter
from lyrics.core.refining.canvas_sizes import missing_pixels
from lyrics.core.refining.selection import phrase_scores
from lyrics.plugins.hf import detections
from lyrics.plugins.hf.clip_words import ClipWords

#: Phrases that OWL's text encoder reads together.
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Round:
    """The answer to some of the phrases.

    ``phrases`` are the numbers of these P. ``scores_BQP`` are probabilities, ``boxes_BQ4`` are (center x, center y,
    width, height), a share of the canvas. ``states_BQD`` and ``places_BQ4`` make the local tokens. ``ranks_BQ`` says
    which queries come first where there are too many; None where nothing does.
    """

    phrases: tuple[int, ...]
    scores_BQP: torch.Tensor
    boxes_BQ4: torch.Tensor
    states_BQD: torch.Tensor
    places_BQ4: torch.Tensor
    ranks_BQ: torch.Tensor | None = None


class Family(Protocol):
    """A family's network with its tokenizer."""

    #: Queries of an image.
    num_queries: int
    #: Width of a query's state.
    width: int
    #: What transformers takes for this family.
    threshold: float

    @property
    def tokenizer(self) -> Any: ...

    def spelling(self, phrase: str) -> str:
        """As the network reads it; phrases of one spelling are one. Empty for one in which nothing is left."""
        ...

    def answers(self, pixels_BCHW: torch.Tensor, phrases: Sequence[str]) -> list[Round]:
        """Answer for images of one size that are asked for the same phrases, each of them once. The first round's
        states are the local tokens; there may be no round where there is no phrase.
        """
        ...


class Grounding:
    """Grounding DINO and MM-Grounding-DINO: one prompt holds many phrases, and a token's logits are its phrase's.

    Phrases that do not fit in a prompt go into further ones, a run of the network each.
    """

    threshold = 0.25

    def __init__(self, network: Any, config: Any, writer: PromptWriter) -> None:
        self.network = network
        self.num_queries = int(config.num_queries)
        self.width = int(config.d_model)
        self.writer = writer

    @property
    def tokenizer(self) -> Any:
        return self.writer.tokenizer

    def spelling(self, phrase: str) -> str:
        return phrase_prompts.spelling(phrase)

    def answers(self, pixels_BCHW: torch.Tensor, phrases: Sequence[str]) -> list[Round]:
        batch, _, height, width = pixels_BCHW.shape
        mask_BHW = torch.ones(batch, height, width, dtype=torch.int64, device=pixels_BCHW.device)
        if missing := missing_pixels(width, height, self.num_queries):
            right, bottom = (missing, 0) if width < height else (0, missing)
            pixels_BCHW = F.pad(pixels_BCHW, (0, right, 0, bottom))
            mask_BHW = F.pad(mask_BHW, (0, right, 0, bottom))
        rounds = []
        for prompt in self.writer.prompts(self.writer.tokens(phrases)):
            ids_BT = torch.tensor([prompt.input_ids], device=pixels_BCHW.device).expand(batch, -1)
            output = self.network(
                pixel_values=pixels_BCHW,
                pixel_mask=mask_BHW,
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                return_dict=True,
            )
            scores = [phrase_scores(logits_QT, prompt.spans) for logits_QT in output.logits]
            rounds.append(
                Round(
                    prompt.phrases,
                    torch.stack(scores),
                    output.pred_boxes,
                    output.intermediate_hidden_states[:, -1],
                    output.intermediate_reference_points[:, -1],
                )
            )
        return rounds


class Owl:
    """OWL-ViT and OWLv2: a query for each patch, compared with each phrase by itself.

    Patches are ranked by their objectness, which OWLv2 has, or else by their best score.
    """

    threshold = 0.1

    def __init__(self, network: Any, config: Any, words: ClipWords) -> None:
        self.network = network
        self._text: Any = getattr(network, network.base_model_prefix)
        self.num_queries = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.width = int(config.vision_config.hidden_size)
        self.words = words

    @property
    def tokenizer(self) -> Any:
        return self.words.tokenizer

    def spelling(self, phrase: str) -> str:
        return detections.spelling(phrase)

    def answers(self, pixels_BCHW: torch.Tensor, phrases: Sequence[str]) -> list[Round]:
        map_BhwD = self.network.image_embedder(pixel_values=pixels_BCHW)[0]
        states_BQD = map_BhwD.flatten(1, 2)
        boxes_BQ4 = self.network.box_predictor(states_BQD, map_BhwD)
        ranks_BQ = None
        scores_BQP = states_BQD.new_zeros(*states_BQD.shape[:2], len(phrases))
        if phrases:
            texts_PD = self._texts(phrases, pixels_BCHW.device)
            logits_BQP, _ = self.network.class_predictor(states_BQD, texts_PD.expand(len(pixels_BCHW), -1, -1))
            scores_BQP = logits_BQP.float().sigmoid()
            ranks_BQ = scores_BQP.amax(dim=-1)
        if hasattr(self.network, "objectness_predictor"):
            ranks_BQ = self.network.objectness_predictor(states_BQD)
        return [Round(tuple(range(len(phrases))), scores_BQP, boxes_BQ4, states_BQD, boxes_BQ4, ranks_BQ)]

    def _texts(self, phrases: Sequence[str], device: torch.device) -> torch.Tensor:
        """What the text encoder makes of phrases [P, D]."""
        tokens = self.words.tokens([self.spelling(phrase) for phrase in phrases])
        found = []
        for first in range(0, len(tokens), _TEXTS_AT_ONCE):
            ids, mask = self.words.rows(tokens[first : first + _TEXTS_AT_ONCE], device)
            found.append(self._text.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
        return torch.cat(found)


class OmDetTurbo:
    """OmDet-Turbo: the phrases, and a task that lists them ("Detect dog, red car.").

    Phrases whose list does not fit in a task go into further ones, a run of the network each.
    """

    threshold = 0.3

    def __init__(self, network: Any, config: Any, words: ClipWords) -> None:
        self.network = network
        self.num_queries = int(config.num_queries)
        self.width = int(config.decoder_hidden_dim)
        self.words = words

    @property
    def tokenizer(self) -> Any:
        return self.words.tokenizer

    def spelling(self, phrase: str) -> str:
        return detections.spelling(phrase)

    def answers(self, pixels_BCHW: torch.Tensor, phrases: Sequence[str]) -> list[Round]:
        rounds = []
        for numbers in self._tasks(phrases):
            asked = [self.spelling(phrases[number]) for number in numbers]
            ids_PT, mask_PT = self.words.rows(self.words.tokens(asked), pixels_BCHW.device)
            task_1T, task_mask_1T = self.words.rows(self.words.tokens([_task(asked)]), pixels_BCHW.device)
            batch = len(pixels_BCHW)
            self._forget()
            output = self.network(
                pixel_values=pixels_BCHW,
                classes_input_ids=ids_PT.repeat(batch, 1),
                classes_attention_mask=mask_PT.repeat(batch, 1),
                tasks_input_ids=task_1T.expand(batch, -1),
                tasks_attention_mask=task_mask_1T.expand(batch, -1),
                classes_structure=torch.full((batch,), len(asked), device=pixels_BCHW.device),
                output_hidden_states=True,
                return_dict=True,
            )
            boxes_BQ4 = output.decoder_coord_logits
            rounds.append(
                Round(
                    tuple(numbers),
                    output.decoder_class_logits.float().sigmoid(),
                    boxes_BQ4,
                    output.decoder_hidden_states[-1],
                    boxes_BQ4,
                )
            )
        return rounds

    def _forget(self) -> None:
        """The network keeps what it read of texts, also when its precision or its weights have changed."""
        for cache in (self.network.language_cache_class, self.network.language_cache_prompt):
            cache.cache.clear()
            cache.current_load = 0

    def _tasks(self, phrases: Sequence[str]) -> list[list[int]]:
        """Numbers of phrases, as many at a time as a task holds."""
        room = self.words.length - 2
        around = len(self.words.tokens([_task([""])])[0])
        tasks: list[list[int]] = []
        taken = 0
        lengths = [len(ids) for ids in self.words.tokens([f", {self.spelling(phrase)}" for phrase in phrases])]
        for number, length in enumerate(lengths):
            if not tasks or around + taken + length > room:
                tasks.append([])
                taken = 0
            tasks[-1].append(number)
            taken += length
        return tasks


def _task(phrases: Sequence[str]) -> str:
    return f"Detect {', '.join(phrases)}."


FAMILIES: Mapping[str, type[Grounding] | type[Owl] | type[OmDetTurbo]] = {
    "grounding-dino": Grounding,
    "mm-grounding-dino": Grounding,
    "owlvit": Owl,
    "owlv2": Owl,
    "omdet-turbo": OmDetTurbo,
}
