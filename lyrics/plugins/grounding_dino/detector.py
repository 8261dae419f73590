"""``grounding-dino``: transformers' Grounding DINO as a detector of the caller's own phrases.

``upstream.py`` puts the original code in the place of transformers' network; all the rest is the same.

Shapes: B images, C color channels, H and W pixels, Q queries, T text tokens, D width of a token.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
)

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.geometry import Frame
from lyrics.core.json_reading import read_json
from lyrics.core.language.phrase_prompts import (
    BERT_DELIMITERS,
    Prompt,
    PromptWriter,
    is_a_list,
    same_phrases,
    spelling,
    stand_in_tokenizer,
    tokenizer_delimiters,
)
from lyrics.core.onednn import use_onednn
from lyrics.core.refining.canvas_sizes import missing_pixels
from lyrics.core.refining.selection import phrase_scores, select
from lyrics.core.refining.side_by_side import side_by_side
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing
from lyrics.core.weights.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.weights.transformers_files import (
    CONFIG_FILES,
    TOKENIZER_PATTERNS,
    compare_config,
    load_tokenizer,
    part_config,
    write_config,
)
from lyrics.plugins.grounding_dino import GroundingDinoOptions
from lyrics.plugins.grounding_dino.sampling import exchange_sampling
from lyrics.plugins.grounding_dino.texts import DistinctTexts, exchange_text_calls
from lyrics.plugins.grounding_dino.weights import from_original, is_original

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json")
_DELIMITERS_FILE = "delimiters.json"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Queries:
    """What the network says of some images, one prompt each.

    ``logits_BQT`` are -inf where a prompt has no token. ``boxes_BQ4`` are (center x, center y, width, height), a share
    of the canvas. ``tokens_BQD`` are the local tokens.
    """

    logits_BQT: torch.Tensor
    boxes_BQ4: torch.Tensor
    tokens_BQD: torch.Tensor


class GroundingDino(nn.Module):
    """Images and phrases -> detections, and the query states as local tokens.

    Each image is read with a prompt of its phrases (``a . b . c .``, lower case). A query's score for a phrase is the
    greatest probability among the phrase's tokens; see ``selection.select`` for what becomes a detection. A detection's
    phrase is the caller's, letter for letter. Full stops and question marks are left out of the prompt, so that they
    cannot cut a phrase in two; of phrases that differ in those, in case and in white space only, the first is reported.
    A phrase in which nothing is left, or no word that the tokenizer knows, is never detected.

    Phrases beyond ``max_text_tokens`` tokens go into further prompts, one run of the network each, one after the other;
    their detections are merged. Phrases come best first, so the local tokens are those of the first prompt.

    Local tokens [B, Q, width + 4]: the decoder's last state, normalized, and its last reference box (center x, center
    y, width, height; a share of the canvas). That box is refined from the state before its normalization, so it is not
    quite the detection's (as in the authors' code). They exist for every query (the mask is True), whether or not
    anything was detected.

    The network sees padding where images of a batch differ in size (Swin's windows and the group norms mix it into
    the image). So that an image's result does not depend on its neighbors, images run together only when their
    canvases are of one size.
    """

    #: A token ends in its box.
    tokens_end_in_boxes: Literal[True] = True

    def __init__(
        self,
        options: GroundingDinoOptions,
        network: nn.Module,
        config: GroundingDinoConfig,
        writer: PromptWriter,
        texts: DistinctTexts | None = None,
    ) -> None:
        """``network`` is a ``GroundingDinoForObjectDetection`` of ``config``, or is called and answers as one.

        ``texts`` are its text encoder's calls.
        """
        super().__init__()
        self._texts = texts
        self.options = options
        self.config = config
        self.num_queries = int(config.num_queries)
        #: Query states of every image, whatever is found in it.
        self.num_tokens = self.num_queries
        self.num_words = _words(config)
        self.feature_dim = int(config.d_model) + 4
        self.preprocessing = Preprocessing(
            resize="shortest",
            size=options.shortest_side,
            max_size=options.longest_side,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            resampling="bilinear",
        )
        self.network = network
        use_onednn(network)
        self.writer = writer

    def save_files(self, folder: Path) -> None:
        """The network's configuration and the text encoder's tokenizer, for a model folder."""
        write_config(self.config, folder)
        self.writer.tokenizer.save_pretrained(folder)
        (folder / _DELIMITERS_FILE).write_text(json.dumps(self.writer.delimiters) + "\n", encoding="utf-8")

    def load_files(self, folder: Path) -> None:
        """Raise ``WeightsError`` for files that are missing or broken, and for the configuration of another network."""
        compare_config(self.config, folder)
        self.writer = read_writer(folder, int(self.config.max_text_len))
        if isinstance(self.network, GroundingDinoForObjectDetection):
            _set_delimiters(self.network, self.writer.delimiters)

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """Detections in descending score, and tokens.

        Raises ``ValueError`` unless there is one list of phrases per image.
        """
        if len(phrases) != len(images) or any(isinstance(names, str) for names in phrases):
            raise ValueError(
                f"a detector needs one list of phrases for each of the {len(images)} images, not {phrases!r:.200}"
            )
        prompts = [self._prompts(names, picture) for picture, names in enumerate(phrases)]
        with contextlib.nullcontext() if self._texts is None else self._texts.remembered():
            return self._found(images, phrases, prompts)

    def _found(
        self, images: ImageBatch, phrases: Sequence[Sequence[str]], prompts: Sequence[Sequence[Prompt]]
    ) -> DetectorOutput:
        tokens: dict[int, torch.Tensor] = {}
        found: list[list[Detection]] = [[] for _ in prompts]
        seen = [0] * len(prompts)
        for number in range(max(map(len, prompts), default=0)):
            asked = [picture for picture, own in enumerate(prompts) if number < len(own)]
            groups = _same_size(images.frames, asked)
            if side := self._side_by_side():
                groups = [[picture] for picture in asked]

            def answered(group: list[int], number: int = number) -> _Queries:
                return self.query(images, group, [prompts[picture][number] for picture in group])

            answers = side_by_side(answered, groups, self._parameter().device) if side else map(answered, groups)
            for group, queries in zip(groups, answers, strict=True):
                for row, picture in enumerate(group):
                    tokens.setdefault(picture, queries.tokens_BQD[row])
                    detections, dropped = self._detections(
                        queries.logits_BQT[row].detach(),
                        queries.boxes_BQ4[row].detach(),
                        prompts[picture][number],
                        phrases[picture],
                        images.frames[picture],
                    )
                    found[picture] = _best(found[picture] + detections, self.options.max_detections)
                    seen[picture] += len(detections) + dropped
        for picture, (all_seen, kept) in enumerate(zip(seen, found, strict=True)):
            if all_seen > len(kept):
                message = "image %d: %d detections, of which the best %d are kept (max_detections)"
                logger.warning(message, picture, all_seen, len(kept))
        if tokens:
            tokens_BQD = torch.stack([tokens[picture] for picture in range(len(prompts))])
        else:
            tokens_BQD = self._parameter().new_zeros(0, self.num_queries, self.feature_dim)
        return DetectorOutput(
            detections=tuple(map(tuple, found)),
            tokens_BMD=tokens_BQD,
            mask_BM=torch.ones(tokens_BQD.shape[:2], dtype=torch.bool, device=tokens_BQD.device),
        )

    def _side_by_side(self) -> bool:
        """On a CPU with threads a batch is no faster than one image, and two images side by side are. The authors'
        network keeps what
        it computes in itself, so it cannot be called twice at a time."""
        ours = isinstance(self.network, GroundingDinoForObjectDetection)
        return ours and self._parameter().device.type == "cpu" and torch.get_num_threads() > 1

    def query(self, images: ImageBatch, pictures: Sequence[int], prompts: Sequence[Prompt]) -> _Queries:
        """Return the network's answer for ``pictures`` (indices into the batch, canvases of one size) with one prompt
        each.
        """
        width, height = images.frames[pictures[0]].size
        parameter = self._parameter()
        pixels_BCHW = images.pixels_BCHW[list(pictures), :, :height, :width].to(parameter)
        mask_BHW = torch.ones(len(pictures), height, width, dtype=torch.bool, device=pixels_BCHW.device)
        missing = missing_pixels(width, height, self.num_queries)
        if missing:
            right, bottom = (missing, 0) if width < height else (0, missing)
            pixels_BCHW = F.pad(pixels_BCHW, (0, right, 0, bottom))
            mask_BHW = F.pad(mask_BHW, (0, right, 0, bottom))
        length = max(len(prompt.input_ids) for prompt in prompts)
        rows = [[*prompt.input_ids, *[self.writer.pad_id] * (length - len(prompt.input_ids))] for prompt in prompts]
        lengths = [len(prompt.input_ids) for prompt in prompts]
        output = self.network(
            pixel_values=pixels_BCHW,
            pixel_mask=mask_BHW,
            input_ids=torch.tensor(rows, device=pixels_BCHW.device),
            attention_mask=torch.tensor([[1] * n + [0] * (length - n) for n in lengths], device=pixels_BCHW.device),
            return_dict=True,
        )
        state_BQD = output.intermediate_hidden_states[:, -1]
        reference_BQ4 = output.intermediate_reference_points[:, -1]
        return _Queries(
            logits_BQT=output.logits,
            boxes_BQ4=output.pred_boxes,
            tokens_BQD=torch.cat([state_BQD, reference_BQ4.to(state_BQD.dtype)], dim=-1),
        )

    def _prompts(self, phrases: Sequence[str], picture: int) -> list[Prompt]:
        """The prompts of one image, with what was cut, split or left out logged."""
        kept = set(same_phrases(phrases).values())
        tokens = [ids if index in kept else [] for index, ids in enumerate(self.writer.tokens(phrases))]
        longest = self.writer.longest_phrase
        for index in sorted(kept):
            if not tokens[index]:
                logger.warning(
                    "image %d: %.80r has no word that the detector knows; it is not looked for",
                    picture,
                    phrases[index],
                )
            elif len(tokens[index]) > longest:
                message = "image %d: %.80r... has %d tokens; only the first %d are read"
                logger.warning(message, picture, phrases[index], len(tokens[index]), longest)
            if is_a_list(phrases[index]):
                message = "image %d: %.80r is looked for as one phrase, %.80r; give several phrases one by one"
                logger.warning(message, picture, phrases[index], spelling(phrases[index]))
        prompts = self.writer.prompts(tokens)
        if len(prompts) > 1:
            message = (
                "image %d: %d phrases do not fit in %d tokens; they are detected in %d prompts, one after the other"
            )
            logger.info(message, picture, len(kept), self.writer.max_tokens, len(prompts))
        return prompts

    def _detections(
        self,
        logits_QT: torch.Tensor,
        boxes_Q4: torch.Tensor,
        prompt: Prompt,
        phrases: Sequence[str],
        frame: Frame,
    ) -> tuple[list[Detection], int]:
        """One image's detections for one prompt, the best ``max_detections``, and how many more there were."""
        width, height = frame.size
        center_Q2, size_Q2 = boxes_Q4[:, :2].float(), boxes_Q4[:, 2:].float()
        corners_Q4 = torch.cat([center_Q2 - size_Q2 / 2, center_Q2 + size_Q2 / 2], dim=-1)
        boxes_px_Q4 = (corners_Q4 * corners_Q4.new_tensor([width, height, width, height])).cpu().numpy()
        scores_QP = phrase_scores(logits_QT, prompt.spans).cpu().numpy()
        query_N, phrase_N, dropped = select(
            scores_QP,
            boxes_px_Q4,
            box_threshold=self.options.box_threshold,
            text_threshold=self.options.text_threshold,
            nms_iou=self.options.nms_iou,
            limit=self.options.max_detections,
        )
        detections = []
        for query, phrase in zip(query_N, phrase_N, strict=True):
            box = frame.box_from_canvas(boxes_px_Q4[query])
            if box is not None:
                detections.append(Detection(phrases[prompt.phrases[phrase]], box, float(scores_QP[query, phrase])))
        return detections, dropped

    def _parameter(self) -> torch.Tensor:
        """Any parameter: the network's device and precision."""
        return next(self.network.parameters())


def _best(detections: list[Detection], limit: int) -> list[Detection]:
    """The best ``limit``, in descending score."""
    return sorted(detections, key=lambda detection: -detection.score)[:limit]


def _same_size(frames: Sequence[Frame], pictures: Sequence[int]) -> list[list[int]]:
    """``pictures`` grouped by the size of their canvas."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for picture in pictures:
        groups[frames[picture].size].append(picture)
    return list(groups.values())


def network_config(numbers: Mapping[str, Any]) -> GroundingDinoConfig:
    """Return the options' numbers as transformers' configuration; what is not an option is the same in every public
    checkpoint.
    """
    own = SimpleNamespace(**numbers)
    return GroundingDinoConfig(
        backbone_config=SwinConfig(
            # Swin here reads any size; this number only says which windows are full: 224 for a window of 7, 384 for one
            # of 12.
            image_size=32 * own.swin_window,
            embed_dim=own.swin_width,
            depths=list(own.swin_depths),
            num_heads=list(own.swin_heads),
            window_size=own.swin_window,
            out_indices=[2, 3, 4],  # type: ignore[call-arg]
        ),
        text_config=BertConfig(
            vocab_size=own.text_vocabulary,
            hidden_size=own.text_width,
            num_hidden_layers=own.text_layers,
            num_attention_heads=own.text_heads,
            intermediate_size=own.text_ffn,
            max_position_embeddings=own.text_positions,
        ),
        num_queries=own.queries,
        d_model=own.width,
        encoder_layers=own.encoder_layers,
        decoder_layers=own.decoder_layers,
        encoder_attention_heads=own.heads,
        decoder_attention_heads=own.heads,
        encoder_ffn_dim=own.ffn,
        decoder_ffn_dim=own.ffn,
        max_text_len=own.max_text_tokens,
    )


def numbers_of(config: GroundingDinoConfig) -> dict[str, Any]:
    """Return a configuration's numbers by the names of the options."""
    swin: Any = config.backbone_config
    text: Any = config.text_config
    return {
        "swin_width": swin.embed_dim,
        "swin_depths": tuple(swin.depths),
        "swin_heads": tuple(swin.num_heads),
        "swin_window": swin.window_size,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "text_ffn": text.intermediate_size,
        "text_vocabulary": text.vocab_size,
        "text_positions": text.max_position_embeddings,
        "max_text_tokens": config.max_text_len,
        "width": config.d_model,
        "queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "heads": config.encoder_attention_heads,
        "ffn": config.encoder_ffn_dim,
    }


def _words(config: GroundingDinoConfig) -> int:
    """Word pieces that the text encoder knows."""
    text: Any = config.text_config
    return int(text.vocab_size)


def settled_config(
    options: GroundingDinoOptions, context: BuildContext, checkpoint: Path | None
) -> GroundingDinoConfig:
    """Return the configuration of the network that is to be built; ``checkpoint`` is where its weights lie, if any are
    read.
    """
    config: GroundingDinoConfig = part_config(
        options,
        files=context.files,
        checkpoint=checkpoint,
        model_types=("grounding-dino",),
        numbers_of=numbers_of,
        from_numbers=network_config,
    )
    return config


def located(options: GroundingDinoOptions, context: BuildContext) -> Path | None:
    """Return where the checkpoint lies, if its weights are to be read."""
    if context.weights != "pretrained":
        return None
    also = (*CONFIG_FILES, *TOKENIZER_PATTERNS)
    return locate_checkpoint(options.checkpoint, also=also, downloads=context.downloads)


def read_writer(folder: Path, max_tokens: int) -> PromptWriter:
    """Return the prompt writer that ``GroundingDino.save_files`` wrote. Raises ``WeightsError``."""
    tokenizer = load_tokenizer(folder)
    try:
        first, second, third, fourth = (int(i) for i in read_json(folder / _DELIMITERS_FILE))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{folder / _DELIMITERS_FILE}: cannot be read: {str(error).splitlines()[0]}") from error
    return PromptWriter(tokenizer, (first, second, third, fourth), max_tokens)


def build(options: GroundingDinoOptions, context: BuildContext) -> GroundingDino:
    """Return the component ``grounding-dino``.

    Raises:
        WeightsError: checkpoint or tokenizer are not found or do not fit the options.
        SpecError: without pretrained weights, a text vocabulary that the built-in tokenizer does not fit in.
    """
    path = located(options, context)
    config = settled_config(options, context, path)
    writer = prompt_writer(options, config, context)
    if path is not None:
        state = read_tensors(path)
        network = load_transformers(
            GroundingDinoForObjectDetection, config, from_original(state) if is_original(state) else state, path
        )
    else:
        network = GroundingDinoForObjectDetection(config)
        if context.weights == "meta":
            nn.Module.to(network, "meta")  # one of its parameters does not follow the device that is in force
    _set_delimiters(network, writer.delimiters)
    exchange_sampling(network)
    return GroundingDino(options, network, config, writer, exchange_text_calls(network)).eval()


def prompt_writer(options: GroundingDinoOptions, config: GroundingDinoConfig, context: BuildContext) -> PromptWriter:
    """Writes prompts with the checkpoint's tokenizer, or with the built-in one where nothing is downloaded.

    Raises:
        WeightsError: the tokenizer is not found or does not fit the options.
        SpecError: without pretrained weights, a text vocabulary that the built-in tokenizer does not fit in.
    """
    words, longest = _words(config), int(config.max_text_len)
    if context.files is not None and (context.files / _DELIMITERS_FILE).is_file():
        return read_writer(context.files, longest)
    if context.weights == "pretrained":
        return PromptWriter(*_tokenizer(options, words, context), longest)
    tokenizer = stand_in_tokenizer()
    if words < len(tokenizer):
        raise SpecError(
            f"text_vocabulary is {words}, but without pretrained weights the built-in tokenizer stands in, "
            f"which has {len(tokenizer)} tokens; set text_vocabulary to {len(tokenizer)} or more."
        )
    return PromptWriter(tokenizer, BERT_DELIMITERS, longest)


def _tokenizer(
    options: GroundingDinoOptions, words: int, context: BuildContext
) -> tuple[BertTokenizer, tuple[int, int, int, int]]:
    """The checkpoint's tokenizer, or the one that the options name; it may have ``words`` tokens."""
    source = options.tokenizer or options.checkpoint
    folder = locate_checkpoint(source, also=TOKENIZER_PATTERNS, downloads=context.downloads)
    folder = folder.parent if folder.is_file() else folder
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise WeightsError(
            f"there is no tokenizer ({' or '.join(_TOKENIZER_FILES)}) in {folder}. Set the option tokenizer to the hub "
            "id or folder of the text encoder's: google-bert/bert-base-uncased for the public checkpoints."
        )
    tokenizer: BertTokenizer = load_tokenizer(folder, BertTokenizer)
    delimiters = tokenizer_delimiters(tokenizer, folder)
    if len(tokenizer) > words:
        raise WeightsError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, but the text encoder only {words} "
            "(text_vocabulary)."
        )
    return tokenizer, delimiters


def _set_delimiters(network: GroundingDinoForObjectDetection, delimiters: tuple[int, int, int, int]) -> None:
    """Tell the network which tokens separate phrases, where it does not take BERT's ids for granted."""
    known = getattr(network.model, "special_tokens", None)
    if known is not None:
        network.model.special_tokens = torch.tensor(delimiters, dtype=known.dtype, device=known.device)
    elif delimiters != BERT_DELIMITERS:
        raise WeightsError(
            f"the tokenizer separates phrases by the ids {delimiters}, but this version of transformers only knows "
            f"{BERT_DELIMITERS}; install a newer one, or use a checkpoint with the vocabulary of bert-base-uncased."
        )
