"""RAM and RAM++: Swin tokens, tag queries that read them by cross-attention, one logit per tag.

Sources: RAM (arXiv 2306.03514), RAM++ (arXiv 2310.15200), and recognize-anything 7cb804a for what they leave open.

Shapes: B images, C tags, K descriptions per tag, N image tokens (their mean first), P patches, D width, L label width,
H heads, d head width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.onednn import use_onednn
from lyrics.core.refining.side_by_side import side_by_side
from lyrics.core.types import ImageBatch, Preprocessing, Tag
from lyrics.core.weights.pretrained import read_headers
from lyrics.core.weights.tensors import bounded
from lyrics.core.weights.transformers_files import compare_config, save_config, stored_config
from lyrics.plugins.ram_plus import PATCH_SIZE, RamOptions, RamPlusOptions
from lyrics.plugins.ram_plus.checkpoint import find_checkpoint, load_checkpoint

# Width of CLIP's text embedding, in which tags are described; images are projected to it.
LABEL_WIDTH = 512
#: Pixels that go through the network at once on a CPU: two images of 384 x 384.
_CPU_PIXELS = 2 * 384**2
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Upstream's threshold for tags that have none of their own.
DEFAULT_THRESHOLD = 0.68


class TaggingLayer(nn.Module):
    """A post-LN BERT block without self-attention: the tags read the image, never each other."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(LABEL_WIDTH, width)
        self.value = nn.Linear(LABEL_WIDTH, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tags_BCD: torch.Tensor, image_BNL: torch.Tensor) -> torch.Tensor:
        """[B,C,D] and [B,N,512] -> [B,C,D]."""
        query_BHCd, key_BHNd, value_BHNd = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.query(tags_BCD), self.key(image_BNL), self.value(image_BNL))
        )
        read_BCD = F.scaled_dot_product_attention(query_BHCd, key_BHNd, value_BHNd).transpose(1, 2).flatten(2)
        tags_BCD = self.attention_norm(tags_BCD + self.attention_output(read_BCD))
        mlp_BCD = self.mlp_out(F.gelu(self.mlp_in(tags_BCD)))
        normalized_BCD: torch.Tensor = self.mlp_norm(tags_BCD + mlp_BCD)
        return normalized_BCD


_CLASSES_FILE = "classes.json"


class RamTagger(nn.Module):
    """RAM, or RAM++ when ``num_descriptions`` is given.

    ``tags`` and ``thresholds`` are the classes' in order; they come with the checkpoint and are no part of the state
    dict. ``swin`` is the backbone's configuration, where it is not the one that the options describe to today's
    transformers.
    """

    def __init__(self, options: RamOptions, num_descriptions: int | None, swin: SwinConfig | None = None) -> None:
        super().__init__()
        self.visual_encoder = SwinModel(swin_config(options) if swin is None else swin, add_pooling_layer=False)
        self.image_proj = nn.Linear(self.visual_encoder.num_features, LABEL_WIDTH)
        self.label_embed = nn.Parameter(torch.randn(options.num_tags * (num_descriptions or 1), LABEL_WIDTH) * 0.02)
        if num_descriptions is None:
            self.register_parameter("reweight_scale", None)
        else:
            self.reweight_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.wordvec_proj = nn.Linear(LABEL_WIDTH, options.head_width)
        self.tagging_head = nn.ModuleList(
            TaggingLayer(options.head_width, options.head_heads, options.head_mlp_width)
            for _ in range(options.head_layers)
        )
        self.fc = nn.Linear(options.head_width, 1)
        use_onednn(self)

        self.image_size = options.image_size
        self.num_tags = options.num_tags
        self.tags = tuple(f"tag {index}" for index in range(options.num_tags))
        self.thresholds = (DEFAULT_THRESHOLD,) * options.num_tags
        self._one_threshold = options.threshold
        # torchvision's Resize((size, size)), which upstream calls with its default filter
        self.preprocessing = Preprocessing(
            resize="squash", size=options.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, resampling="bilinear"
        )

    @torch.no_grad()
    def forward(self, images: ImageBatch) -> list[list[Tag]]:
        """Per image the tags whose probability is strictly above their threshold, best first.

        Equal ones in class order.

        Raises:
            ContractError: the images are not [B,3,image_size,image_size].
        """
        scores_BC = self.logits(images.pixels_BCHW).float().sigmoid().cpu()
        above_BC = scores_BC > torch.tensor(self.thresholds, dtype=scores_BC.dtype, device=scores_BC.device)
        order_BC = scores_BC.argsort(dim=1, descending=True, stable=True)
        return [
            [Tag(self.tags[index], float(scores_C[index])) for index in order_C[above_C[order_C]].tolist()]
            for scores_C, above_C, order_C in zip(scores_BC, above_BC, order_BC, strict=True)
        ]

    def save_files(self, folder: Path) -> None:
        """The backbone's configuration, tags and thresholds, for a model folder."""
        save_config(self.visual_encoder, folder)
        data = {"tags": list(self.tags), "thresholds": list(self.thresholds)}
        (folder / _CLASSES_FILE).write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")

    def load_files(self, folder: Path) -> None:
        """Raise ``WeightsError`` for a file that is missing, broken, or of another backbone or number of tags."""
        compare_config(self.visual_encoder.config, folder)
        try:
            data = read_json(folder / _CLASSES_FILE)
            tags = tuple(str(tag) for tag in data["tags"])
            thresholds = tuple(float(threshold) for threshold in data["thresholds"])
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{folder / _CLASSES_FILE}: cannot be read: {type(error).__name__}: {error}.") from error
        if not len(tags) == len(thresholds) == self.num_tags:
            raise WeightsError(
                f"{folder / _CLASSES_FILE}: has {len(tags)} tags and {len(thresholds)} thresholds; the tagger has "
                f"{self.num_tags}."
            )
        # A threshold that the options state stands above those that were saved.
        one = self._one_threshold
        self.tags, self.thresholds = tags, thresholds if one is None else (one,) * self.num_tags

    def logits(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalized pixels [B,3,S,S] -> one logit per tag [B,C], in the module's dtype."""
        expected = (3, self.image_size, self.image_size)
        if pixels_BCHW.ndim != 4 or tuple(pixels_BCHW.shape[1:]) != expected:
            raise ContractError(
                f"the tagger reads images of shape [B, 3, {self.image_size}, {self.image_size}], not "
                f"{list(pixels_BCHW.shape)}; prepare them with its `preprocessing`, or build it with another image_size"
            )
        if len(pixels_BCHW) == 0:  # transformers' Swin cannot reshape an empty batch
            return self.fc.weight.new_zeros(0, self.num_tags)
        if len(pixels_BCHW) > (most := self._pictures_at_once(pixels_BCHW)):
            return torch.cat(side_by_side(self.logits, pixels_BCHW.split(most), pixels_BCHW.device))
        image_BNL = self.image_proj(self.encode(pixels_BCHW))
        tags_BCD = F.relu(self.wordvec_proj(self.labels(image_BNL[:, 0])))
        for layer in self.tagging_head:
            tags_BCD = layer(tags_BCD, image_BNL)
        logits_BC: torch.Tensor = self.fc(tags_BCD).squeeze(-1)
        return logits_BC

    def _pictures_at_once(self, pixels_BCHW: torch.Tensor) -> int:
        """Return how many images go through the network together: all of them, except on a CPU.

        There more than two large images only leave the caches (eight at once took 1.1 times as long).
        """
        if pixels_BCHW.device.type != "cpu":
            return len(pixels_BCHW)
        return max(1, _CPU_PIXELS // self.image_size**2)

    def encode(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Map pixels -> image tokens [B,1+P,D]: the mean of the patch tokens, then the patch tokens."""
        patches_BPD = self.visual_encoder(pixel_values=pixels_BCHW.to(self.visual_encoder.dtype)).last_hidden_state
        return torch.cat([patches_BPD.mean(dim=1, keepdim=True), patches_BPD], dim=1)

    def labels(self, image_BL: torch.Tensor) -> torch.Tensor:
        """Return the tags' embeddings [B,C,512] as this image reads them.

        RAM++ weighs a tag's K descriptions by the softmax of ``exp(reweight_scale) * <image, description>``, where the
        image token [B,512] has unit length and the descriptions are as stored. RAM has one embedding per tag.
        """
        if self.reweight_scale is None:
            return self.label_embed.expand(len(image_BL), -1, -1)
        label_CKL = self.label_embed.view(self.num_tags, -1, LABEL_WIDTH)
        similarity = F.linear(self.reweight_scale.exp() * F.normalize(image_BL, dim=-1), self.label_embed)
        weights_BCK = similarity.view(len(image_BL), self.num_tags, -1).softmax(dim=-1)
        return torch.bmm(weights_BCK.transpose(0, 1), label_CKL).transpose(0, 1)


def swin_config(options: RamOptions) -> SwinConfig:
    """Return the backbone's numbers as transformers' configuration."""
    swin = options.swin
    return SwinConfig(
        image_size=options.image_size,
        patch_size=PATCH_SIZE,
        embed_dim=swin.embed_dim,
        depths=list(swin.depths),
        num_heads=list(swin.num_heads),
        window_size=options.window_size,
        drop_path_rate=0.0,
    )


def build_ram_plus(options: RamPlusOptions, context: BuildContext) -> RamTagger:
    """RAM++. See ``build_ram``."""
    return _build(options, options.num_descriptions, context)


def build_ram(options: RamOptions, context: BuildContext) -> RamTagger:
    """RAM.

    Raises:
        WeightsError: pretrained weights are asked for, and ``options.checkpoint`` is not set, cannot be found or
            read, or does not have the tensors, tags and thresholds that the options describe.
    """
    return _build(options, None, context)


def _build(options: RamOptions, num_descriptions: int | None, context: BuildContext) -> RamTagger:
    stored: Any = stored_config(context.files)
    if context.weights == "pretrained":
        folder = find_checkpoint(options.checkpoint, downloads=context.downloads)
        with bounded(read_headers(folder), folder):
            tagger = RamTagger(options, num_descriptions, stored)
        tagger.tags, tagger.thresholds = load_checkpoint(tagger, folder, options.num_tags)
    else:
        tagger = RamTagger(options, num_descriptions, stored)
    if options.threshold is not None:
        tagger.thresholds = (options.threshold,) * options.num_tags
    return tagger.eval()
