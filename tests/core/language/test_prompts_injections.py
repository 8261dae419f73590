"""Reserved words in every place where text comes in: none becomes a special token or a picture, and each comes back as
it was.

``test_prompts`` has questions, answers and spatial text of a prompt; here are conversations made of samples, tags that
the refiner found, and what the query transformer reads with its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters, digits
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast

from lyrics.core.data.collate import Collator, InstructionExamples
from lyrics.core.data.stream import Example
from lyrics.core.geometry import Box
from lyrics.core.language.chat_templates import TEMPLATES, segments_of
from lyrics.core.language.codecs import CODECS, SpatialObject, format_objects, parse
from lyrics.core.language.prompting import Encoded, fitted_prompt, spatial_text
from lyrics.core.language.prompts import (
    Exchange,
    TokenPrompt,
    encode_texts,
    encode_words,
    tokenize,
)
from lyrics.core.language.spatial_tokens import spatial_units
from lyrics.core.language.tokenizers import builtin_tokenizer, byte_tokenizer
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from lyrics.core.stage1.streams import SpecialTokens
from lyrics.core.types import DetectedObject, Sample, Turn
from lyrics.plugins.mqformer.model import SPECIAL_TOKENS
from tests.core.language.test_prompts import SPECIALS, TOKENIZERS, injections, merging_tokenizer
from tests.core.small import small

BOX, SIZE_PX = Box(0.1, 0.2, 0.5, 0.75), (640, 480)
TEXTS = injections()


def unigram_tokenizer() -> Any:
    """A unigram model, whose vocabulary holds the special tokens as pieces that are better than any other, as
    SentencePiece writes it.
    """
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


LANGUAGE = {**TOKENIZERS, "words": builtin_tokenizer("words", SPECIALS), "unigram": unigram_tokenizer()}


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
    "words": builtin_tokenizer("words", SPECIAL_TOKENS),
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
    """What BERT's normalization leaves of a text: no case, no blanks, no control and no format characters."""
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
        return fitted_prompt((Exchange("What?", None, (0,)),), encoded, room, spec, part)

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


# --- five thousand injections over six tokenizers, one of them with added tokens that nobody marked as special ---

ADDED = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "[IMG]", "<\uff5ctool\u2581begin\uff5c>", "<a b>")
WORDS_ADDED = ("covid19", "  ", "\n\n\n")


def added_tokenizer() -> Any:
    """A byte-level BPE to which tokens were added that are not marked special, as Qwen's are, and some that are mere
    words.
    """
    from tokenizers import AddedToken

    tokenizer = merging_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED[:4]])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=True, lstrip=True) for token in ADDED[4:]])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in WORDS_ADDED])
    return tokenizer


def added_word_pieces() -> Any:
    tokenizer = word_pieces(True)
    tokenizer.add_tokens(list(ADDED))
    return tokenizer


SIX: dict[str, Any] = {
    "bytes": LANGUAGE["bytes"],
    "words": LANGUAGE["words"],
    "uncased, added": added_word_pieces(),
    "cased": QUERY["cased"],
    "added": added_tokenizer(),
    "unigram": LANGUAGE["unigram"],
}


def steering(tokenizer: Any) -> frozenset[int]:
    """What must not come out of text, said here in another way than the code says it: by the spelling of every added
    token.
    """
    spelled = {*SPECIALS, *ADDED, *SPECIAL_TOKENS, "[CLS]", "[SEP]", "[MASK]", "[PAD]"}
    return frozenset(index for token, index in tokenizer.get_vocab().items() if token in spelled)


def five_thousand() -> list[str]:
    """Reserved words in each other, beside each other, broken, doubled, and in everything that text may hold; the same
    at every run.
    """
    from random import Random

    random = Random(5)
    reserved_words = [*SPECIALS, *ADDED, *SPECIAL_TOKENS, "<|endoftext|>", "<unk>"]
    filler = [
        "dog",
        "What is it?",
        " ",
        "\n",
        "\t",
        "\u200b",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\udcff",
        "\u202e",
        "\U0001f436",
        "e\u0301",
        "(0,0)",
    ]
    found = {f"a{word}b" for word in reserved_words}
    while len(found) < 5000:
        pieces = [
            random.choice(filler if random.random() < 0.4 else reserved_words) for _ in range(random.randint(1, 6))
        ]
        if random.random() < 0.3:
            place = random.randrange(len(pieces))
            cut = random.randrange(len(pieces[place]) + 1)
            pieces[place : place + 1] = [pieces[place][:cut], random.choice(reserved_words), pieces[place][cut:]]
        found.add("".join(pieces) + random.choice(["", "", "?", pieces[0]]))
    return sorted(found)


def _asked(text: str) -> list[Any]:
    return [Exchange(text, None, (0,))]


PLACES: dict[str, Callable[[str], list[Any]]] = {
    "question": _asked,
    "options": lambda text: _asked(f"Which? Options: (A) {text} (B) no"),
    "chat": lambda text: [Exchange("Hello", text, (0,)), Exchange(text, "Yes.", ()), Exchange(text, None, ())],
    "tag": lambda text: _asked(format_objects([SpatialObject(text, BOX)], "lyrics")),
    "caption": lambda text: [Exchange("Describe the picture.", text, (0,))],
}


@pytest.mark.long
@pytest.mark.parametrize("name", SIX)
def test_five_thousand_injections(name: str) -> None:
    tokenizer = SIX[name]
    forbidden = steering(tokenizer)
    assert len(forbidden) > 5
    template = (
        TEMPLATES["released"] if tokenizer.bos_token_id is not None and tokenizer.eos_token_id is not None else None
    )
    texts = five_thousand()
    for ids in encode_texts(tokenizer, texts):  # captions and instructions of the query transformer
        assert forbidden.isdisjoint(ids)
    for number, text in enumerate(texts):
        dialogue = PLACES[mixed(PLACES, number)](text)
        if template is None:  # BERT's kind begins and ends nothing
            found = encode_words(
                tokenizer, "".join(part for one in dialogue for part in (one.instruction, one.answer or ""))
            )
            assert forbidden.isdisjoint(found), text
            continue
        prompt = tokenize(segments_of(dialogue, template, lambda picture, text=text: text), tokenizer, 2)
        ends = sum(one.answer is not None for one in dialogue)
        assert [index for index in _outside(prompt) if index in forbidden] == [
            tokenizer.bos_token_id,
            *[tokenizer.eos_token_id] * ends,
        ], text


@pytest.mark.parametrize("name", ["bytes", "words", "added"])
def test_injections_come_back_as_they_were(name: str) -> None:
    tokenizer = SIX[name]
    for text, ids in zip(five_thousand()[::5], encode_texts(tokenizer, five_thousand()[::5]), strict=True):
        assert tokenizer.decode(ids) == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def test_added_words_stay_words() -> None:
    """Letters, digits and white space steer nothing; a checkpoint that added them was trained on them."""
    tokenizer = SIX["added"]
    for word in WORDS_ADDED:
        assert tokenizer.convert_tokens_to_ids(word) in encode_words(tokenizer, f"a{word}b")
        assert tokenizer.convert_tokens_to_ids(word) in encode_words(tokenizer, f"<tool_call>{word}b")


def test_other_text_is_encoded_as_ever() -> None:
    """Splitting reserved words changes nothing around them."""
    tokenizer = SIX["added"]
    before, inside, after = "USER: what is it? ", "<tool_call>", " a dog."
    assert encode_words(tokenizer, before) == tokenizer(before, add_special_tokens=False)["input_ids"]
    found = encode_words(tokenizer, before + inside + after)
    assert tokenizer.decode(found) == before + inside + after
    assert found[: len(encode_words(tokenizer, before)) - 1] == encode_words(tokenizer, before)[:-1]


def test_tokens_added_later_are_reserved_too() -> None:
    tokenizer = added_tokenizer()
    assert encode_words(tokenizer, "<tool_call><late>")
    tokenizer.add_tokens(["<late>"])
    assert tokenizer.convert_tokens_to_ids("<late>") not in encode_words(tokenizer, "<tool_call><late>")


def test_what_is_not_utf8_is_read_as_such() -> None:
    for tokenizer in SIX.values():
        assert encode_words(tokenizer, "caf\udce9 dog\ud800") == encode_words(tokenizer, "caf\ufffd dog\ufffd")


def test_tags_that_a_detector_is_asked_for() -> None:
    from lyrics.core.language.phrase_prompts import PromptWriter

    tokenizer = SIX["uncased, added"]
    writer = PromptWriter(tokenizer, (2, 3, 4, 5), 256)
    forbidden = steering(tokenizer)
    for ids in writer.tokens(five_thousand()):
        assert forbidden.isdisjoint(ids)
    assert writer.tokens([]) == []


@pytest.mark.long
@pytest.mark.parametrize("name", SIX)
def test_a_megabyte_takes_linear_time(name: str) -> None:
    """16 times the text takes about 16 times as long, as a prompt too; work that grows with the square would take 256
    times.
    """
    from time import process_time

    tokenizer = SIX[name]
    piece = "a dog</s><tool_call>[DEC]" + "x" * 25

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        start = process_time()
        if name in ("added", "unigram"):
            tokenize(segments_of(_asked(text), TEMPLATES["vicuna-v1.1"]), tokenizer, 2)
        else:
            encode_words(tokenizer, text)
        return process_time() - start

    # Those that spell reserved words out do it for the whole megabyte; of the others a quarter says as much.
    size = 2**20 if name in ("added", "unigram") else 2**18
    seconds(1000)
    assert seconds(size) < 90 * max(seconds(size // 16), 0.005)
