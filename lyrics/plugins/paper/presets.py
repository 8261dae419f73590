"""The paper's models. Its numbers live here and nowhere else; each carries its place in the paper.

"Lyrics" is arXiv 2312.05278. Where the paper is silent, the part's own default holds (``lyrics show NAME``), and the
comment says so where it matters. Imports no torch.
"""

from __future__ import annotations

from lyrics.core.spec import ModelSpec, ObjectiveSlot, RefinerSpec, Slot

#: "Merely 278M trainable parameters" (section 5.2), in stage 2.
PAPER_TRAINABLE = 278_000_000
PAPER_TRAINABLE_NOTE = (
    "The paper gives no rank for LoRA; 64 is taken here. What its authors released meets their figure exactly: 195.2M "
    "in the query transformer, 0.1M queries, 3.9M in the projection and 78.6M in LoRA of rank 64 on q, k and v. "
    "Against that, the parts that the paper names have no LoRA on k (26.2M less), image tokens 1024 wide instead of "
    "1408 (3.5M less), and the segmenter's keys and values (2.4M more)."
)


def _objectives(recipe: str = "paper") -> dict[str, ObjectiveSlot]:
    """ITC, ITM, ICG and MSP, each with weight 1 (equation 5)."""
    return {name: ObjectiveSlot(use=name, options={"recipe": recipe}) for name in ("itc", "itm", "icg", "msp")}


def _vicuna_13b(chat_template: str = "vicuna-v1.1", vocab_size: int = 32000, **lora: object) -> Slot:
    return Slot(
        use="causal-lm",
        options={
            "architecture": "llama",
            "checkpoint": "lmsys/vicuna-13b-v1.5",  # "Vicuna-13B" (section 4)
            "vocab_size": vocab_size,
            "hidden_size": 5120,  # Llama-13B: arXiv 2302.13971, table 2
            "num_layers": 40,
            "num_heads": 40,
            "intermediate_size": 13824,
            "chat_template": chat_template,  # Vicuna v1.5 keeps the form of v1.1
            "adaptation": "lora",  # section 3.3
            "lora": {"target_modules": ["q_proj", "v_proj"], **lora},  # "we fine-tune the W_q and W_v" (section 4)
        },
    )


def paper_refiner() -> RefinerSpec:
    """Return the paper's three experts."""
    return RefinerSpec(
        tagger=Slot(use="ram-plus", options={"backbone": "swin-b"}),  # "RAM++ with Swin-B backbone" (section 4)
        detector=Slot(
            use="grounding-dino",  # "Grounding-DINO-T ... and Swin-T backbone" (section 4): the part's defaults
            options={"queries": 900},  # "900 output object boxes" (section 4)
        ),
        segmenter=Slot(use="sam-hq", options={"width": 1280, "layers": 32}),  # "SAM-HQ ... ViT-H" (section 4)
    )


def grounded_sam() -> RefinerSpec:
    """Return the paper's detector and segmenter, for phrases that the caller gives: no tagger."""
    return paper_refiner().model_copy(update={"tagger": None})


def lyrics_13b() -> ModelSpec:
    """Return the paper's model."""
    return ModelSpec(
        image_encoder=Slot(
            use="clip-vit",
            options={
                # "ViT-L/14 initialized from pre-trained CLIP" (section 4)
                "checkpoint": "openai/clip-vit-large-patch14",
                "image_size": 224,  # "images of size 224x224" (section 4)
                "patch_size": 14,
                "width": 1024,  # "257x1024 for ViT-L/14" (section 3.1)
            },
        ),
        refiner=paper_refiner(),
        query_transformer=Slot(
            use="mqformer",
            options={
                "num_visual": 32,  # section 3.1
                "num_grounding": 32,  # section 3.1
                "hidden_size": 768,  # "each with a dimension of 768" (section 3.1)
                # ln_vision of the BLIP-2 checkpoint that training continues from (section 3.1)
                "normalize_image_tokens": True,
            },
        ),
        # The rank is not in the paper; 64 is what its count of trainable parameters suggests, see PAPER_TRAINABLE_NOTE.
        language_model=_vicuna_13b(rank=64, alpha=128.0),
        objectives=_objectives(),
        codec="lyrics",
        sees=("spatial", "instruction"),
    )


def lyrics_7b() -> ModelSpec:
    """Return the paper's model on Vicuna-7B: for one GPU. Not in the paper."""
    return lyrics_13b().with_overrides(
        {
            "language_model.options": {
                "architecture": "llama",
                "checkpoint": "lmsys/vicuna-7b-v1.5",
                "vocab_size": 32000,
                "hidden_size": 4096,  # Llama-7B: arXiv 2302.13971, table 2
                "num_layers": 32,
                "num_heads": 32,
                "intermediate_size": 11008,
                "chat_template": "vicuna-v1.1",
                "adaptation": "lora",
                "lora": {"target_modules": ["q_proj", "v_proj"], "rank": 64, "alpha": 128.0},
            }
        }
    )


def lyrics_released_14b() -> ModelSpec:
    """Return what the authors released: IDEA-CCNL/Ziya-Visual-Lyrics-14B and Fengshenbang-LM pull request 449.

    It differs from the paper.
    """
    return ModelSpec(
        image_encoder=Slot(
            use="eva-vit-g",  # BLIP-2's tower: 257 x 1408
            options={
                "width": 1408,
                "layer_norm_eps": 1e-5,
            },  # the released code's; newer BLIP-2 configurations say 1e-6
        ),
        refiner=RefinerSpec(
            tagger=Slot(use="ram", options={"backbone": "swin-l"}),  # RAM, not RAM++
            detector=Slot(use="grounding-dino", options={"box_threshold": 0.25, "text_threshold": 0.2}),
            segmenter=None,  # absent from the code and from the checkpoint's size
        ),
        query_transformer=Slot(
            use="mqformer",
            options={
                "num_visual": 32,
                "num_grounding": 64,  # the checkpoint holds 96 queries
                "image_dim": 1408,
                "local_dims": {"detector": 260},  # 256 + the last reference box
                "vocab_size": 30523,  # BERT's 30522 and [DEC]
            },
        ),
        # LoRA's defaults in the released code; the published weights hold the language model whole, with one word more.
        language_model=_vicuna_13b(
            "released", 32001, rank=8, alpha=32.0, dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"]
        ),
        objectives=_objectives("released"),
        codec="released",
        sees=("instruction",),  # the question alone, as in InstructBLIP
        spatial_in_prompt=False,  # the raw question after the soft tokens
    )


def blip2_13b() -> ModelSpec:
    """Return the baseline: the paper's model without a visual refiner, with BLIP-2's Q-Former and 32 queries."""
    spec = lyrics_13b()
    return spec.model_copy(
        update={
            "refiner": None,
            "query_transformer": Slot(
                use="qformer", options={"num_visual": 32, "hidden_size": 768, "normalize_image_tokens": True}
            ),
            "objectives": {
                name: slot for name, slot in _objectives().items() if name != "msp"
            },  # nothing spatial to mask
            "sees": ("instruction",),
        }
    )


def lyrics_mini() -> ModelSpec:
    """Return the paper's model at about a twentieth of its width, every part of its true type.

    It is there to try the real code paths on a CPU.
    """
    return lyrics_13b().with_overrides(
        {
            "image_encoder.options": {"width": 64, "layers": 4, "heads": 4, "mlp_width": 256},
            "refiner.tagger.options": {
                "backbone": {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
                "image_size": 96,
                "window_size": 6,
                "num_tags": 10,
                "threshold": 0.0,  # random weights are sure of nothing; this way every part has something to do
                "head_width": 64,
                "head_mlp_width": 128,
                "num_descriptions": 4,
            },
            "refiner.detector.options": {
                "box_threshold": 0.0,
                "text_threshold": 0.0,
                "max_detections": 20,
                "shortest_side": 192,
                "longest_side": 320,
                "swin_width": 24,
                "swin_depths": (1, 1, 2, 1),
                "swin_heads": (1, 2, 3, 4),
                "text_width": 64,
                "text_layers": 2,
                "text_heads": 4,
                "text_ffn": 128,
                "width": 64,
                "queries": 45,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "ffn": 128,
            },
            "refiner.segmenter.options": {
                "image_size": 256,
                "width": 64,
                "layers": 4,
                "heads": 4,
                "window": 7,
                "global_layers": (1, 3),
                "prompt_width": 64,
                "decoder_heads": 4,
                "decoder_ffn": 128,
            },
            "query_transformer.options": {
                "num_visual": 8,
                "num_grounding": 8,
                "hidden_size": 96,
                "num_layers": 6,
                "num_heads": 4,
                "intermediate_size": 384,
                "vocab_size": 320,
                "normalize_image_tokens": True,
            },
            "language_model.options": {
                "vocab_size": 320,
                "hidden_size": 256,
                "num_layers": 4,
                "num_heads": 4,
                "intermediate_size": 688,
                "max_positions": 2048,
                "chat_template": "vicuna-v1.1",
                "lora": {"rank": 16, "alpha": 32.0},
            },
        }
    )
