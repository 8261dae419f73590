"""BLIP-2 and InstructBLIP read into parts: the logits and answers of transformers', and where training begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

import lyrics
from lyrics.core.errors import WeightsError
from lyrics.core.trained import start_from
from lyrics.core.training.assemble import run
from lyrics.plugins.mqformer.model import MQFormer
from tests.core.training.test_assemble import settings
from tests.plugins import public_checkpoints as public
from tests.plugins.public_checkpoints import QUESTION, photograph, save_blip2, save_blip2_stage1, save_instructblip

PHOTO = photograph()


@torch.no_grad()
def check_answers(folder: Path, model: Any, processor: Any, text: str) -> lyrics.LyricsModel:
    """Logits to 1e-5, and the same tokens with greedy decoding and with beams. ``text`` is the prompt's."""
    ours = lyrics.load_model(str(folder))
    inputs = processor(images=PHOTO, text=text, return_tensors="pt")
    theirs = model(**inputs).logits[0]
    torch.testing.assert_close(public.our_logits(ours, [PHOTO]), theirs, rtol=1e-5, atol=1e-5)
    start = inputs["input_ids"].shape[1]
    for options in ({}, {"num_beams": 3}):
        found = model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)[0].tolist()
        expected = found[start:] if found[:start] == inputs["input_ids"][0].tolist() else found
        assert public.answers_of(ours, [PHOTO], **options) == expected
    return ours


def test_blip2_answers_as_transformers_own(tmp_path: Path) -> None:
    model, processor = save_blip2(tmp_path / "public")
    ours = check_answers(tmp_path / "public", model, processor, f"Question: {QUESTION} Answer:")
    assert [slot.use for _, _, slot in ours.spec.slots()] == ["eva-vit-g", "qformer", "causal-lm"]
    ours.save_pretrained(tmp_path / "saved")
    again = lyrics.load_model(str(tmp_path / "saved"))
    torch.testing.assert_close(public.our_logits(again, [PHOTO]), public.our_logits(ours, [PHOTO]))
    # Without words around it, to go on with a caption.
    plain = lyrics.load_model(str(tmp_path / "public"), overrides={"language_model.options.chat_template": "released"})
    with torch.no_grad():
        theirs = model(**processor(images=PHOTO, text="a photo of", return_tensors="pt")).logits[0]
    torch.testing.assert_close(public.our_logits(plain, [PHOTO], "a photo of"), theirs, rtol=1e-5, atol=1e-5)


def test_instructblip_answers_as_transformers_own(tmp_path: Path) -> None:
    model, processor = save_instructblip(tmp_path / "public")
    ours = check_answers(tmp_path / "public", model, processor, QUESTION)
    others = [public.our_logits(ours, [PHOTO], text)[3] for text in (QUESTION, "Where?")]
    assert not torch.allclose(*others, atol=1e-3), "the Q-Former does not read the instruction"
    ours.save_pretrained(tmp_path / "saved")
    again = lyrics.load_model(str(tmp_path / "saved"))
    torch.testing.assert_close(public.our_logits(again, [PHOTO]), public.our_logits(ours, [PHOTO]))


@pytest.mark.parametrize("stored", ["both", "the second"])
def test_of_tied_weights_either_name_is_read(tmp_path: Path, stored: str) -> None:
    """OPT's embeddings are its output layer; files hold them under one name, the other, or both."""
    save_blip2(tmp_path)
    expected = public.our_logits(lyrics.load_model(str(tmp_path)), [PHOTO])

    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first = "language_model.model.decoder.embed_tokens.weight"
        state["language_model.lm_head.weight"] = state[first] if stored == "both" else state.pop(first)
        return state

    public.rewritten(tmp_path, change)
    torch.testing.assert_close(public.our_logits(lyrics.load_model(str(tmp_path)), [PHOTO]), expected)


def damaged(folder: Path, name: str) -> None:
    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if name == "missing":
            del state["qformer.encoder.layer.2.attention.attention.value.weight"]
        elif name == "unknown":
            state["qformer.encoder.layer.1.crossattention.attention.key.weight"] = torch.zeros(32, 16)
        else:
            state["language_projection.weight"] = torch.zeros(24, 31)
        return state

    public.rewritten(folder, change)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", r"qformer\.encoder\.layer\.2\.attention\.attention\.value\.weight is missing"),
        ("unknown", r"layer\.1\.crossattention\.attention\.key\.weight is not part of the model"),
        ("of another width", r"language_projection\.weight \[24, 31\] gives \[24, 31\], but projection\.weight is"),
    ],
)
def test_every_key_is_accounted_for(tmp_path: Path, name: str, said: str) -> None:
    save_blip2(tmp_path)
    damaged(tmp_path, name)
    with pytest.raises(WeightsError, match=said) as refused:
        lyrics.load_model(str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("more", [{"num_query_tokens": 7}, {"qformer_config": {"vocab_size": 340}}])
def test_fewer_queries_or_words_than_the_configuration_says_are_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    """Only training may begin with fewer: here they would be random ones."""
    save_instructblip(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    changed = {**more, "qformer_config": {**entries["qformer_config"], **more.get("qformer_config", {})}}
    public.configured(tmp_path, **changed)
    with pytest.raises(WeightsError, match=r"query_tokens \[1, 4, 32\] gives|word_embeddings.weight \[320, 32\] gives"):
        lyrics.load_model(str(tmp_path))


def test_what_cannot_be_read_is_refused_by_its_small_files(tmp_path: Path) -> None:
    save_blip2(tmp_path / "blip2")
    save_instructblip(tmp_path / "instructblip")
    t5 = T5Config(d_model=24, num_layers=1, num_heads=2).to_dict()
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("blip2", {"text_config": t5}, r"an encoder-decoder \('t5'\), and no part of this library runs one"),
        ("instructblip", {"text_config": t5}, r"an encoder-decoder \('t5'\)"),
        ("blip2", {"qformer_config": {"hidden_act": "silu"}}, "the activation of its Q-Former is 'silu'"),
        ("blip2", {"vision_config": {"image_size": 14}}, r"prepares images with size .*28.*, and eva-vit-g does it"),
    ]
    for name, entries, problem in cases:
        folder = tmp_path / name
        before = (folder / "config.json").read_text()
        weights = (folder / "model.safetensors").read_bytes()
        public.configured(folder, **entries)
        (folder / "model.safetensors").write_bytes(b"not read")
        with pytest.raises(WeightsError, match=problem) as refused:
            lyrics.load_model(str(folder))
        assert "\n" not in str(refused.value)
        (folder / "config.json").write_text(before)
        (folder / "model.safetensors").write_bytes(weights)
    (tmp_path / "instructblip" / "qformer_tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(WeightsError, match="has no folder qformer_tokenizer with the tokenizer of its Q-Former"):
        lyrics.load_model(str(tmp_path / "instructblip"))


def small_mqformer(folder: Path, **changed: Any) -> lyrics.LyricsModel:
    """An MQ-Former model of the widths of the small checkpoints, with grounding queries and losses."""
    options = {"num_visual": 6, "num_grounding": 2, "hidden_size": 32, "num_layers": 3, "num_heads": 2, **changed}
    options |= {"intermediate_size": 48, "vocab_size": 330, "max_positions": 64, "tokenizer": None}
    spec = {
        "image_encoder": {"use": "eva-vit-g", "options": {"checkpoint": str(folder)}},
        "query_transformer": {"use": "mqformer", "options": options},
        "language_model": {
            "use": "causal-lm",
            "options": {"vocab_size": 300, "hidden_size": 24, "num_layers": 1, "num_heads": 2, "intermediate_size": 32},
        },
        "objectives": {"matching": "itm", "icg": "icg"},
    }
    return lyrics.build_model(spec, weights="random")


def test_a_stage_starts_from_the_models_that_answer(tmp_path: Path) -> None:
    theirs, _ = save_blip2(tmp_path)
    model = small_mqformer(tmp_path)
    before = model.query_transformer.state_dict()["query_tokens_QD"].clone()
    said: list[str] = []
    start_from(model, str(tmp_path), said.append)
    former = model.query_transformer
    assert isinstance(former, MQFormer)
    torch.testing.assert_close(former.query_tokens_QD[:4], theirs.query_tokens[0])
    torch.testing.assert_close(former.query_tokens_QD[4:], before[4:])
    torch.testing.assert_close(model.projection.weight, theirs.language_projection.weight)
    own = theirs.qformer.state_dict()
    parts = [own[f"encoder.layer.1.attention.attention.{one}.weight"] for one in ("query", "key", "value")]
    torch.testing.assert_close(former.state_dict()["layers.1.self_attention.qkv.weight"], torch.cat(parts))
    assert "tensors from" in said[0]
    assert "as they are initialized: objectives.icg" in said[0] or "query_transformer" in said[0]
    wide = small_mqformer(tmp_path, hidden_size=40)
    with pytest.raises(lyrics.LyricsError, match="none of its tensors fits"):
        start_from(wide, str(tmp_path), said.append)


def test_a_run_starts_from_it_and_answers(tmp_path: Path) -> None:
    save_blip2(tmp_path / "blip2")
    small = {"optimization__steps": 1, "optimization__global_batch": 2, "checkpoint__every_steps": 1}
    spec = small_mqformer(tmp_path / "blip2").spec.model_dump(mode="json")
    run(settings(tmp_path / "run", "instruct", model__spec=spec, model__start_from=str(tmp_path / "blip2"), **small))
    found = lyrics.load_model(str(tmp_path / "run"))
    assert isinstance(found.generate(PHOTO, QUESTION, max_new_tokens=3).text, str)
    shutil.rmtree(tmp_path / "blip2")
    with pytest.raises(lyrics.LyricsError, match="blip2"):
        lyrics.load_model(str(tmp_path / "run"))


def test_a_stage_starts_from_the_first_stage(tmp_path: Path) -> None:
    theirs = save_blip2_stage1(tmp_path)
    model = small_mqformer(tmp_path)
    start_from(model, str(tmp_path), lambda text: None)
    former = model.query_transformer
    assert isinstance(former, MQFormer)
    torch.testing.assert_close(former.word_embeddings.weight[:320], theirs.embeddings.word_embeddings.weight)
    classifier = model.objectives.get_submodule("matching").state_dict()["classifier.weight"]
    torch.testing.assert_close(classifier, theirs.itm_head.weight)
    with pytest.raises(WeightsError, match="lacks a language model, so it cannot answer; training begins with it by"):
        lyrics.load_model(str(tmp_path))
