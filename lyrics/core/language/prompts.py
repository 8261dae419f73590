"""Prompts as lists of segments: words, special tokens and pictures. What stands around a user's words is a chat
template's (``lyrics.core.language.chat_templates``).

Words are always encoded with reserved tokens split: whatever a user types, a data set holds or a refiner finds stays
text, and never becomes a special token or another one that steers a model. An image's place is no token at all: soft
tokens are put there later (``lyrics.core.language.soft_prompts``).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from lyrics.core.errors import PromptError
from lyrics.core.json_reading import parse_json
from lyrics.core.renaming import renamed


@dataclass(frozen=True, slots=True)
class Words:
    """Text, of whatever origin.

    ``inside``: it stands within a text, and goes on from the special token or the image before it; a tokenizer that
    begins a text with a space begins it without one.
    """

    text: str
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Special:
    """One special token: ``bos`` or ``eos`` (the tokenizer's own), or the token of that spelling."""

    token: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of an image's soft tokens; ``index`` counts the images of the call."""

    index: int


Segment = Words | Special | Picture


@renamed(pictures="images")
@dataclass(frozen=True, slots=True)
class Exchange:
    """One instruction with the images it brings into the conversation, and its answer; ``None`` where it is to be
    generated.

    ``system`` of a conversation's first exchange says how all of it is to be answered: it takes the place of the chat
    template's own words for that, or stands before the instruction where the template has none. Of later exchanges it
    is not read.
    """

    instruction: str
    answer: str | None = None
    images: tuple[int, ...] = ()
    system: str = ""


Dialogue = Sequence[Exchange]
BOS, EOS = Special("bos"), Special("eos")


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids and places of images.

    Args:
        ids: token ids; at the place of an image, ``slots`` ids of 0 that are never read.
        targets: which of them are learned (answers and what ends them); false on images.
        slots: (position of its first soft token, image) of each image, in order.
    """

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    slots: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """What stands at each place: the id of a token, or the image whose soft tokens begin there.

        Two prompts about the same images whose keys begin alike are read alike so far.
        """
        pictures = dict(self.slots)
        return tuple(
            ("picture", pictures[place]) if place in pictures else token for place, token in enumerate(self.ids)
        )


def tokenize(segments: Sequence[tuple[Segment, bool]], tokenizer: Any, tokens_per_picture: int) -> TokenPrompt:
    """Segments as token ids.

    Neighboring words are encoded as one text, so that a prompt has the same tokens whether its answer follows or is
    generated.

    Raises:
        PromptError: the tokenizer lacks a special token that the template needs.
    """
    ids: list[int] = []
    targets: list[bool] = []
    slots: list[tuple[int, int]] = []
    text, text_start, inside = "", 0, False
    for segment, learned in segments:
        if isinstance(segment, Words):
            inside = inside if text else segment.inside
            text += segment.text
            encoded = encode_words(tokenizer, text, inside=inside)
            # What this piece changed at the end of the text before it belongs to this piece.
            kept = _common_prefix(ids[text_start:], encoded)
            del ids[text_start + kept :], targets[text_start + kept :]
            ids += encoded[kept:]
            targets += [learned] * (len(encoded) - kept)
            continue
        if isinstance(segment, Picture):
            slots.append((len(ids), segment.index))
            ids += [0] * tokens_per_picture
            targets += [False] * tokens_per_picture
        elif (token := special_id(tokenizer, segment.token)) is not None:
            ids.append(token)
            targets.append(learned)
        text, text_start = "", len(ids)
    return TokenPrompt(tuple(ids), tuple(targets), tuple(slots))


def encode_words(tokenizer: Any, text: str, *, inside: bool = False) -> list[int]:
    """Return the ids of a text in which nothing becomes a reserved token (``reserved_ids``).

    ``inside``: as for ``Words``.

    Characters that no text has, such as half a surrogate pair, are read as U+FFFD: what a shell or a data set passes on
    of bytes that are not UTF-8 harms no more than itself.
    """
    return encode_texts(_within_a_text(tokenizer) if inside else tokenizer, (text,))[0]


#: Tokenizer -> the same without the space with which it begins a text.
_within: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _within_a_text(tokenizer: Any) -> Any:
    """The tokenizer as it reads on behind a special token: Llama's begins the first piece of a text alone with a space,
    unless it is of the older kind, which begins every piece so.
    """
    splitter = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    if getattr(splitter, "prepend_scheme", None) != "first":
        return tokenizer
    if tokenizer not in _within:
        plain = copy.deepcopy(tokenizer)
        changed = plain.backend_tokenizer.pre_tokenizer
        changed.prepend_scheme = "never"
        plain.backend_tokenizer.pre_tokenizer = changed
        _within[tokenizer] = plain
    return _within[tokenizer]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return ``encode_words`` of each text, in about the time of one call of the tokenizer."""
    if not texts:
        return []
    readable = [_SURROGATE.sub("\ufffd", text) for text in texts]
    rows: list[list[int]] = tokenizer(
        readable, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]
    reserved = reserved_ids(tokenizer)
    for index, ids in enumerate(rows):
        if not reserved.isdisjoint(ids):
            rows[index] = _spelled(tokenizer, readable[index], ids, reserved)
    return rows


_SURROGATE = re.compile("[\ud800-\udfff]")


def reserved_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that no text of a user's, a data set's or a refiner's may become.

    Those of special tokens, and of every other added token that looks like markup: ``<tool_call>`` steers a model as
    much as a special token does, whether or not its tokenizer calls it one. Added tokens of letters and digits alone,
    or of white space, are words. So is the token for what the vocabulary lacks.
    """
    found = {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special or _is_markup(token.content)
    }
    found.update(getattr(tokenizer, "all_special_ids", ()))
    return frozenset(found - {tokenizer.unk_token_id})


def _is_markup(content: str) -> bool:
    return not (content.isspace() or content.strip().isalnum())


def _spelled(tokenizer: Any, text: str, ids: Sequence[int], reserved: Set[int]) -> list[int]:
    """A text in which the tokenizer found reserved tokens, without them."""
    plain = _without_added_tokens(tokenizer, reserved)
    if plain is not None:
        ids = plain.encode(text, add_special_tokens=False).ids
    # Unigram vocabularies (SentencePiece writes them so) hold special tokens as pieces like any other, and find them in
    # text.
    return [
        piece for index in ids for piece in (_letters(tokenizer, index, reserved) if index in reserved else (index,))
    ]


#: Tokenizer -> what was reserved, and the same tokenizer without it. Made when a text first needs it, which few do.
_plain: WeakKeyDictionary[Any, tuple[Set[int], Any]] = WeakKeyDictionary()


def _without_added_tokens(tokenizer: Any, reserved: Set[int]) -> Any:
    """The fast tokenizer behind one of transformers', with reserved tokens split as text; None where there is none.

    ``split_special_tokens`` spares added tokens that are not marked special; here they are.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    known, plain = _plain.get(tokenizer, (None, None))
    if known != reserved:
        from tokenizers import Tokenizer

        data = parse_json(backend.to_str())
        for token in data["added_tokens"]:
            token["special"] = token["id"] in reserved or token["special"]
        plain = Tokenizer.from_str(json.dumps(data))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        _plain[tokenizer] = (reserved, plain)
    return plain


def _letters(tokenizer: Any, index: int, reserved: Set[int]) -> list[int]:
    """The same token as the pieces of its characters."""
    found = [tokenizer.convert_tokens_to_ids(letter) for letter in tokenizer.convert_ids_to_tokens(index)]
    return [piece for piece in found if piece is not None and piece not in reserved]


def special_id(tokenizer: Any, name: str) -> int | None:
    """Return the id of ``Special(name)``; None for a beginning that the tokenizer does not have.

    Raises ``PromptError`` where it lacks the token.
    """
    if name == "bos":
        # Some families (Qwen) have none, and begin with their template.
        return None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    found = tokenizer.eos_token_id if name == "eos" else tokenizer.convert_tokens_to_ids(name)
    if found is None or (name != "eos" and found == getattr(tokenizer, "unk_token_id", None)):
        raise PromptError(
            f"the chat template needs the token {name!r}, which the language model's tokenizer does not have; "
            "set language_model.options.chat_template to another one, or to auto for the tokenizer's own."
        )
    return int(found)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def cut(prompt: TokenPrompt, longest: int, tokens_per_picture: int) -> TokenPrompt:
    """Return the first ``longest`` tokens, without an image that would be cut through."""
    end = min(longest, len(prompt))
    for start, _ in prompt.slots:
        if start < end < start + tokens_per_picture:
            end = start
    slots = tuple((start, picture) for start, picture in prompt.slots if start + tokens_per_picture <= end)
    return TokenPrompt(prompt.ids[:end], prompt.targets[:end], slots)
