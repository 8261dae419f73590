"""BLIP-2's and InstructBLIP's public models as parts: EVA ViT-g, the Q-Former, a projection, and a language model.

``Blip2ForConditionalGeneration`` and ``InstructBlipForConditionalGeneration`` of transformers (arXiv 2301.12597 and
2305.06500), with a causal language model. InstructBLIP's Q-Former reads the instruction, BLIP-2's reads no text.
``Blip2ForImageTextRetrieval`` has no language model: training begins with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lyrics.core.composed import ComposedModel
from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.language.chat_templates import ChatTemplate
from lyrics.core.language.prompts import BOS, Words
from lyrics.core.public_models import PublicCheckpoint, PublicPlan, renamed_pieces, wrapped_names
from lyrics.core.spec import ModelSpec, Slot
from lyrics.core.weights.pieces import Piece
from lyrics.plugins.mqformer import QFormerOptions
from lyrics.plugins.mqformer.build import tokenizer_of
from lyrics.plugins.mqformer.convert import GROWING, INSTRUCTBLIP, TRANSFORMERS, Made, Naming, head_keys, sources
from lyrics.plugins.mqformer.model import MQFormer

#: The form in which BLIP-2 is asked (arXiv 2301.12597, section 4.2): the image, then words that an answer follows.
#: OPT's answers end with the line.
BLIP2_QA = ChatTemplate(
    (BOS,), (Words("Question: "),), (Words(" Answer:"),), (Words("\n"),), answer_prefix=" ", images_first=True
)
#: What a Q-Former that reads no text does not have.
_TEXT = r"query_transformer\.((word|position)_embeddings\..*|layers\.\d+\.text_ffn\..*|token_head\..*)"
_HEAD = r"query_transformer\.token_head\..*"
_BUFFERS = r".*\.position_ids|.*\.rotary_emb\.inv_freq"
#: Vocabulary of a Q-Former that reads no text: no more than the built-in tokenizer has.
_FEW_WORDS = 320
#: Where InstructBLIP keeps the tokenizer of its Q-Former.
_TOKENIZER_FOLDER = "qformer_tokenizer"
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3


def read_blip2(checkpoint: PublicCheckpoint) -> PublicPlan:
    """Return how a BLIP-2 model is read, or its first stage alone.

    Raises ``WeightsError`` for one with an encoder-decoder, or put together in another way.
    """
    config = checkpoint.config
    stage1 = any("ForImageTextRetrieval" in name for name in config.architectures or ())
    if not stage1:
        checkpoint.refuse_unless_causal(config.text_config)
    _check_images(checkpoint)
    options = _former_options(checkpoint)
    if not stage1:
        options["vocab_size"] = min(_FEW_WORDS, options["vocab_size"])
    spec = ModelSpec(
        image_encoder=Slot(use="eva-vit-g", options={"checkpoint": checkpoint.name}),
        query_transformer=Slot(use="qformer", options=options),
        language_model=Slot(
            use="causal-lm",
            options={"checkpoint": checkpoint.name, "adaptation": "frozen", "chat_template": "blip2-qa"},
        ),
        sees=(),
        spatial_in_prompt=False,
    )
    return PublicPlan(
        spec,
        _Pieces(TRANSFORMERS),
        unread=(_BUFFERS,),
        new=(_TEXT,),
        lacks="a language model" if stage1 else "",
    )


def read_instructblip(checkpoint: PublicCheckpoint) -> PublicPlan:
    """Return how an InstructBLIP model is read.

    Raises ``WeightsError`` for one with an encoder-decoder, or put together in another way, or without the tokenizer of
    its Q-Former.
    """
    checkpoint.refuse_unless_causal(checkpoint.config.text_config)
    _check_images(checkpoint)
    options = _former_options(checkpoint)
    folder = checkpoint.folder / _TOKENIZER_FOLDER
    if not folder.is_dir():
        raise checkpoint.refuse(
            f"has no folder {_TOKENIZER_FOLDER} with the tokenizer of its Q-Former; fetch it again."
        )
    named = QFormerOptions(**{**options, "tokenizer": str(folder)})
    try:
        tokenizer = tokenizer_of(named, BuildContext("pretrained", downloads=False))
    except SpecError as error:
        raise checkpoint.refuse(f"the tokenizer of its Q-Former is not the one of its weights: {error}") from error
    spec = ModelSpec(
        image_encoder=Slot(use="eva-vit-g", options={"checkpoint": checkpoint.name}),
        query_transformer=Slot(use="qformer", options=options),
        language_model=Slot(
            use="causal-lm",
            options={"checkpoint": checkpoint.name, "adaptation": "frozen", "chat_template": "released"},
        ),
        sees=("instruction",),
        spatial_in_prompt=False,
    )
    return PublicPlan(
        spec,
        _Pieces(INSTRUCTBLIP),
        unread=(_BUFFERS,),
        new=(_HEAD,),
        tokenizers={"query_transformer": tokenizer},
    )


def _former_options(checkpoint: PublicCheckpoint) -> dict[str, Any]:
    """Options of ``qformer`` that the configuration states.

    Raises ``WeightsError`` for an activation that it does not have.
    """
    config = checkpoint.config
    numbers = config.qformer_config
    if numbers.hidden_act not in ("gelu", "relu"):
        raise checkpoint.refuse(f"the activation of its Q-Former is {numbers.hidden_act!r}; gelu and relu are known.")
    return {
        "num_visual": int(config.num_query_tokens),
        "hidden_size": numbers.hidden_size,
        "num_layers": numbers.num_hidden_layers,
        "num_heads": numbers.num_attention_heads,
        "intermediate_size": numbers.intermediate_size,
        "cross_attention_every": numbers.cross_attention_frequency,
        "vocab_size": numbers.vocab_size,
        "max_positions": numbers.max_position_embeddings,
        "activation": numbers.hidden_act,
        "hidden_dropout": float(numbers.hidden_dropout_prob),
        "attention_dropout": float(numbers.attention_probs_dropout_prob),
        "layer_norm_eps": numbers.layer_norm_eps,
        "tokenizer": None,
    }


def _check_images(checkpoint: PublicCheckpoint) -> None:
    """Raise ``WeightsError`` where images are to be prepared in another way than ``eva-vit-g`` does.

    It does it as every published BLIP-2: squashed to the tower's square, bicubic, with CLIP's mean and deviation.
    """
    stated = None
    for file in _PREPROCESSOR_FILES:
        stated = checkpoint.entries(file)
        if stated is not None:
            stated = stated.get("image_processor", stated) if file == _PREPROCESSOR_FILES[1] else stated
            break
    if not isinstance(stated, dict):
        return
    side = int(checkpoint.config.vision_config.image_size)
    size = stated.get("size", {"height": side, "width": side})
    expected = {
        "size": ({"height": side, "width": side}, size if isinstance(size, dict) else {"height": size, "width": size}),
        "resample": (_BICUBIC, stated.get("resample", _BICUBIC)),
        "image_mean": (list(_CLIP_MEAN), stated.get("image_mean", list(_CLIP_MEAN))),
        "image_std": (list(_CLIP_STD), stated.get("image_std", list(_CLIP_STD))),
        "do_resize": (True, stated.get("do_resize", True)),
    }
    for name, (wanted, found) in expected.items():
        if wanted != found:
            raise checkpoint.refuse(f"prepares images with {name} {found}, and eva-vit-g does it with {wanted}.")


class _Pieces:
    """The tensors of a model whose Q-Former the checkpoint spells in ``naming``."""

    def __init__(self, naming: Naming) -> None:
        self.naming = naming

    def __call__(self, model: ComposedModel, keys: Collection[str]) -> Mapping[str, Piece]:
        found = renamed_pieces("encoder.", wrapped_names(model.get_submodule("encoder")), keys, _in_tower)
        names = wrapped_names(model.get_submodule("language_model"))
        found |= renamed_pieces("language_model.", names, keys, _in_language_model)
        found |= {f"projection.{name}": Piece((f"language_projection.{name}",)) for name in ("weight", "bias")}
        former = model.query_transformer
        if isinstance(former, MQFormer):
            for ours, source in sources(former, self.naming).items():
                if any(key in keys for key in source.keys):
                    make = Made(former, self.naming, ours)
                    found[f"query_transformer.{ours}"] = Piece(make.keys, make, first_rows=ours in GROWING)
        for name, slot in model.spec.objectives.items():
            for ours, key in head_keys(self.naming, slot.use.rpartition("/")[2], keys).items():
                found[f"objectives.{name}.{ours}"] = Piece((key,))
        return found


def _in_tower(name: str) -> Iterable[str]:
    return (f"vision_model.{name}",)


def _in_language_model(name: str) -> Iterable[str]:
    return (f"language_model.{name}", f"model.language_model.{name.removeprefix('model.')}", name)
