"""LLaVA models read into parts: the prompts, logits and answers of transformers', and every key accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, SiglipVisionConfig

import lyrics
from lyrics.core.errors import WeightsError
from lyrics.core.language.chat_templates import template_named
from lyrics.core.language.prompts import Dialogue, Exchange, tokenize
from tests.plugins import public_checkpoints as public
from tests.plugins.public_checkpoints import QUESTION, photograph, save_llava

SIGLIP = SiglipVisionConfig(**{**public.clip_config().to_dict(), "model_type": "siglip_vision_model"})
IMAGES = [photograph(0), photograph(1)]


def inputs_of(processor: Any, images: list[Any], question: str = QUESTION) -> Any:
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return processor(images=images, text=text, return_tensors="pt")


@torch.no_grad()
def check_answers(folder: Path, model: Any, processor: Any, images: list[Any] = IMAGES[:1]) -> lyrics.LyricsModel:
    """Logits to 1e-5, and the same tokens with greedy decoding and with beams."""
    ours = lyrics.load_model(str(folder))
    inputs = inputs_of(processor, images)
    theirs = model(**inputs).logits[0]
    torch.testing.assert_close(public.our_logits(ours, images), theirs, rtol=1e-5, atol=1e-5)
    start = inputs["input_ids"].shape[1]
    for options in ({}, {"num_beams": 3}):
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)[0, start:].tolist()
        assert public.answers_of(ours, images, **options) == expected
    return ours


@pytest.mark.parametrize("legacy", [False, True])
def test_answers_are_transformers_own(tmp_path: Path, legacy: bool) -> None:
    model, processor = save_llava(tmp_path, legacy=legacy)
    ours = check_answers(tmp_path, model, processor)
    assert ours.spec.image_encoder.use == "hf-image-encoder"
    assert ours.query_transformer.num_queries == 4, "the class token is left out"
    inputs = inputs_of(processor, IMAGES[:1])
    expected = processor.tokenizer.decode(
        model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
    )
    assert ours.generate(IMAGES[0], QUESTION, max_new_tokens=8).text == expected.strip()
    check_answers(tmp_path, model, processor, IMAGES)


@pytest.mark.parametrize(
    "changed",
    [
        {"vision_feature_select_strategy": "full"},
        {"vision_feature_layer": -1},
        {"vision_feature_layer": 1},
        {"multimodal_projector_bias": False},
        {"vision": SIGLIP, "vision_feature_select_strategy": "full"},
        {"vision": SIGLIP, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        {"text": Qwen2Config(vocab_size=320, hidden_size=24, intermediate_size=48, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
                             tie_word_embeddings=True, bos_token_id=1, eos_token_id=2), "tie_word_embeddings": True},
    ],
    ids=["full", "last layer", "first layer", "no bias", "siglip", "siglip, last layer", "tied qwen2"],
)  # fmt: skip
def test_variants(tmp_path: Path, changed: dict[str, Any]) -> None:
    check_answers(tmp_path, *save_llava(tmp_path, **changed))


def test_keys_as_published_and_as_transformers_names_its_modules(tmp_path: Path) -> None:
    save_llava(tmp_path)
    expected = public.our_logits(lyrics.load_model(str(tmp_path)), IMAGES[:1])

    def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        more = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
                "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None]}  # fmt: skip
        return {name.replace("vision_tower.", "vision_tower.vision_model."): one for name, one in state.items()} | more

    public.rewritten(tmp_path, published)
    torch.testing.assert_close(public.our_logits(lyrics.load_model(str(tmp_path)), IMAGES[:1]), expected)

    def modules(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {name: name.replace("language_model.model.", "language_model.") for name in state}
        return {
            "lm_head.weight" if name == "language_model.lm_head.weight" else f"model.{names[name]}": one
            for name, one in state.items()
            if not name.endswith(("inv_freq", "position_ids"))
        }

    public.rewritten(tmp_path, modules)
    torch.testing.assert_close(public.our_logits(lyrics.load_model(str(tmp_path)), IMAGES[:1]), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_conversation_is_written_as_the_chat_template_has_it(tmp_path: Path, legacy: bool) -> None:
    _, processor = save_llava(tmp_path, legacy=legacy)
    ours = lyrics.load_model(str(tmp_path))
    tokenizer = ours.language_model.tokenizer
    talk: Dialogue = (
        Exchange(QUESTION, "What", (0, 1)),
        Exchange("No image </s> <image> here", "hi", ()),
        Exchange("  And ", None, (2,)),
    )
    messages = []
    for exchange in talk:
        said = exchange.instruction.replace("</s>", "|").replace("<image>", "|")
        shown = [{"type": "image"} for _ in exchange.images]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": said}]})
        if exchange.answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": exchange.answer}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    theirs = processor(images=[photograph(seed) for seed in range(3)], text=text)["input_ids"][0]
    template = template_named(ours.language_model.chat_template, tokenizer)

    def ids(dialogue: Dialogue) -> list[int]:
        prompt = tokenize(template.segments(dialogue, lambda picture: ""), tokenizer, 4)
        images = {place + offset for place, _ in prompt.slots for offset in range(4)}
        return [tokenizer.image_token_id if n in images else one for n, one in enumerate(prompt.ids)]

    clean = tuple(
        Exchange(one.instruction.replace("</s>", "|").replace("<image>", "|"), one.answer, one.images) for one in talk
    )
    assert ids(clean) == theirs
    assert ids(talk).count(tokenizer.image_token_id) == 12, "what a user types is no image"
    assert tokenizer.eos_token_id not in ids(talk)


def test_a_checkpoint_without_a_chat_template_or_with_an_older_file(tmp_path: Path) -> None:
    save_llava(tmp_path)
    expected = public.encoded(lyrics.load_model(str(tmp_path)), IMAGES[:1])[0].ids
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="brings no chat template; that of LLaVA-1.5 is taken"):
        ours = lyrics.load_model(str(tmp_path))
    assert public.encoded(ours, IMAGES[:1])[0].ids == expected
    other = public.LLAVA_TEMPLATE.replace("ASSISTANT:", "WHAT:")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    found = public.encoded(lyrics.load_model(str(tmp_path)), IMAGES[:1])[0].ids
    assert found != expected
    assert found[:20] == expected[:20]


def test_a_tokenizer_that_does_not_name_the_token_of_an_image(tmp_path: Path) -> None:
    """As older checkpoints have it; the configuration does."""
    save_llava(tmp_path / "public")
    expected = public.encoded(lyrics.load_model(str(tmp_path / "public")), IMAGES)[0].ids
    file = tmp_path / "public" / "tokenizer_config.json"
    entries = json.loads(file.read_text())
    for name in ("image_token", "extra_special_tokens", "model_specific_special_tokens", "processor_class"):
        entries.pop(name, None)
    file.write_text(json.dumps(entries))
    ours = lyrics.load_model(str(tmp_path / "public"))
    assert public.encoded(ours, IMAGES)[0].ids == expected
    ours.save_pretrained(tmp_path / "saved")
    assert public.encoded(lyrics.load_model(str(tmp_path / "saved")), IMAGES)[0].ids == expected


def test_a_checkpoint_must_say_how_images_are_prepared(tmp_path: Path) -> None:
    save_llava(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(
        lyrics.LyricsError, match=r"for a 'llava' without a preprocessor_config\.json; state its entries"
    ):
        lyrics.load_model(str(tmp_path))


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    save_llava(tmp_path / "public")
    ours = lyrics.load_model(str(tmp_path / "public"))
    expected, logits = ours.generate(IMAGES[0], QUESTION, max_new_tokens=6), public.our_logits(ours, IMAGES)
    ours.save_pretrained(tmp_path / "saved")
    again = lyrics.load_model(str(tmp_path / "saved"))
    assert again.generate(IMAGES[0], QUESTION, max_new_tokens=6).text == expected.text
    torch.testing.assert_close(public.our_logits(again, IMAGES), logits)
    ours.save_pretrained(tmp_path / "trained", trainable_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda *names, **options: pytest.fail("downloads"))
        again = lyrics.load_model(str(tmp_path / "trained"))
    torch.testing.assert_close(public.our_logits(again, IMAGES), logits)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer is \[-2, -5\]"),
        ({"vision_feature_layer": -4}, "vision_feature_layer is -4, and its tower has 3 layers"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; only gelu is known"),
        ({"image_token_index": 9999}, "image_token_index is 9999, and its tokenizer has no such token"),
        ({"text_config": {"model_type": "t5"}}, r"its language model is an encoder-decoder \('t5'\)"),
    ],
)
def test_what_is_put_together_in_another_way_is_refused(tmp_path: Path, entries: Any, problem: str) -> None:
    save_llava(tmp_path)
    public.configured(tmp_path, **entries)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(WeightsError, match=problem) as refused:
        lyrics.load_model(str(tmp_path))
    assert "\n" not in str(refused.value)
