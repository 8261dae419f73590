"""State-dict names of the original code as the hub's, and back.

The original is IDEA-Research/GroundingDINO, ``groundingdino_swint_ogc``.

Every key is translated, listed as unused, or an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lyrics.core.errors import WeightsError

_SWIN = "model.backbone.conv_encoder.model"
_SWIN_BLOCK = r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)"

#: Present in checkpoints of the original code and read by nothing: BERT's pooler, buffers that are computed, the label
#: encoder of the closed-set detector that the code descends from.
UNUSED = r"bert\.pooler\..*|bert\.embeddings\.position_ids|label_enc\.weight|.*\.relative_position_index|.*\.attn_mask"
_UNUSED = re.compile(UNUSED)

#: Stacked projections: (pattern, names of the three parts, where the hub keeps them).
_STACKED = (
    (
        re.compile(_SWIN_BLOCK + r"\.attn\.qkv\.(weight|bias)"),
        rf"{_SWIN}.encoder.layers.\1.blocks.\2.attention.self.{{part}}.\3",
    ),
    (
        re.compile(r"transformer\.encoder\.text_layers\.(\d+)\.self_attn\.in_proj_(weight|bias)"),
        r"model.encoder.layers.\1.text_enhancer_layer.self_attn.{part}.\2",
    ),
    (
        re.compile(r"transformer\.decoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)"),
        r"model.decoder.layers.\1.self_attn.{part}.\2",
    ),
    (
        re.compile(r"transformer\.decoder\.layers\.(\d+)\.ca_text\.in_proj_(weight|bias)"),
        r"model.decoder.layers.\1.encoder_attn_text.{part}.\2",
    ),
)


def _rules() -> tuple[tuple[re.Pattern[str], str], ...]:
    """(pattern of the whole key without its last name, replacement); the last name (weight, bias) stays."""
    plain = {
        r"backbone\.0\.patch_embed\.proj": f"{_SWIN}.embeddings.patch_embeddings.projection",
        r"backbone\.0\.patch_embed\.norm": f"{_SWIN}.embeddings.norm",
        r"backbone\.0\.layers\.(\d+)\.downsample\.(norm|reduction)": rf"{_SWIN}.encoder.layers.\1.downsample.\2",
        r"bert\.(embeddings|encoder)\.(.*)": r"model.text_backbone.\1.\2",
        r"feat_map": "model.text_projection",
        r"input_proj\.(\d+)\.(\d+)": r"model.input_proj_vision.\1.\2",
        r"transformer\.tgt_embed": "model.query_position_embeddings",
        r"transformer\.(enc_output|enc_output_norm)": r"model.\1",
        r"transformer\.enc_out_bbox_embed\.(layers\.\d+)": r"model.encoder_output_bbox_embed.\1",
        r"transformer\.decoder\.norm": "model.decoder.layer_norm",
        r"transformer\.decoder\.ref_point_head\.(layers\.\d+)": r"model.decoder.reference_points_head.\1",
    }
    blocks = {
        _SWIN_BLOCK: (
            rf"{_SWIN}.encoder.layers.\1.blocks.\2",
            {
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
                "attn": "attention.self",
                "attn.proj": "attention.output.dense",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
            },
        ),
        r"transformer\.encoder\.layers\.(\d+)": (
            r"model.encoder.layers.\1.deformable_layer",
            {
                **_same("self_attn.sampling_offsets", "self_attn.attention_weights"),
                **_same("self_attn.value_proj", "self_attn.output_proj"),
                "norm1": "self_attn_layer_norm",
                "linear1": "fc1",
                "linear2": "fc2",
                "norm2": "final_layer_norm",
            },
        ),
        r"transformer\.encoder\.text_layers\.(\d+)": (
            r"model.encoder.layers.\1.text_enhancer_layer",
            {
                **_same("self_attn.out_proj"),
                "norm1": "layer_norm_before",
                "linear1": "fc1",
                "linear2": "fc2",
                "norm2": "layer_norm_after",
            },
        ),
        r"transformer\.encoder\.fusion_layers\.(\d+)": (
            r"model.encoder.layers.\1.fusion_layer",
            {
                "layer_norm_v": "layer_norm_vision",
                "layer_norm_l": "layer_norm_text",
                "attn.v_proj": "attn.vision_proj",
                "attn.l_proj": "attn.text_proj",
                "attn.values_v_proj": "attn.values_vision_proj",
                "attn.values_l_proj": "attn.values_text_proj",
                "attn.out_v_proj": "attn.out_vision_proj",
                "attn.out_l_proj": "attn.out_text_proj",
            },
        ),
        r"transformer\.decoder\.layers\.(\d+)": (
            r"model.decoder.layers.\1",
            {
                **_same("self_attn.out_proj"),
                "norm2": "self_attn_layer_norm",
                "ca_text.out_proj": "encoder_attn_text.out_proj",
                "catext_norm": "encoder_attn_text_layer_norm",
                "cross_attn.sampling_offsets": "encoder_attn.sampling_offsets",
                "cross_attn.attention_weights": "encoder_attn.attention_weights",
                "cross_attn.value_proj": "encoder_attn.value_proj",
                "cross_attn.output_proj": "encoder_attn.output_proj",
                "norm1": "encoder_attn_layer_norm",
                "linear1": "fc1",
                "linear2": "fc2",
                "norm3": "final_layer_norm",
            },
        ),
    }
    rules = dict(plain)
    for block, (target, parts) in blocks.items():
        rules.update({rf"{block}\.{re.escape(part)}": f"{target}.{name}" for part, name in parts.items()})
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules.items())


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_RULES = _rules()
_LAST_NAME = re.compile(r"(.*)\.(weight|bias|relative_position_bias_table)")
_FUSION_SCALE = re.compile(r"transformer\.encoder\.fusion_layers\.(\d+)\.gamma_([vl])")
_SWIN_NORM = re.compile(r"backbone\.0\.norm(\d)\.(weight|bias)")
#: In the hub's naming, what the detector does not read: what ``UNUSED`` lists, and a norm after the last stage of the
#: backbone, which transformers 5 has beside the one of each stage.
_HUB_UNUSED = re.compile(
    r"model\.text_backbone\.(pooler\..*|embeddings\.position_ids)"
    rf"|{re.escape(_SWIN)}\.(.*\.relative_position_index|(swin\.)?layernorm\..*)"
)
_BOX_HEAD = re.compile(r"(?:transformer\.decoder\.)?bbox_embed\.\d+\.(layers\.\d+\.(?:weight|bias))")


def is_original(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the keys are the original code's and not the hub's."""
    return any(key.removeprefix("module.").startswith("transformer.") for key in state)


def from_original(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the original code's state dict in the hub's naming.

    Keys may start with ``module.``, as in the published file.

    The box head is one tensor under a name per decoder layer and stack; it comes out once, under ``bbox_embed.0``.

    Raises:
        WeightsError: a key is not known, or copies of the box head differ.
    """
    translated: dict[str, torch.Tensor] = {}
    for full_key, tensor in state.items():
        key = full_key.removeprefix("module.")
        if _UNUSED.fullmatch(key):
            continue
        for name, part in _translate(key, tensor):
            if name in translated and not torch.equal(translated[name], part):
                raise WeightsError(
                    f"{full_key!r} differs from another copy of the box head, but the layers of this model share one "
                    "(dec_pred_bbox_embed_share); a checkpoint with one head per layer cannot be loaded."
                )
            translated[name] = part
    return translated


def to_original(state: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict in the hub's naming in the original code's: the inverse of ``from_original``.

    Unknown keys keep their name.

    Args:
        state: in the hub's naming.
        original: the original network's own state dict; says which tensors there are, its values are not read.

    Raises:
        WeightsError: a part of a stacked projection is missing.
    """
    translated: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for key, tensor in original.items():
        names = [] if _UNUSED.fullmatch(key) else [name for name, _ in _translate(key, tensor)]
        found = [name for name in names if name in state]
        if found and len(found) < len(names):
            missing = next(name for name in names if name not in state)
            raise WeightsError(f"{missing!r} is missing, but {found[0]!r} is there; the checkpoint is not complete.")
        if found:
            translated[key] = torch.cat([state[name] for name in found])
            used.update(found)
    rest = {key: tensor for key, tensor in state.items() if key not in used and not _HUB_UNUSED.fullmatch(key)}
    # Further copies of the box head keep their own values, so that a loader sees whether they differ.
    return translated | {key.replace("model.decoder.bbox_", "transformer.decoder.bbox_"): rest[key] for key in rest}


def _translate(key: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the hub's name or names of one tensor, with the tensor or its parts."""
    for pattern, template in _STACKED:
        if match := pattern.fullmatch(key):
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            return [(match.expand(template.replace("{part}", name)), part) for name, part in parts]
    if key == "transformer.level_embed":
        return [("model.level_embed", tensor)]
    if match := _BOX_HEAD.fullmatch(key):
        return [(f"bbox_embed.0.{match[1]}", tensor)]
    if match := _FUSION_SCALE.fullmatch(key):
        side = "vision_param" if match[2] == "v" else "text_param"
        return [(f"model.encoder.layers.{match[1]}.fusion_layer.{side}", tensor)]
    if match := _SWIN_NORM.fullmatch(key):  # stages are counted from 0 there, from 1 here (stage 0 is the stem)
        return [(f"{_SWIN}.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}", tensor)]
    if whole := _LAST_NAME.fullmatch(key):
        for pattern, replacement in _RULES:
            if match := pattern.fullmatch(whole[1]):
                return [(f"{match.expand(replacement)}.{whole[2]}", tensor)]
    raise WeightsError(
        f"{key!r} {list(tensor.shape)} is no tensor of Grounding DINO as its authors name them; the checkpoint is of "
        "another model or a variant that is not supported."
    )
