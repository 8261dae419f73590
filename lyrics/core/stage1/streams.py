"""Streams: what an objective (or stage 2) asks of a query transformer, and what it gets back.

A stream is some of the tokens {V visual queries, G grounding queries, S spatial text, C caption or instruction} of one
sample, with a table of which segment sees which, the image whose features its queries read, and optionally a *prefix*:
another stream whose keys and values it may also see. A ``Stream`` here is R of them with the same table, one row per
sample. The query transformer packs all streams it is given without padding and runs them at once.

Letters: R rows of a stream, L text tokens (padded), B images, N image tokens, M local tokens, Q queries, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from lyrics.core.errors import ContractError, did_you_mean
from lyrics.kernels import Segment, StreamGroup

QUERY_SEGMENTS = ("V", "G")
TEXT_SEGMENTS = ("S", "C")

Table = Mapping[tuple[str, str], Literal["none", "full", "causal"]]
#: Which hidden states of a segment are wanted: all, the first of each row, or those where a bool [R,L] (host) is True.
Wanted = Literal["all", "first"] | torch.Tensor


def full(*groups: str) -> dict[tuple[str, str], Literal["none", "full", "causal"]]:
    """Return a table in which all segments of a group see each other and nothing else: ``full("VC", "GS")``."""
    return {(row, column): "full" for group in groups for row in group for column in group}


def rows_of(values_T: np.ndarray, lengths_R: np.ndarray, padding: int) -> np.ndarray:
    """Values of R rows one after another -> [R, L], padded on the right; int64."""
    rows_RL = np.full((len(lengths_R), int(lengths_R.max(initial=0))), padding, np.int64)
    rows_RL[np.arange(rows_RL.shape[1]) < lengths_R[:, None]] = values_T
    return rows_RL


@dataclass(frozen=True, eq=False)
class Text:
    """Token ids of one text segment, on the host.

    ``ids_RL`` are int64 padded on the right, ``lengths_R`` int64 true lengths (0 is fine).

    ``first_position`` is the position of each row's first token; every segment counts its own positions.
    """

    ids_RL: torch.Tensor
    lengths_R: torch.Tensor
    first_position: int = 0

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], first_position: int = 0) -> Text:
        """Pads lists of token ids (with 0, which is never read)."""
        lengths_R = np.fromiter(map(len, rows), np.int64, len(rows))
        ids_T = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths_R.sum()))
        return cls(torch.from_numpy(rows_of(ids_T, lengths_R, 0)), torch.from_numpy(lengths_R), first_position)

    @property
    def mask_RL(self) -> torch.Tensor:
        """True on real tokens: bool [R,L]."""
        return torch.arange(self.ids_RL.shape[1])[None, :] < self.lengths_R[:, None]

    def rows(self, index: torch.Tensor) -> Text:
        """Some rows, in the order given."""
        return replace(self, ids_RL=self.ids_RL[index], lengths_R=self.lengths_R[index])


@dataclass(frozen=True, eq=False)
class Stream:
    """R streams of one kind.

    Args:
        name: unique in one forward call.
        visibility: table over the segments present; ``("C", "C"): "causal"`` for left to right. Pairs left out see
            nothing.
        sample_R: int64, host: what identifies each row's sample (dropout is keyed on it).
        image_index_R: int64, host: which image each row's queries read; None for a stream without queries. A stream
            with queries has all the queries of the transformer.
        text: the text segments present, by name.
        prefix: name of another stream of the same call that every token sees as well.
        prefix_row_R: which row of the prefix; None for the same row.
        wanted: which outputs are read, by segment; segments left out have none, and the last layer does not compute
            them.
    """

    name: str
    visibility: Table
    sample_R: torch.Tensor
    image_index_R: torch.Tensor | None = None
    text: Mapping[str, Text] = field(default_factory=dict)
    prefix: str | None = None
    prefix_row_R: torch.Tensor | None = None
    wanted: Mapping[str, Wanted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        present = [*(QUERY_SEGMENTS if self.image_index_R is not None else ()), *self.text]
        for name in self.text:
            if name not in TEXT_SEGMENTS:
                raise ContractError(f"stream {self.name!r}: text segment {name!r} is not one of {TEXT_SEGMENTS}.")
            if self.text[name].lengths_R.shape != (self.num_rows,):
                raise ContractError(
                    f"stream {self.name!r}: segment {name!r} has {len(self.text[name].lengths_R)} rows, the stream "
                    f"{self.num_rows}."
                )
        for name in self.wanted:
            if name not in present:
                raise ContractError(
                    f"stream {self.name!r}: outputs of segment {name!r} are wanted, but it has {present}."
                )

    @property
    def num_rows(self) -> int:
        return int(self.sample_R.shape[0])

    def group(self, num_visual: int, num_grounding: int) -> StreamGroup:
        """Return the stream as the kernels know it: segments with their lengths. Queries are bank 0, text is bank 1."""
        segments = []
        if self.image_index_R is not None:
            for name, count in zip(QUERY_SEGMENTS, (num_visual, num_grounding), strict=True):
                segments.append(Segment(name, torch.full((self.num_rows,), count, dtype=torch.int64), bank=0))
        segments += [Segment(name, self.text[name].lengths_R, bank=1) for name in TEXT_SEGMENTS if name in self.text]
        return StreamGroup(self.name, tuple(segments), self.visibility, self.sample_R, self.prefix, self.prefix_row_R)


def merge(streams: Sequence[Stream]) -> list[Stream]:
    """Return one stream per name, for objectives that ask for the same one (ITC and ICG share the query stream).

    Wanted outputs are united.

    Raises:
        ContractError: two streams of one name differ in table, image index or text.
    """
    found: dict[str, Stream] = {}
    for stream in streams:
        other = found.setdefault(stream.name, stream)
        if other is stream:
            continue
        if not _same_tokens(stream, other):
            raise ContractError(f"two different streams are called {stream.name!r}; give one of them another name.")
        wanted = dict(other.wanted)
        for segment, rows in stream.wanted.items():
            if segment in wanted and not _same_wanted(wanted[segment], rows):
                raise ContractError(
                    f"stream {stream.name!r}: two objectives want different outputs of segment {segment!r}."
                )
            wanted[segment] = rows
        found[stream.name] = replace(other, wanted=wanted)
    return list(found.values())


def _same_tokens(a: Stream, b: Stream) -> bool:
    return (
        dict(a.visibility) == dict(b.visibility)
        and _equal(a.image_index_R, b.image_index_R)
        and _equal(a.sample_R, b.sample_R)
        and a.prefix == b.prefix
        and _equal(a.prefix_row_R, b.prefix_row_R)
        and set(a.text) == set(b.text)
        and all(_same_text(a.text[name], b.text[name]) for name in a.text)
    )


def _same_text(a: Text, b: Text) -> bool:
    return a.first_position == b.first_position and _equal(a.lengths_R, b.lengths_R) and _equal(a.ids_RL, b.ids_RL)


def _same_wanted(a: Wanted, b: Wanted) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return isinstance(a, str) and isinstance(b, str) and a == b


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen visual features of B images.

    Args:
        image_tokens_BND: the image encoder's tokens.
        local: per local source, its tokens [B,M,D] and which of them exist, bool [B,M]. M may be 0.
        image_mask_BN: which image tokens exist; None when all do.
    """

    image_tokens_BND: torch.Tensor
    local: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    image_mask_BN: torch.Tensor | None = None

    @property
    def num_images(self) -> int:
        return int(self.image_tokens_BND.shape[0])

    def row(self, image: int) -> Features:
        """Return one image's features, without those of the others in memory."""
        own = slice(image, image + 1)
        return Features(
            self.image_tokens_BND[own].clone(),
            {name: (tokens[own].clone(), mask[own].clone()) for name, (tokens, mask) in self.local.items()},
            None if self.image_mask_BN is None else self.image_mask_BN[own].clone(),
        )

    def followed_by(self, other: Features) -> Features:
        """Return the images of both, ``other``'s last. The shorter one's local tokens are padded with masked ones."""
        image_tokens_BND, _ = _both((self.image_tokens_BND,) * 2, (other.image_tokens_BND,) * 2)
        return Features(
            image_tokens_BND,
            {name: _both(pair, other.local[name]) for name, pair in self.local.items()},
            _stacked(self.image_mask_BN, other.image_mask_BN),
        )


@dataclass(frozen=True, eq=False)
class ProjectedFeatures:
    """Keys and values of B images, projected once per layer.

    A query transformer's ``project`` makes it and its forward reads it.

    ``image`` and ``local`` map a layer's number to (keys, values), each [B, tokens, heads, head width].
    """

    num_images: int
    image: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    local: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    image_mask_BN: torch.Tensor | None
    local_mask_BM: torch.Tensor | None

    def followed_by(self, other: ProjectedFeatures) -> ProjectedFeatures:
        """Return the images of both, ``other``'s last. The shorter one's local tokens are padded with masked ones."""
        return ProjectedFeatures(
            num_images=self.num_images + other.num_images,
            image={layer: _both(pair, other.image[layer]) for layer, pair in self.image.items()},
            local={layer: _both(pair, other.local[layer]) for layer, pair in self.local.items()},
            image_mask_BN=_stacked(self.image_mask_BN, other.image_mask_BN),
            local_mask_BM=_stacked(self.local_mask_BM, other.local_mask_BM),
        )


def _both(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = (_stacked(a, b) for a, b in zip(first, second, strict=True))
    assert keys is not None
    assert values is not None
    return keys, values


def _stacked(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """Return rows of both, padded with zeros to the longer second dimension."""
    if first is None or second is None:
        return None
    longest = max(first.shape[1], second.shape[1])
    padded = []
    for rows in (first, second):
        missing = rows.new_zeros(rows.shape[0], longest - rows.shape[1], *rows.shape[2:])
        padded.append(torch.cat([rows, missing], dim=1) if missing.shape[1] else rows)
    return torch.cat(padded)


class StreamOutputs:
    """Hidden states of the wanted rows of every stream.

    ``where`` gives, per (stream, segment), the rows of ``hidden_TD`` and the shape they are returned in.
    """

    def __init__(self, hidden_TD: torch.Tensor, where: Mapping[tuple[str, str], tuple[torch.Tensor, tuple[int, ...]]]):
        self._found = {key: (hidden_TD, rows, shape) for key, (rows, shape) in where.items()}

    @classmethod
    def of(cls, found: Mapping[tuple[str, str], torch.Tensor]) -> StreamOutputs:
        """Hidden states that are there already, by (stream, segment), in the shapes that ``__call__`` returns."""
        outputs = cls(torch.empty(0), {})
        for key, hidden in found.items():
            rows_TD = hidden.flatten(0, -2)
            outputs._found[key] = (rows_TD, torch.arange(len(rows_TD), device=hidden.device), tuple(hidden.shape[:-1]))
        return outputs

    def joined(self, other: StreamOutputs) -> StreamOutputs:
        """Return the outputs of two calls in one."""
        both = StreamOutputs(torch.empty(0), {})
        both._found = self._found | other._found
        return both

    def __call__(self, stream: str, segment: str) -> torch.Tensor:
        """The wanted hidden states of a segment.

        Returns:
            queries: [R, V or G, D]; ``first`` of a text segment: [R, D]; ``all`` or a mask of a text segment: [n,
                D], row after row.
        """
        try:
            hidden_TD, rows, shape = self._found[stream, segment]
        except KeyError:
            names = [f"{a}/{b}" for a, b in self._found]
            hint = did_you_mean(f"{stream}/{segment}", names)
            raise ContractError(
                f"no outputs of segment {segment!r} of stream {stream!r} were wanted; there are "
                f"{', '.join(names) or 'none'}.{hint}"
            ) from None
        return hidden_TD.index_select(0, rows).view(*shape, hidden_TD.shape[-1])


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that objectives put around text; -1 for one that the vocabulary lacks."""

    pad: int
    cls: int
    sep: int
    mask: int
    bos: int
    dec: int
    mlm: int

    @classmethod
    def none(cls) -> SpecialTokens:
        """Of a query transformer that reads no text."""
        return cls(*[-1] * 7)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> SpecialTokens:
        """Looks up [PAD], [CLS], [SEP], [MASK], [BOS], [DEC], [MLM]; one that the vocabulary lacks is -1."""
        unknown = getattr(tokenizer, "unk_token_id", None)
        ids = []
        for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[DEC]", "[MLM]"):
            found = tokenizer.convert_tokens_to_ids(name)
            ids.append(-1 if found is None or found == unknown else int(found))
        return cls(*ids)
