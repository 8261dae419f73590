"""``lyrics-tiny``: the same code paths at toy size, for the embedded world ``scenes``. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.core.spec import ModelSpec, ObjectiveSlot, RefinerSpec, Slot
from lyrics.plugins.tiny.expert_vocabulary import VOCABULARY

#: What ships of ``lyrics-tiny`` beside its experts: the language model that can read, what stage 1 trained, and what
#: both stages did.
TINY_LANGUAGE_MODEL = "package:lyrics/plugins/tiny/weights/language-model"
TINY_STAGE1_WEIGHTS = "package:lyrics/plugins/tiny/weights/stage1"
TINY_WEIGHTS = "package:lyrics/plugins/tiny/weights/model"

#: Where the weights of ``lyrics-tiny-plain``, which do not ship, are looked for.
PLAIN_WEIGHTS = "package:lyrics/plugins/tiny/plain_weights"
PLAIN_LANGUAGE_MODEL = f"{PLAIN_WEIGHTS}/language-model-plain"
#: What the experts for plain scenes are, by component, where they are not as the defaults: names are a color with a
#: shape or a word, and every expert tells all of it.
PLAIN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tiny-vit": {"image_size": 112},
    "tiny-tagger": {"vocabulary": VOCABULARY},
    "tiny-detector": {"vocabulary": VOCABULARY, "queries": None, "query_width": None},
    "tiny-segmenter": {"width": 64, "look_width": None},
}


def tiny_refiner() -> RefinerSpec:
    """The trained experts for drawn scenes."""
    return RefinerSpec(
        tagger=Slot(use="tiny-tagger"),
        detector=Slot(use="tiny-detector"),
        segmenter=Slot(use="tiny-segmenter"),
        max_objects=16,
    )


def lyrics_tiny() -> ModelSpec:
    """The same code paths at toy size, for the embedded world ``scenes``, whose tags and boxes do not say what things
    look like: runs on a laptop's CPU, offline.

    Its experts are unlike each other, as those of the paper are: the encoder sees a small image as a whole, the
    detector tells nouns and boxes in few tokens, the segmenter what a masked part looks like.
    """
    return ModelSpec(
        image_encoder=Slot(use="tiny-vit"),
        refiner=tiny_refiner(),
        query_transformer=Slot(
            use="mqformer",
            options={
                "num_visual": 16,
                "num_grounding": 16,
                "hidden_size": 128,
                "num_layers": 4,
                "num_heads": 4,
                "intermediate_size": 512,
                "hidden_dropout": 0.0,  # no scene is seen twice
                "attention_dropout": 0.0,
                "vocab_size": 1856,  # the built-in word tokenizer's, padded
                "builtin_tokenizer": "words",
                "tokenizer": None,
                # A box is to be read off the local tokens, and written: neither is learned in a few thousand steps from
                # four raw numbers and a thousand words without an order (docs/fine-stage1.md).
                "box_features": "fourier",
                "numbers_in_order": True,
            },
        ),
        language_model=Slot(
            use="causal-lm",
            options={
                "vocab_size": 1856,
                "builtin_tokenizer": "words",
                # Convolutions over an object's 12 tokens bind its box to the name before it, and its sides to each
                # other.
                "architecture": "lfm2",
                "layer_types": ["conv", "conv", "full_attention", "full_attention", "full_attention"],
                "conv_kernel": 12,
                "checkpoint": TINY_LANGUAGE_MODEL,
                "tie_word_embeddings": True,  # to repeat what was read is then the easiest thing to say
                "hidden_size": 192,
                "num_layers": 5,
                "num_heads": 6,
                "intermediate_size": 512,
                "max_positions": 1024,
                "lora": {
                    "rank": 16,
                    "alpha": 32.0,
                    "dropout": 0.0,
                    "target_modules": ["q_proj", "k_proj", "v_proj", "in_proj", "out_proj", "w1", "w2", "w3"],
                },
            },
        ),
        objectives={
            # Boxes alone tell most images apart; captions are to do it, too.
            "itc": ObjectiveSlot(use="itc", options={"recipe": "paper", "drop_spatial": 0.5}),
            # Grounding queries alone read what tells twins apart, and in the paper's way they see no caption.
            "itm": ObjectiveSlot(use="itm", options={"recipe": "released"}),
            "icg": ObjectiveSlot(use="icg", options={"recipe": "paper"}),
            "msp": ObjectiveSlot(use="msp", options={"recipe": "paper"}),
        },
    )


def lyrics_tiny_plain() -> ModelSpec:
    """``lyrics-tiny`` with experts for plain scenes, whose tags say what things look like (docs/tiny-story.md)."""
    fine = lyrics_tiny()
    refiner, queries, language_model = fine.refiner, fine.query_transformer, fine.language_model
    assert refiner is not None
    own = {"box_features", "numbers_in_order"}
    return fine.model_copy(
        update={
            "image_encoder": _plain("tiny-vit"),
            "refiner": refiner.model_copy(
                update={
                    "tagger": _plain("tiny-tagger"),
                    "detector": _plain("tiny-detector"),
                    "segmenter": _plain("tiny-segmenter"),
                }
            ),
            "query_transformer": queries.model_copy(
                update={"options": {name: value for name, value in queries.options.items() if name not in own}}
            ),
            "language_model": language_model.model_copy(
                update={"options": {**language_model.options, "checkpoint": PLAIN_LANGUAGE_MODEL}}
            ),
            "objectives": {
                name: ObjectiveSlot(use=name, options={"recipe": "paper"}) for name in ("itc", "itm", "icg", "msp")
            },
        }
    )


def _plain(component: str) -> Slot:
    return Slot(use=component, options={**PLAIN_OPTIONS[component], "checkpoint": PLAIN_WEIGHTS})
