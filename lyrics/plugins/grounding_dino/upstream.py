"""``grounding-dino-upstream``: the original code (groundingdino-py 0.4.0) in the place of transformers' network.

It was written for transformers 4; what it takes from there and transformers 5 no longer has is in ``BertWithMasks``.
Nothing of either package is changed for others. Importing this file imports groundingdino, and with it timm,
torchvision and OpenCV.

Shapes: B images, C color channels, H and W pixels, Q queries, T text tokens, L layers, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
from groundingdino.models.GroundingDINO.backbone.position_encoding import build_position_encoding
from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
from groundingdino.models.GroundingDINO.groundingdino import GroundingDINO
from groundingdino.models.GroundingDINO.transformer import build_transformer
from groundingdino.util import get_tokenlizer
from groundingdino.util.misc import NestedTensor
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import BatchEncoding, BertModel, GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.weights.pretrained import load_module, read_headers, read_tensors
from lyrics.core.weights.tensors import bounded
from lyrics.plugins.grounding_dino import GroundingDinoUpstreamOptions
from lyrics.plugins.grounding_dino.detector import GroundingDino, located, prompt_writer, settled_config
from lyrics.plugins.grounding_dino.weights import UNUSED, is_original, to_original

# The two-stage detector of the published configurations (groundingdino/config/GroundingDINO_SwinT_OGC.py).
_FIXED = {
    "position_embedding": "sine",
    "pe_temperatureH": 20,
    "pe_temperatureW": 20,
    "dropout": 0.0,
    "pre_norm": False,
    "query_dim": 4,
    "transformer_activation": "relu",
    "num_patterns": 0,
    "num_feature_levels": 4,
    "enc_n_points": 4,
    "dec_n_points": 4,
    "two_stage_type": "standard",
    "embed_init_tgt": True,
    "use_text_enhancer": True,
    "use_fusion_layer": True,
    "use_checkpoint": False,
    "use_transformer_ckpt": False,
    "use_text_cross_attention": True,
    "text_dropout": 0.0,
    "fusion_dropout": 0.0,
    "fusion_droppath": 0.0,
}
_SWIN_OUTPUTS = (1, 2, 3)  # the stages that the detector reads


class BertWithMasks(BertModel):
    """transformers' BERT with the three methods that groundingdino calls and transformers 5 removed."""

    def get_extended_attention_mask(
        self, attention_mask: torch.Tensor, input_shape: Sequence[int], device: torch.device | None = None
    ) -> torch.Tensor:
        """Return what attention adds to its scores [B, 1, T or 1, T].

        It is 0 where the mask ([B, T, T] or [B, T]) is set, else the least number.
        """
        mask = attention_mask[:, None] if attention_mask.ndim == 3 else attention_mask[:, None, None]
        hidden = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)
        return hidden.masked_fill(mask == 0, torch.finfo(self.dtype).min)

    def invert_attention_mask(self, encoder_attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the same for what a decoder reads."""
        return self.get_extended_attention_mask(encoder_attention_mask, encoder_attention_mask.shape)

    def get_head_mask(self, head_mask: torch.Tensor | None, num_hidden_layers: int) -> list[None]:
        """Return None: no head is masked. groundingdino never asks for it."""
        assert head_mask is None
        return [None] * num_hidden_layers


class _GivenIds:
    """In the place of groundingdino's tokenizer: its captions are token ids already, those of our prompts."""

    def __init__(self, delimiters: tuple[int, int, int, int]) -> None:
        self._delimiters = delimiters

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of [CLS], [SEP], "." and "?", the only tokens that groundingdino asks for by name."""
        assert list(tokens) == ["[CLS]", "[SEP]", ".", "?"]
        return list(self._delimiters)

    def __call__(self, captions: torch.Tensor, **_: object) -> BatchEncoding:
        """Token ids [1, T] as a tokenizer gives them; one prompt alone has no padding."""
        ones = torch.ones_like(captions)
        return BatchEncoding({"input_ids": captions, "token_type_ids": 0 * ones, "attention_mask": ones})


class OriginalNetwork(nn.Module):
    """groundingdino's network, called and answering as transformers' ``GroundingDinoForObjectDetection``.

    Images are run one at a time. In a batch the original code gives a head of one image's text another image's
    mask (``text_self_attention_masks.repeat(nhead, 1, 1)`` counts heads before images), so that results would depend
    on the neighbors.
    """

    def __init__(self, config: GroundingDinoConfig, delimiters: tuple[int, int, int, int]) -> None:
        super().__init__()
        swin_config: Any = config.backbone_config
        bert_config: Any = config.text_config
        numbers = SimpleNamespace(
            **_FIXED,
            hidden_dim=config.d_model,
            nheads=config.encoder_attention_heads,
            num_queries=config.num_queries,
            dim_feedforward=config.encoder_ffn_dim,
            enc_layers=config.encoder_layers,
            dec_layers=config.decoder_layers,
        )
        with _LinspaceOnCpu():
            swin = SwinTransformer(
                embed_dim=swin_config.embed_dim,
                depths=list(swin_config.depths),
                num_heads=list(swin_config.num_heads),
                window_size=swin_config.window_size,
                drop_path_rate=0.0,
                out_indices=_SWIN_OUTPUTS,
            )
        backbone = Joiner(swin, build_position_encoding(numbers))
        backbone.num_channels = [swin.num_features[stage] for stage in _SWIN_OUTPUTS]
        bert = BertWithMasks(bert_config)
        with _text_encoder(_GivenIds(delimiters), bert):
            self.model = GroundingDINO(
                backbone,
                build_transformer(numbers),
                config.num_queries,
                iter_update=True,
                query_dim=4,
                num_feature_levels=4,
                nheads=config.encoder_attention_heads,
                two_stage_type="standard",
                two_stage_class_embed_share=False,
                two_stage_bbox_embed_share=False,
            )

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        return_dict: bool = True,
    ) -> GroundingDinoObjectDetectionOutput:
        """Return Images [B,C,H,W], their masks [B,H,W] (True is image), prompts [B,T] and theirs (1 is prompt).

        Returns ``logits`` [B,Q,256] (-inf where a prompt has no token), ``pred_boxes`` [B,Q,4],
        ``intermediate_hidden_states`` [B,L,Q,D] and ``intermediate_reference_points`` [B,L,Q,4].

        Raises:
            SpecError: the weights are not float32.
        """
        if pixel_values.dtype != torch.float32:
            raise SpecError(
                f"grounding-dino-upstream runs in float32 only, and its weights are {pixel_values.dtype}; build with "
                "dtype=torch.float32, or use grounding-dino."
            )
        rows = [
            self._one(pixel_values[row, None], ~pixel_mask[row, None], input_ids[row, None, : int(length)])
            for row, length in enumerate(attention_mask.sum(dim=1))
        ]
        logits, boxes, states, references = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return GroundingDinoObjectDetectionOutput(
            logits=logits,
            pred_boxes=boxes,
            intermediate_hidden_states=states,
            intermediate_reference_points=references,
        )

    def _one(
        self, pixels_1CHW: torch.Tensor, padding_1HW: torch.Tensor, ids_1T: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return one image's logits, boxes, states and reference boxes; the network keeps the last two to itself."""
        seen: list[Any] = []
        handle = self.model.transformer.register_forward_hook(lambda module, given, output: seen.append(output))
        try:
            output: Mapping[str, torch.Tensor] = self.model(NestedTensor(pixels_1CHW, padding_1HW), captions=ids_1T)
        finally:
            handle.remove()
        states, references = seen[0][:2]
        # The first reference boxes are those before the first layer.
        return (
            output["pred_logits"],
            output["pred_boxes"],
            torch.stack(states, dim=1),
            torch.stack(references[1:], dim=1),
        )


class _LinspaceOnCpu(TorchFunctionMode):
    """Inside, ``torch.linspace`` has values even where other tensors are on the meta device: Swin reads its drop rates
    from one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({"device": "cpu"} | kwargs if func is torch.linspace else kwargs))


@contextlib.contextmanager
def _text_encoder(tokenizer: _GivenIds, bert: BertModel) -> Iterator[None]:
    """Inside, groundingdino finds these where it would fetch bert-base-uncased from the hub."""
    saved = get_tokenlizer.get_tokenlizer, get_tokenlizer.get_pretrained_language_model
    get_tokenlizer.get_tokenlizer = lambda name: tokenizer
    get_tokenlizer.get_pretrained_language_model = lambda name: bert
    try:
        yield
    finally:
        get_tokenlizer.get_tokenlizer, get_tokenlizer.get_pretrained_language_model = saved


def build(options: GroundingDinoUpstreamOptions, context: BuildContext) -> GroundingDino:
    """Return the component ``grounding-dino-upstream``.

    Raises:
        WeightsError: checkpoint or tokenizer are not found or do not fit the options.
        SpecError: without pretrained weights, a text vocabulary that the built-in tokenizer does not fit in.
    """
    path = located(options, context)
    config = settled_config(options, context, path)
    if config.d_model != 256:
        raise SpecError(
            f"{options.checkpoint!r} has queries of width {config.d_model}; the original code knows 256 only."
        )
    writer = prompt_writer(options, config, context)
    with contextlib.nullcontext() if path is None else bounded(read_headers(path), path):
        network = OriginalNetwork(config, writer.delimiters)
    if path is not None:
        state = read_tensors(path)
        if is_original(state):
            state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        else:
            state = to_original(state, network.model.state_dict())
        load_module(network.model, state, path, UNUSED)
    elif context.weights == "meta":
        nn.Module.to(network, "meta")  # the level embedding does not follow the device that is in force
    return GroundingDino(options, network, config, writer).eval()
