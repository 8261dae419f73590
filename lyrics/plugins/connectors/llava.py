"""LLaVA's public models as parts: its vision tower, ``mlp-projector``, and its language model.

``LlavaForConditionalGeneration`` of transformers, as ``llava-hf/llava-1.5-7b-hf`` has it (arXiv 2310.03744): the
tower's last layer but one without the class token, two linear layers with GELU between them, and a causal language
model. The second linear layer is the model's own projection here.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from lyrics.core.composed import ComposedModel
from lyrics.core.language.jinja_templates import own_template
from lyrics.core.public_models import PublicCheckpoint, PublicPlan, renamed_pieces, wrapped_names
from lyrics.core.spec import ModelSpec, Slot
from lyrics.core.weights.pieces import Piece
from lyrics.core.weights.transformers_files import load_tokenizer

#: How keys begin: as published, and as transformers names its modules now.
_TOWER = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower.")
_CONNECTOR = ("multi_modal_projector.", "model.multi_modal_projector.")
#: Files with the chat template beside a processor, in older checkpoints.
_TEMPLATES = ("chat_template.json", "processor_config.json")
#: LLaVA-1.5's form, for a checkpoint that brings none: ``USER: <image>\n... ASSISTANT:``.
_LLAVA_15 = (
    "{%% for message in messages %%}{{ message['role'].upper() + ': ' }}"
    "{%% for part in message['content'] if part['type'] == 'image' %%}{{ '%s\n' }}{%% endfor %%}"
    "{%% for part in message['content'] if part['type'] == 'text' %%}{{ part['text'] + ' ' }}{%% endfor %%}"
    "{%% endfor %%}{%% if add_generation_prompt %%}{{ 'ASSISTANT:' }}{%% endif %%}"
)


def read(checkpoint: PublicCheckpoint) -> PublicPlan:
    """Return how a LLaVA model is read.

    Raises ``WeightsError`` for one that is put together in another way.
    """
    config = checkpoint.config
    checkpoint.refuse_unless_causal(config.text_config)
    layers = int(config.vision_config.num_hidden_layers)
    skipped = _skipped_layers(checkpoint, layers)
    strategy = config.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise checkpoint.refuse(f"vision_feature_select_strategy is {strategy!r}; default and full are known.")
    if config.projector_hidden_act != "gelu":
        raise checkpoint.refuse(f"projector_hidden_act is {config.projector_hidden_act!r}; only gelu is known.")
    spec = ModelSpec(
        image_encoder=Slot(
            use="hf-image-encoder",
            # Hidden states have not passed the last norm, not even the last one.
            options={"checkpoint": checkpoint.name, "skip_layers": skipped, "last_norm": False},
        ),
        query_transformer=Slot(
            use="mlp-projector",
            options={
                "hidden_size": int(config.text_config.hidden_size),
                "skip_tokens": 1 if strategy == "default" else 0,
            },
        ),
        language_model=Slot(use="causal-lm", options={"checkpoint": checkpoint.name, "adaptation": "frozen"}),
        sees=(),
        spatial_in_prompt=False,
    )
    left_out = "|".join(str(layer) for layer in range(layers - skipped, layers)) or "none"
    return PublicPlan(
        spec,
        _pieces,
        unread=(
            rf"(model\.)?vision_tower\.(vision_model\.)?encoder\.layers\.({left_out})\..*",
            r"(model\.)?vision_tower\.(vision_model\.)?(post_layernorm|head)\..*",
            r".*\.(position_ids|rotary_emb\.inv_freq)",
        ),
        tokenizers={"language_model": _tokenizer(checkpoint)},
    )


def _skipped_layers(checkpoint: PublicCheckpoint, layers: int) -> int:
    """Last layers of the tower that are not run; ``vision_feature_layer`` counts its states, the embeddings first."""
    stated = checkpoint.config.vision_feature_layer
    if not isinstance(stated, int):
        raise checkpoint.refuse(
            f"vision_feature_layer is {stated!r}, and image tokens of several layers side by side are not known."
        )
    run = stated if stated >= 0 else layers + 1 + stated
    if not 1 <= run <= layers:
        raise checkpoint.refuse(f"vision_feature_layer is {stated}, and its tower has {layers} layers.")
    return layers - run


def _tokenizer(checkpoint: PublicCheckpoint) -> Any:
    """The language model's tokenizer with the token of an image and the chat template, wherever the checkpoint has it.

    Raises ``WeightsError`` where there is no tokenizer, or no token of an image in it.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    index = checkpoint.config.image_token_id
    token = tokenizer.convert_ids_to_tokens(index) if 0 <= index < len(tokenizer) else None
    if token is None:
        raise checkpoint.refuse(f"image_token_index is {index}, and its tokenizer has no such token.")
    if "image_token" not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:  # those that are saved with a tokenizer
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, "image_token"]
    tokenizer.image_token = token
    if own_template(tokenizer) is None:
        found = next((one for file in _TEMPLATES if (one := _template_in(checkpoint, file))), None)
        if found is None:
            warnings.warn(
                f"{checkpoint.name}: brings no chat template; that of LLaVA-1.5 is taken (USER: ... ASSISTANT:).",
                stacklevel=2,
            )
        tokenizer.chat_template = found or _LLAVA_15 % token
    return tokenizer


def _template_in(checkpoint: PublicCheckpoint, file: str) -> str | None:
    found = (checkpoint.entries(file) or {}).get("chat_template")
    return found if isinstance(found, str) else None


def _pieces(model: ComposedModel, keys: Collection[str]) -> Mapping[str, Piece]:
    found = renamed_pieces("encoder.", wrapped_names(model.get_submodule("encoder")), keys, _spelled_in_tower)
    found |= renamed_pieces(
        "language_model.", wrapped_names(model.get_submodule("language_model")), keys, _spelled_in_language_model
    )
    prefix = next((one for one in _CONNECTOR if f"{one}linear_1.weight" in keys), _CONNECTOR[0])
    for ours, theirs in (("query_transformer.mlp.0", "linear_1"), ("projection", "linear_2")):
        found[f"{ours}.weight"] = Piece((f"{prefix}{theirs}.weight",))
        bias = f"{prefix}{theirs}.bias"
        width = model.query_transformer.hidden_size if theirs == "linear_1" else model.language_model.hidden_size
        found[f"{ours}.bias"] = Piece((bias,)) if bias in keys else Piece((), _Zeros(width))
    return found


def _spelled_in_tower(name: str) -> Iterable[str]:
    return (f"{prefix}{name.removeprefix('vision_model.')}" for prefix in _TOWER)


def _spelled_in_language_model(name: str) -> Iterable[str]:
    return (f"language_model.{name}", f"model.language_model.{name.removeprefix('model.')}", name)


class _Zeros:
    """The bias of a layer that has none (``multimodal_projector_bias: false``)."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self) -> torch.Tensor:
        return torch.zeros(self.width)
