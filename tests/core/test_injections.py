"""Reserved words in every place where text comes in: none becomes a special token or a picture, and each comes back as it was.

``test_prompts`` has questions, answers and spatial text of a prompt; here are conversations made of samples, tags that the refiner found,
and what the query transformer reads with its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters, digits
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast

from lyrics.core.build import build_model
from lyrics.core.data.collate import Collator, InstructionExamples
from lyrics.core.data.stream import Example
from lyrics.core.geometry import Box
from lyrics.core.model import LyricsModel
from lyrics.core.prompting import Encoded, fitted_prompt, spatial_text
from lyrics.core.prompts import TEMPLATES, Exchange, TokenPrompt, encode_words, segments_of, tokenize
from lyrics.core.refinement import Refinement
from lyrics.core.spatial import CODECS, SpatialObject, format_objects, parse
from lyrics.core.spatial_tokens import spatial_units
from lyrics.core.streams import SpecialTokens
from lyrics.core.tokenizers import byte_tokenizer, word_tokenizer
from lyrics.core.types import DetectedObject, Sample, Turn
from lyrics.plugins.mqformer.model import SPECIAL_TOKENS
from tests.core.small import small
from tests.core.test_prompts import SPECIALS, TOKENIZERS, injections

BOX, SIZE_PX = Box(0.1, 0.2, 0.5, 0.75), (640, 480)
TEXTS = injections()


def unigram_tokenizer() -> Any:
    """A unigram model, whose vocabulary holds the special tokens as pieces that are better than any other, as SentencePiece writes it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*((token, 0.0) for token in ("<unk>", *SPECIALS)), *((c, -9.0) for c in sorted(_alphabet()))]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("dog", -3.0), ("What", -3.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(SPECIALS[3:]),
        clean_up_tokenization_spaces=False,
    )


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())


LANGUAGE = {**TOKENIZERS, "words": word_tokenizer(SPECIALS), "unigram": unigram_tokenizer()}


def word_pieces(lower: bool) -> Any:
    """BERT's kind, with a piece for every character that the texts have, and the tokens that are added to it."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "dog", "mask"]
    characters = sorted(
        {c for text in [*TEXTS, ascii_letters, digits, "</>()[],.:_"] for c in (text, text.lower()) for c in c} - {" "}
    )
    pieces = [*names, *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=lower)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]", "[BOS]", "[MLM]"]})
    return tokenizer


QUERY = {
    "bytes": byte_tokenizer(SPECIAL_TOKENS),
    "words": word_tokenizer(SPECIAL_TOKENS),
    "uncased": word_pieces(True),
    "cased": word_pieces(False),
}


def reserved(tokenizer: Any, ids: Any) -> list[int]:
    """Those of the ids that stand for special tokens; what the vocabulary lacks is no injection."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
    return [index for index in ids if index in special]


def mixed(choices: Any, number: int) -> str:
    """One of them, so that every reserved word and every disguise meets each."""
    return list(choices)[(number + number // 20) % len(choices)]


def squeezed(text: str) -> str:
    """What BERT's normalisation leaves of a text: no case, no blanks, no control and no format characters."""
    return "".join(c for c in text.lower() if c.isprintable() and not c.isspace() and c != "\u200b")


# --- conversations made of samples ---

Made = Callable[[str], Sample]
THING = (DetectedObject("thing", BOX, 0.9), DetectedObject("other", Box(0.6, 0.8, 0.9, 0.9), 0.8))


def _tagged(text: str) -> tuple[DetectedObject, ...]:
    return (DetectedObject(text, BOX, 0.9), THING[1])


SLOTS: dict[str, Made] = {
    "option": lambda text: Sample(
        None, turns=(Turn("Which?", text),), extra={"task": "multi-choice", "options": (text, "no")}
    ),
    "question with options": lambda text: Sample(
        None, turns=(Turn(text, "yes"),), extra={"task": "multi-choice", "options": ("yes", "no")}
    ),
    "caption": lambda text: Sample(None, (text,), extra={"task": "caption"}),
    "caption of an object": lambda text: Sample(None, (text,), THING, extra={"task": "grounded-caption"}),
    "tag": lambda text: Sample(None, objects=_tagged(text), extra={"task": "rec"}),
    "tag that is not there": lambda text: Sample(None, extra={"task": "rec", "absent": text}),
    "tag with a question": lambda text: Sample(
        None, objects=_tagged(text), turns=(Turn(text, text),), extra={"task": "referential"}
    ),
    "tag with a caption": lambda text: Sample(None, (text,), _tagged(text), extra={"task": "referential"}),
    "question": lambda text: Sample(None, turns=(Turn(text, text),), extra={"task": "vqa"}),
    "turn": lambda text: Sample(None, turns=(Turn(text, text), Turn(text, "b")), extra={"task": "text"}),
}


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    overrides = {"query_transformer.options.max_positions": 512, "query_transformer.options.vocab_size": 512}
    return build_model(small(), overrides=overrides, weights="meta")


def conversations(model: LyricsModel, made: Made, codec: str) -> InstructionExamples:
    """The collator's work on a sample for each text, and on one that holds no reserved word, which comes last."""
    examples = [Example(n, "toy", n, made(text), None) for n, text in enumerate([*TEXTS, "thing"])]
    found = Collator("instruct", model.processor, seed=3, codec=codec)(examples)
    assert isinstance(found, InstructionExamples)
    assert len(found) == len(TEXTS) + 1
    return found


def written(text: str, codec: str) -> str:
    return format_objects([SpatialObject(text, BOX)], codec)


@pytest.mark.parametrize("name", ["merges", "words", "unigram"])
@pytest.mark.parametrize("slot", SLOTS)
def test_conversations_of_samples(model: LyricsModel, slot: str, name: str) -> None:
    tokenizer = LANGUAGE[name]
    *dialogues, harmless = conversations(model, SLOTS[slot], "lyrics").dialogues

    def prompt(dialogue: Any, template: str) -> TokenPrompt:
        return tokenize(segments_of(dialogue, TEMPLATES[template]), tokenizer, 2)

    expected = {template: reserved(tokenizer, prompt(harmless, template).ids) for template in TEMPLATES}
    for number, (text, dialogue) in enumerate(zip(TEXTS, dialogues, strict=True)):
        template = mixed(TEMPLATES, number)
        found = prompt(dialogue, template)
        assert reserved(tokenizer, found.ids) == expected[template], text
        assert not found.slots
        said = [part for exchange in dialogue for part in (exchange.instruction, exchange.answer or "")]
        assert any(text in part or written(text, "lyrics") in part for part in said)
        if name == "unigram" and tokenizer.unk_token in text:
            continue  # several unknown pieces are one; the word for it is no word of a vocabulary of this kind
        for part in said:
            assert tokenizer.decode(encode_words(tokenizer, part)) == part


@pytest.mark.parametrize("codec", sorted(set(CODECS) - {"pixel"}))
def test_tags_come_back_out_of_every_codec(model: LyricsModel, codec: str) -> None:
    """``rec`` answers with the object in markup; what the tag holds is no markup."""
    tokenizer = LANGUAGE["bytes"]
    *dialogues, _ = conversations(model, SLOTS["tag"], codec).dialogues
    seen = 0
    for text, (exchange,) in zip(TEXTS, dialogues, strict=True):
        ids = encode_words(tokenizer, exchange.answer or "")
        assert not reserved(tokenizer, ids)
        objects = parse(tokenizer.decode(ids), codec).objects
        if exchange.answer not in ("Yes.", "No."):
            seen += 1
            assert [one.tag for one in objects] == [text]
    assert seen > len(TEXTS) // 3


# --- tags that the refiner found, in a prompt with a picture ---


def refinement(text: str, count: int = 1) -> Refinement:
    return Refinement(SIZE_PX, objects=tuple(DetectedObject(text, BOX, 0.9 - n / 100) for n in range(count)))


@pytest.mark.parametrize("name", LANGUAGE)
def test_tags_of_the_refiner(model: LyricsModel, name: str) -> None:
    """Whole, and where the prompt has room for some of the objects only."""
    tokenizer = LANGUAGE[name]

    def prompt(text: str, template: str, codec: str, room: int) -> TokenPrompt:
        spec = model.spec.model_copy(update={"codec": codec, "spatial_in_prompt": True})
        found = refinement(text, 3)
        encoded = Encoded(torch.zeros(1, 2, 4), (found,), (spatial_text(found, codec),))
        part = SimpleNamespace(chat_template=template, tokenizer=tokenizer)
        return fitted_prompt((Exchange("What?", None, (0,)),), encoded, room, spec, part, 2)

    expected = {one: reserved(tokenizer, _outside(prompt("thing", one, "lyrics", 9999))) for one in TEMPLATES}
    for number, text in enumerate(TEXTS):
        template, codec = mixed(TEMPLATES, number), mixed(CODECS, number)
        whole = prompt(text, template, codec, 9999)
        checked = [whole]
        if number % 7 == 0:
            with pytest.warns(UserWarning, match="no room for all objects"):
                checked.append(prompt(text, template, codec, len(whole) - 10))
        for found in checked:
            assert reserved(tokenizer, _outside(found)) == expected[template], text
            assert [picture for _, picture in found.slots] == [0]
        again = tokenizer.decode(encode_words(tokenizer, spatial_text(refinement(text), codec)))
        if name == "unigram" and tokenizer.unk_token in again:
            continue
        assert [one.tag for one in parse(again, codec, SIZE_PX).objects] == [text]


def _outside(prompt: TokenPrompt) -> list[int]:
    """The ids beside those of the picture's place."""
    ((start, _),) = prompt.slots
    return [*prompt.ids[:start], *prompt.ids[start + 2 :]]


# --- what the query transformer reads ---


@pytest.mark.parametrize("name", QUERY)
def test_instructions_and_captions_of_the_query_transformer(
    model: LyricsModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokenizer = QUERY[name]
    monkeypatch.setattr(model.query_transformer, "tokenizer", tokenizer)
    special = SpecialTokens.from_tokenizer(tokenizer)
    assert -1 not in (special.cls, special.sep, special.mask, special.dec, special.mlm, special.bos)
    words = model._words(TEXTS)
    for text, ids in zip(TEXTS, words, strict=True):
        assert not reserved(tokenizer, ids), text
        if name in ("bytes", "words"):
            assert tokenizer.decode(ids) == text
        else:
            assert tokenizer.unk_token_id not in ids
            assert squeezed(tokenizer.decode(ids)) == squeezed(text)
    # The stream puts its own around them, and nothing else is one.
    monkeypatch.setattr(model, "spec", model.spec.model_copy(update={"sees": ("instruction", "spatial")}))
    stream = model._stream([refinement(text) for text in TEXTS], TEXTS)
    instructions = stream.text["C"]
    for ids, row, length in zip(words, instructions.ids_RL.tolist(), instructions.lengths_R.tolist(), strict=True):
        assert row[:length] == [special.cls, *ids, special.sep]


@pytest.mark.parametrize("name", QUERY)
def test_spatial_text_of_the_query_transformer(name: str) -> None:
    """The only special token is the [SEP] with which the released form ends an object."""
    tokenizer = QUERY[name]
    for number, text in enumerate(TEXTS):
        codec = mixed(CODECS, number)
        ends = [tokenizer.sep_token_id] * 2 if codec == "released" else []
        found = refinement(text, 2)
        units = spatial_units(found.objects, tokenizer, codec, SIZE_PX, 10_000)
        ids = [index for one in units for unit in one for index in unit]
        assert reserved(tokenizer, ids) == ends, text
        if name in ("bytes", "words"):
            assert [one.tag for one in parse(tokenizer.decode(ids), codec, SIZE_PX).objects] == [text] * 2
        else:
            written = "".join(spatial_text(refinement(text), codec).split())
            assert squeezed(tokenizer.decode(ids)).startswith(squeezed(written.replace("[SEP]", "")))
