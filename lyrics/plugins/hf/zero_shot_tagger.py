"""``zero-shot-tagger``: SigLIP and SigLIP 2 over a list of words.

Shapes: B images, C color channels, H and W pixels, W words, T text tokens, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError, WeightsError
from lyrics.core.json_reading import read_json, read_text
from lyrics.core.language.tokenizers import byte_tokenizer
from lyrics.core.onednn import use_onednn
from lyrics.core.types import ImageBatch, Tag
from lyrics.core.weights.transformers_files import load_tokenizer
from lyrics.plugins.hf import ZeroShotTaggerOptions
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network

_WORDS_FILE = "words.json"
#: Words that the text encoder reads together.
_AT_ONCE = 256


class ZeroShotTagger(KeepsConfig):
    """Images -> the words whose probability is above the threshold, best first.

    A word's probability is SigLIP's own: a sigmoid of how near the image is to the ``template`` with the word in it,
    whatever the other words are. Words are read once, and again when weights, device or precision have changed.
    """

    def __init__(
        self,
        options: ZeroShotTaggerOptions,
        network: Any,
        source: CheckpointSource,
        tokenizer: Any,
        words: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.options = options
        self.network = network
        use_onednn(network)
        self.config = source.config
        self.entries = source.entries
        self.preprocessing = source.preprocessing
        self.tokenizer = tokenizer
        self.words = words
        self._read: tuple[Any, torch.Tensor] | None = None

    def forward(self, images: ImageBatch) -> list[list[Tag]]:
        """Return each image's tags in descending probability, ``max_tags`` at most."""
        if not len(images):
            return []
        parameter = next(self.network.parameters())
        found_BD = self.network.get_image_features(pixel_values=images.pixels_BCHW.to(parameter)).pooler_output
        near_BW = torch.nn.functional.normalize(found_BD, dim=-1) @ self._texts().T
        logits_BW = near_BW * self.network.logit_scale.exp() + self.network.logit_bias
        tags = []
        for row in logits_BW.float().sigmoid().detach().cpu():
            best = row.argsort(descending=True, stable=True)[: self.options.max_tags].tolist()
            kept = [Tag(self.words[index], float(row[index])) for index in best]
            tags.append([tag for tag in kept if tag.score > self.options.threshold])
        return tags

    def _texts(self) -> torch.Tensor:
        """What the text encoder makes of the words [W, D], of length 1."""
        weight = self.network.text_model.embeddings.token_embedding.weight
        now = (weight.device, weight.dtype, weight.data_ptr(), weight._version)
        if self._read is None or self._read[0] != now:
            texts = [self.options.template.replace("{}", word) for word in self.words]
            found = []
            for first in range(0, len(texts), _AT_ONCE):
                ids = self._ids(texts[first : first + _AT_ONCE]).to(weight.device)
                found.append(self.network.get_text_features(input_ids=ids).pooler_output.detach())
            self._read = now, torch.nn.functional.normalize(torch.cat(found), dim=-1)
        return self._read[1]

    def _ids(self, texts: list[str]) -> torch.Tensor:
        """Token ids [W, T], padded to the length that SigLIP was trained with."""
        ids: torch.Tensor = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=int(self.config.text_config.max_position_embeddings),
            split_special_tokens=True,
            return_tensors="pt",
        )["input_ids"]
        return ids

    def save_files(self, folder: Path) -> None:
        """The network's configuration, how images are prepared for it, the tokenizer, and the words."""
        super().save_files(folder)
        self.tokenizer.save_pretrained(folder)
        text = json.dumps(list(self.words), ensure_ascii=False, indent=0)
        (folder / _WORDS_FILE).write_text(text + "\n", encoding="utf-8")


def build(options: ZeroShotTaggerOptions, context: BuildContext) -> ZeroShotTagger:
    """Return the component ``zero-shot-tagger``.

    Raises:
        SpecError: nothing says what it is, or there are no words.
        WeightsError: the checkpoint is not found, is no SigLIP, or does not fit.
    """
    source = find_source(options, context, AutoModel, "zero-shot tagger", _siglip)
    words = _words(options, context)
    folder = source.folder if context.files is not None or context.weights == "pretrained" else None
    tokenizer = byte_tokenizer(("<pad>",)) if folder is None else load_tokenizer(folder)
    vocabulary = int(source.config.text_config.vocab_size)
    if len(tokenizer) > vocabulary:
        raise WeightsError(
            f"{source.name}: its tokenizer has {len(tokenizer)} tokens, but its text encoder only {vocabulary}."
        )
    network = make_network(AutoModel._model_mapping[type(source.config)], source)
    return ZeroShotTagger(options, network, source, tokenizer, words).eval()


def _siglip(config: Any) -> Any:
    if config.model_type != "siglip":
        raise WeightsError(
            f"zero-shot tagger: the checkpoint is of the model type {config.model_type!r}, not of siglip (SigLIP and "
            "SigLIP 2 of fixed resolution): only these say of each word by itself how probable it is."
        )
    return config


def _words(options: ZeroShotTaggerOptions, context: BuildContext) -> tuple[str, ...]:
    if context.files is not None and (context.files / _WORDS_FILE).is_file():
        stored = read_json(context.files / _WORDS_FILE, WeightsError)
        if not isinstance(stored, list) or not all(isinstance(word, str) for word in stored):
            raise WeightsError(f"{context.files / _WORDS_FILE}: holds no list of words; save the model again.")
        return tuple(stored)
    words = options.words
    if options.words_file is not None:
        lines = read_text(Path(options.words_file).expanduser(), SpecError).splitlines()
        words += tuple(line.strip() for line in lines)
    found = tuple(dict.fromkeys(word for word in words if word.strip()))
    if not found:
        raise SpecError("zero-shot tagger: has no words; set words, or words_file to a file with one on each line.")
    return found
