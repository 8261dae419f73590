"""Small random checkpoints of public models, as transformers saves them, and what transformers answers with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from lyrics.core.language.prompting import Encoded, checked_prompt
from lyrics.core.language.prompts import Exchange, TokenPrompt
from lyrics.core.language.soft_prompts import embed
from lyrics.core.model import LyricsModel

#: LLaVA-1.5's chat template: each message's images, then its texts.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', "
    "'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QUESTION = "What is that?"


def photograph(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def llama_tokenizer(*, legacy: bool = False, image_token: bool = True) -> Any:
    """Byte fallback, characters and a few merges; with the older kind every piece of a text begins with a space."""
    vocabulary = {token: index for index, token in enumerate(("<unk>", "<s>", "</s>"))}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("▁", "U"), ("h", "i"), ("▁", "W"), ("▁", "A"), ("i", "s"), ("▁", "is"), ("h", "a"), ("▁W", "ha")]
    for token in [*"▁USERASTNabcdefghijklmnopqrstuvwxyzW?:", *(left + right for left, right in merges)]:
        vocabulary.setdefault(token, len(vocabulary))
    more = {"extra_special_tokens": {"image_token": "<image>"}} if image_token else {}
    return LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy, add_bos_token=True, pad_token="<unk>", **more)


def clip_config(**changed: Any) -> Any:
    numbers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionConfig(**{**numbers, "image_size": 28, "patch_size": 14, **changed})


def llama_config(words: int, **changed: Any) -> Any:
    numbers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(**{**numbers, "vocab_size": words, "initializer_range": 0.3, "pad_token_id": 0, **changed})


def save_llava(
    folder: Path, *, legacy: bool = False, vision: Any = None, text: Any = None, **changed: Any
) -> tuple[Any, Any]:
    """Save a random LLaVA model; return it and its processor."""
    tokenizer = llama_tokenizer(legacy=legacy)
    vision = clip_config() if vision is None else vision
    strategy = changed.get("vision_feature_select_strategy", "default")
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=int(vision.model_type == "clip_vision_model"),
    )
    torch.manual_seed(0)
    # A few words more than the tokenizer has, as published.
    text = llama_config(len(tokenizer) + 5) if text is None else text
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id, **changed)
    model = LlavaForConditionalGeneration(config).eval()
    return _saved(model, processor, folder)


def byte_level_tokenizer() -> Any:
    """In the manner of OPT's: every text begins with ``</s>``, which ends one, too."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", *alphabet))}
    merges = [("Q", "u"), ("\u0120", "W"), ("h", "a"), ("\u0120", "A"), ("\u0120W", "ha")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def bert_tokenizer() -> Any:
    """Letters as pieces, and the token that BLIP-2 adds."""
    letters = "abcdefghijklmnopqrstuvwxyz?:.|"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters), "what", "is"]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.2,
}
_FORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "encoder_hidden_size": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
}


def _blip_images() -> Any:
    return BlipImageProcessorPil(size={"height": 28, "width": 28})


def save_blip2(folder: Path, *, text: Any = None, former: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Save a random BLIP-2 model with OPT; return it and its processor."""
    processor = Blip2Processor(_blip_images(), byte_level_tokenizer(), num_query_tokens=4)
    words = len(processor.tokenizer)
    opt = {"vocab_size": words + 3, "hidden_size": 24, "ffn_dim": 48, "num_hidden_layers": 2, "init_std": 0.3}
    opt |= {"num_attention_heads": 4, "word_embed_proj_dim": 24, "max_position_embeddings": 128}
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=_VISION,
        qformer_config={**_FORMER, **(former or {})},
        text_config=(OPTConfig(**opt) if text is None else text).to_dict(),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.query_tokens.normal_()
    return _saved(model, processor, folder)


def save_blip2_stage1(folder: Path) -> Any:
    """Save a random first stage of BLIP-2; return it."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=_VISION,
        qformer_config={**_FORMER, "use_qformer_text_input": True, "vocab_size": 320},
        num_query_tokens=4,
        image_text_hidden_size=20,
    )
    model = Blip2ForImageTextRetrieval(config).eval()
    model.save_pretrained(folder)
    return model


def save_instructblip(folder: Path, **changed: Any) -> tuple[Any, Any]:
    """Save a random InstructBLIP model with Llama; return it and its processor."""
    tokenizer = llama_tokenizer(image_token=False)
    processor = InstructBlipProcessor(_blip_images(), tokenizer, bert_tokenizer(), num_query_tokens=4)
    torch.manual_seed(0)
    config = InstructBlipConfig(
        vision_config=_VISION,
        qformer_config={**_FORMER, "vocab_size": 320},
        text_config=llama_config(len(processor.tokenizer) + 5).to_dict(),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        **changed,
    )
    model = InstructBlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.query_tokens.normal_()
    return _saved(model, processor, folder)


def _saved(model: Any, processor: Any, folder: Path) -> tuple[Any, Any]:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # those that begin as zeros would be missed by nobody
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> None:
    """Change the tensors of a saved checkpoint."""
    file = folder / "model.safetensors"
    changed = dict(change(load_file(file)))
    save_file({name: tensor.clone() for name, tensor in changed.items()}, file, {"format": "pt"})


def configured(folder: Path, **entries: Any) -> None:
    """Change entries of a saved checkpoint's ``config.json``."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def encoded(ours: LyricsModel, images: list[Image.Image], question: str = QUESTION) -> tuple[TokenPrompt, Encoded]:
    """Our prompt of one question about images, and the images."""
    seen = ours.look(images, [question] * len(images))
    exchange = Exchange(question, None, tuple(range(len(images))))
    return checked_prompt((exchange,), seen, 12, ours.spec, ours.language_model), seen


@torch.no_grad()
def our_logits(ours: LyricsModel, images: list[Image.Image], question: str = QUESTION) -> torch.Tensor:
    """Logits [L, vocabulary] of one question about images."""
    prompt, seen = encoded(ours, images, question)
    soft = embed([prompt], seen.soft_tokens_PQD, ours.language_model, "left")
    return ours.language_model(soft.embeddings_BLD, soft.mask_BL)[0]


def answers_of(ours: LyricsModel, images: list[Image.Image], question: str = QUESTION, **options: Any) -> list[int]:
    """Our answer's tokens."""
    from lyrics.core.language.answering import answer_ids
    from lyrics.core.language.generation import decoding

    prompt, seen = encoded(ours, images, question)
    soft = embed([prompt], seen.soft_tokens_PQD, ours.language_model, "left")
    how = decoding(options, max_new_tokens=12, generation_config=None, seed=None, streamed=False)
    ids_BL, _ = answer_ids([prompt], soft, how, "causal-lm", ours.language_model, None, None)
    return [int(index) for index in ids_BL[0]]
