"""``predictions.jsonl``: one line per sample, written as soon as it is answered, so that a run that was killed goes on.

A line is ``{"id", "prompt", "text", "answer", "objects"}``: ``text`` as the model wrote it, ``answer`` without box
markup, ``objects`` each with ``tag``, ``box_norm`` (left, top, right, bottom as shares), ``box_px`` (pixels),
``supported``, ``score``, ``iou``, ``evidence``. Where the language model says how sure it was, there is ``confidence``,
too, with ``mean_log_prob`` and ``min_log_prob`` (``lyrics.core.answers``). Ids are ``ROW:KEY``: the number of the
sample in its benchmark and the data set's own key. Processes that share a benchmark write a file each,
``predictions.I-of-N.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lyrics.core.answers import Answer, Confidence
from lyrics.core.errors import LyricsError
from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.geometry import Box
from lyrics.core.json_reading import parse_json
from lyrics.core.types import Sample

FILE = "predictions.jsonl"
_KEYS = ("sample_id", "question_id", "ref_id", "image_id")


@dataclass(frozen=True)
class Line:
    """One line: whose answer, to which prompt, and where it stands (for messages)."""

    id: str
    prompt: str
    prediction: Prediction
    where: str


def sample_id(row: int, sample: Sample) -> str:
    key = next((str(sample.extra[name]) for name in _KEYS if name in sample.extra), sample.image or "")
    return f"{row}:{key}"


def file_of(folder: Path, shard: tuple[int, int]) -> Path:
    """Return where process I of N writes; ``(0, 1)`` is the only one."""
    index, count = shard
    return folder / (FILE if count == 1 else f"predictions.{index}-of-{count}.jsonl")


def as_json(id: str, prompt: str, answer: Answer) -> str:
    """Return a line, without its end."""
    objects = [
        {
            "tag": one.tag,
            "box_norm": list(one.box_norm.as_tuple()),
            "box_px": [round(value, 2) for value in one.box_px],
            "supported": one.supported,
            "score": one.score,
            "iou": one.iou,
            "evidence": PredictedObject.of(one).evidence,
        }
        for one in answer.objects
    ]
    data: dict[str, Any] = {
        "id": id,
        "prompt": prompt,
        "text": answer.text,
        "answer": answer.plain_text,
        "objects": objects,
    }
    if answer.confidence is not None:
        data["confidence"] = asdict(answer.confidence)
    return json.dumps(data, ensure_ascii=False)


def read_predictions(folder: Path, prompts: Mapping[str, str], *, all_samples: bool) -> dict[str, Line]:
    """Return the answers that a benchmark's folder holds, those of all processes, by id. Changes no file.

    Args:
        folder: may not exist; then there are none.
        prompts: id -> prompt of the samples that are asked for.
        all_samples: whether ``prompts`` are those of the whole benchmark; of a part, answers to later samples are
            left out of account.

    A last line that was cut off (a killed run) is left out. Raises ``LyricsError`` naming file and line for one that is
    no prediction, whose id is there twice or is not the benchmark's, or that answers another prompt.
    """
    found: dict[str, Line] = {}
    whole: set[str] = set()
    for path in _files(folder):
        for number, text in enumerate(_lines(path), 1):
            if path.name != FILE and text in whole:
                continue  # merging was interrupted: the line is in both files
            if path.name == FILE:
                whole.add(text)
            line = _parsed(text, f"{path}, line {number}")
            if line.id in found:
                raise LyricsError(
                    f"{line.where}: {line.id!r} is there already: {found[line.id].where}. Remove one of the two."
                )
            if line.id not in prompts:
                if not all_samples and _row(line.id) >= len(prompts):
                    continue
                raise LyricsError(
                    f"{line.where}: the benchmark has no sample {line.id!r}. Were the files of the data set changed? "
                    "Remove the line, or write to another folder."
                )
            if line.prompt != prompts[line.id]:
                raise LyricsError(
                    f"{line.where}: answers {line.prompt!r}, but the benchmark asks {prompts[line.id]!r} now. Write to "
                    "another folder."
                )
            found[line.id] = line
    return found


def append(path: Path, lines: Sequence[str]) -> None:
    """Add lines and wait until they are on the disk.

    What a killed run left of a line is cut off first. Raises ``LyricsError``.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())


def merge(folder: Path) -> None:
    """Make one ``predictions.jsonl``, in the benchmark's order, of the files of several processes.

    A kill leaves the files readable.
    """
    shards = [path for path in _files(folder) if path.name != FILE]
    if not shards:
        return
    texts = {_parsed(text, str(path)).id: text for path in _files(folder) for text in _lines(path)}
    write_whole(folder / FILE, "".join(f"{texts[id]}\n" for id in sorted(texts, key=_row)))
    for path in shards:
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """The whole file or, after a kill, the one that was there. Raises ``LyricsError``."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LyricsError(f"{path}: cannot be written: {error.strerror}.") from error


def _files(folder: Path) -> list[Path]:
    """``predictions.jsonl`` first."""
    return [path for path in (folder / FILE,) if path.is_file()] + sorted(folder.glob("predictions.*-of-*.jsonl"))


def _lines(path: Path) -> list[str]:
    """Whole lines; a last one without an end is a killed run's."""
    try:
        data = path.read_bytes()
        return data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise LyricsError(f"{path}: cannot be read: {error}.") from error


def _parsed(text: str, where: str) -> Line:
    advice = "Remove the line to have it answered again."
    data = parse_json(text, f"{where}: is no prediction", LyricsError, advice=advice)
    try:
        objects = tuple(
            PredictedObject(
                str(one["tag"]),
                Box(*one["box_norm"]),
                bool(one["supported"]),
                one["score"],
                float(one["iou"]),
                # Lines of earlier releases have none; what was not supported has no score there.
                float(one.get("evidence", one["iou"] * (one["score"] or 0.0))),
            )
            for one in data["objects"]
        )
        sure = data.get("confidence")
        confidence = None if sure is None else Confidence(float(sure["mean_log_prob"]), float(sure["min_log_prob"]))
        id, prompt, written, answer = (data[key] for key in ("id", "prompt", "text", "answer"))
        if not all(isinstance(value, str) for value in (id, prompt, written, answer)) or _row(id) < 0:
            raise ValueError("id (ROW:KEY), prompt, text and answer must be texts")
    except (KeyError, TypeError, ValueError) as error:
        raise LyricsError(f"{where}: is no prediction: {type(error).__name__}: {error}. {advice}") from None
    return Line(id, prompt, Prediction(written, answer, objects, confidence), where)


def _row(id: str) -> int:
    row = id.partition(":")[0]
    return int(row) if row.isascii() and row.isdigit() else -1
