"""The stage-1 step of recipe ``paper`` as it would be written without packing: what the packed step must equal, and is
timed against.

N1 is one dense-masked pass over all 224 tokens per objective (matching has three). N3 is BLIP-2's way: the query pass
caches its keys and values for the caption, the texts run alone, matching is one batch of three, and everything is still
padded, projected anew for each pass, and computed to the last row of the last layer. Both use the query transformer's
``forward_dense`` and its weights, and the objectives' own losses.

Letters: B samples, L padded tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lyrics.core.stage1.batch import PretrainBatch
from lyrics.core.stage1.negatives import Negatives, negative_pairs
from lyrics.core.stage1.state import Loss, StepState
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs, Table, Text, full

_READ_QUERIES: Table = {("S", "V"): "full", ("S", "G"): "full", ("C", "V"): "full", ("C", "G"): "full"}


@dataclass
class _Collected:
    """Rows that the losses read, by stream and segment, as if a packed pass had returned them."""

    found: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    def take(self, stream: Stream, dense: Any) -> None:
        """The wanted rows of a stream from the dense outputs that contain its tokens."""
        for name, wanted in stream.wanted.items():
            rows_RLD = dense.hidden_RLD[:, dense.segments[name]]
            if isinstance(wanted, torch.Tensor):
                self.found[stream.name, name] = rows_RLD.flatten(0, 1)  # all of them: the head computes every row
            elif wanted == "first":
                self.found[stream.name, name] = rows_RLD[:, 0]
            else:
                self.found[stream.name, name] = rows_RLD

    def outputs(self) -> StreamOutputs:
        hidden = {key: rows.flatten(0, -2) for key, rows in self.found.items()}
        outputs = StreamOutputs(torch.empty(0), {})
        for key, rows in hidden.items():
            everything = torch.arange(len(rows), device=rows.device)
            outputs = outputs.joined(StreamOutputs(rows, {key: (everything, tuple(self.found[key].shape[:-1]))}))
        return outputs


@dataclass(frozen=True, eq=False)
class _Parts:
    """The streams that the objectives declare, and each sample's full texts to fill the passes with."""

    streams: Mapping[str, Stream]
    text: Mapping[str, Text]

    def filled(self, stream: Stream) -> dict[str, Text]:
        """The stream's texts; where it lacks one, the full text stands there, as it would in a joint batch."""
        return {name: stream.text.get(name, self.text[name]) for name in ("S", "C")}


def dense_losses(
    query_transformer: Any,
    objectives: Mapping[str, Any],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives,
) -> dict[str, Loss]:
    """N1: six joint passes over V, G, S, C, each with its objective's mask and all its logits."""
    parts, matching = _declared(objectives, batch, negatives)
    collected = _Collected()
    own = torch.arange(len(batch))

    def run(name: str, table: Any, text: Mapping[str, Text]) -> Any:
        return query_transformer.forward_dense(Stream(name, table, batch.sample_B, own, text), features)

    contrastive = run("itc", full("VG", "SC"), parts.streams["itc.text"].text)
    collected.take(parts.streams["queries"], contrastive)
    collected.take(parts.streams["itc.text"], contrastive)
    for name in ("icg", "msp"):
        stream = parts.streams[name]
        table = dict(stream.visibility)
        if stream.prefix is not None:
            table |= full("VG") | {pair: seen for pair, seen in _READ_QUERIES.items() if pair[0] in stream.text}
        collected.take(stream, run(name, table, parts.filled(stream)))
    for stream in matching:
        collected.take(stream, query_transformer.forward_dense(stream, features))
    return _losses(query_transformer, objectives, batch, negatives, parts, collected)


def cached_losses(
    query_transformer: Any,
    objectives: Mapping[str, Any],
    features: Features,
    batch: PretrainBatch,
    negatives: Negatives,
) -> dict[str, Loss]:
    """N3: queries, text, caption on the queries' cached keys and values, masked spatial text, and one matching batch of
    three.
    """
    parts, matching = _declared(objectives, batch, negatives)
    collected = _Collected()
    queries = query_transformer.forward_dense(parts.streams["queries"], features)
    collected.take(parts.streams["queries"], queries)
    for name in ("itc.text", "icg", "msp"):
        stream = parts.streams[name]
        cache = queries.cache if stream.prefix is not None else None
        collected.take(stream, query_transformer.forward_dense(stream, features, cache))
    images = [stream.image_index_R for stream in matching if stream.image_index_R is not None]
    joint = Stream(
        "itm",
        matching[0].visibility,
        torch.cat([stream.sample_R for stream in matching]),
        torch.cat(images),
        {name: _stacked([stream.text[name] for stream in matching]) for name in ("S", "C")},
    )
    dense = query_transformer.forward_dense(joint, features)
    first = 0
    for stream in matching:
        rows = dense.hidden_RLD[first : first + stream.num_rows]
        for name in stream.wanted:
            collected.found[stream.name, name] = rows[:, dense.segments[name]]
        first += stream.num_rows
    return _losses(query_transformer, objectives, batch, negatives, parts, collected)


def _declared(objectives: Mapping[str, Any], batch: PretrainBatch, negatives: Negatives) -> tuple[_Parts, list[Stream]]:
    own = torch.arange(len(batch))
    declared: dict[str, Stream] = {}
    for objective in objectives.values():
        for stream in objective.streams(batch):
            if stream.wanted or stream.name not in declared:
                declared[stream.name] = stream
    pairs = negative_pairs(batch, negatives, own, torch.device("cpu"))
    matching = [declared.pop("itm.positive"), *objectives["itm"].negative_streams(batch, pairs)]
    return _Parts(declared, declared["itc.text"].text), matching


def _losses(
    query_transformer: Any,
    objectives: Mapping[str, Any],
    batch: PretrainBatch,
    negatives: Negatives,
    parts: _Parts,
    collected: _Collected,
) -> dict[str, Loss]:
    outputs = collected.outputs()
    pairs = negative_pairs(batch, negatives, torch.arange(len(batch)), torch.device("cpu"))
    similarity = objectives["itc"].similarity(outputs, batch)
    losses = {}
    for name, objective in objectives.items():
        rows = list(parts.streams[name].wanted.values()) if name in parts.streams else []

        def logits(hidden_nD: torch.Tensor, rows: list[Any] = rows) -> torch.Tensor:
            """All rows through the head; then those that are targets."""
            wanted: torch.Tensor = rows[0].flatten().to(hidden_nD.device)
            chosen: torch.Tensor = query_transformer.token_logits(hidden_nD)[wanted]
            return chosen

        losses[name] = objective.loss(StepState(batch, outputs, logits, similarity, pairs))
    return losses


def _stacked(texts: list[Text]) -> Text:
    return Text(
        torch.cat([text.ids_RL for text in texts]),
        torch.cat([text.lengths_R for text in texts]),
        texts[0].first_position,
    )
