"""``lyrics refine --engine ray``: the same pass in Ray Data, on this machine or on a cluster.

Images are opened and resized by tasks on CPU cores, experts are held by one actor for each GPU, or for some cores each.
Rows come out as parquet shards in ``OUT/ray/rows`` and are brought together at the end, sorted by path, as those of
shards are. A second start lists only pictures that have no row there. (Ray's own ``CheckpointConfig`` would hold a
whole core for its filter: on two cores nothing is left to read with, and the run stands still.)

Only lists of our own making are read by Ray's readers. Everything that a worker needs comes with the task: the resolved
specification, never code.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from lyrics.core.arrow import import_arrow
from lyrics.core.build import build_refiner
from lyrics.core.contracts import Weights
from lyrics.core.data.refine_inputs import picture_at
from lyrics.core.errors import ImageError, LyricsError, MissingRequirementError
from lyrics.core.files import name_for_messages
from lyrics.core.json_reading import parse_json, read_json_object
from lyrics.core.lease import Lease
from lyrics.core.pictures.model_inputs import ModelImages, joined
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.formats import batched, check_formats
from lyrics.core.refining.index import KeySet, key_of
from lyrics.core.refining.inputs import InputPicture
from lyrics.core.refining.refine_files import FORMATS, GIVE_UP_AFTER
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, row_line, skipped_line, written_whole
from lyrics.core.refining.shards import MergeSummary, merge_lines
from lyrics.core.registry.registry import describe
from lyrics.core.types import Preprocessing

RAY_FOLDER = "ray"
#: Names in a file of the list that Ray reads.
_NAMES_OF_A_FILE = 512
#: Cores of a task that reads names, opens images, or writes rows: all three find room on the one core that the experts
#: leave on a machine of two. What takes as many as the experts would be run in their process, and nothing beside them.
_LIST, _OPEN, _WRITE = 0.2, 0.5, 0.2


@dataclass(frozen=True)
class RayOptions:
    """Where and how wide it runs.

    Args:
        address: of a cluster, as ``ray.init`` has it; None starts Ray on this machine.
        cores: of one actor, where there are no GPUs.
        batch_size: images that go through the experts together.
    """

    address: str | None = None
    cores: int = 4
    batch_size: int = 8


@dataclass(frozen=True)
class RefinerRecipe:
    """What a worker builds its refiner of: plain data alone."""

    spec: Mapping[str, Any]
    weights: str = "pretrained"
    dtype: str | None = None
    phrases: tuple[str, ...] | None = None

    def build(self, device: str | None = None) -> VisualRefiner:
        """Build it, the same on every worker."""
        import torch

        if self.weights == "random":
            torch.manual_seed(0)
        how = cast(Weights, self.weights)
        return build_refiner(dict(self.spec), weights=how, device=device, dtype=self.dtype)


def refine_on_ray(
    recipe: RefinerRecipe,
    pictures: Iterable[InputPicture],
    out: Path,
    *,
    options: RayOptions = RayOptions(),
    formats: Iterable[str] = FORMATS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeSummary:
    """Refine pictures that are files or in object stores, wherever Ray has room, into ``out``.

    ``out`` is a folder that all machines of the cluster see. A bad picture is a row with its error; it is not tried
    again by a second start.

    Raises:
        MissingRequirementError: Ray or pyarrow is not installed.
        LyricsError: Ray cannot be reached, or has too few cores; ``out`` is in use, or was made by another refiner; a
            picture is neither a file nor an address; or the experts failed on everything.
    """
    wanted = check_formats(formats)
    ray, arrow = import_ray(), import_arrow()
    out.mkdir(parents=True, exist_ok=True)
    work = out / RAY_FOLDER
    with ExitStack() as stack:
        stack.enter_context(Lease(out, "refining into"))
        _same_as_before(work, recipe, out)
        rows = _Rows(work / "rows", arrow)
        finished = rows.finished()
        total, waiting = _write_names(pictures, work / "names", arrow, finished)
        progress(total - waiting, total)
        if waiting:
            _start(ray, options, stack)
            watch = stack.enter_context(_Watch(work / "rows", total - waiting, total, progress, arrow))
            _run(ray, recipe, options, work)
            watch.stop()
            if (left := len(finished) + waiting - len(rows.finished())) > 0:
                raise LyricsError(f"Ray left {left} of {waiting} pictures without a row; start again for the rest.")
        rows.check()
        return merge_lines(out, {OBJECTS_FILE: rows.lines(), SKIPPED_FILE: rows.skipped_lines()}, 1, wanted)


def import_ray() -> Any:
    """Return Ray with Ray Data. Raises ``MissingRequirementError`` without it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingRequirementError(
            f"--engine ray needs Ray, which is not installed or not whole ({error}). Run: pip install "
            "'lyrics-vl[scale]'"
        ) from None
    return ray


def _same_as_before(work: Path, recipe: RefinerRecipe, out: Path) -> None:
    """Raise ``LyricsError`` where the rows in ``work`` are of another refiner, or ``out`` has rows of a plain run."""
    now = {"spec": recipe.spec, "weights": recipe.weights, "dtype": recipe.dtype, "phrases": recipe.phrases}
    now = json.loads(json.dumps(now))
    file = work / "refiner.json"
    if file.is_file():
        if read_json_object(file) != now:
            raise LyricsError(
                f"{name_for_messages(out)}: holds rows of another refiner or of other phrases; give another --out."
            )
        return
    if (out / OBJECTS_FILE).exists():
        raise LyricsError(
            f"{name_for_messages(out / OBJECTS_FILE)}: was made without --engine ray; give another --out."
        )
    work.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as opened:
        opened.write(json.dumps(now, indent=1).encode())


def _write_names(pictures: Iterable[InputPicture], folder: Path, arrow: Any, finished: KeySet) -> tuple[int, int]:
    """Write the list that Ray reads, and return how many pictures there are, and how many of them have no row yet.

    A name may be any bytes: they are written as hexadecimal digits, with those of where it is.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = waiting = 0
    seen = KeySet()

    def without_row() -> Iterator[str]:
        nonlocal total
        for one in pictures:
            if picture_at(one.name) != one:
                raise LyricsError(
                    f"{name_for_messages(one.name)}: --engine ray reads files and addresses alone; use --shard for "
                    "tar shards and for bytes in parquet files."
                )
            key = key_of(one.name)
            if key in seen:
                continue
            seen.add(key)
            total += 1
            if key not in finished:
                where = one.name if "://" in one.name else os.path.abspath(one.name)
                yield f"{os.fsencode(one.name).hex()} {os.fsencode(where).hex()}"

    for number, ids in enumerate(batched(without_row(), _NAMES_OF_A_FILE)):
        arrow.parquet.write_table(arrow.table({"id": ids}), folder / f"{number:08}.parquet")
        waiting += len(ids)
    return total, waiting


def _start(ray: Any, options: RayOptions, stack: ExitStack) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
    try:
        if not ray.is_initialized():
            local = {} if options.address else {"include_dashboard": False}
            ray.init(address=options.address, **quiet, **local)
            stack.callback(ray.shutdown)
    except Exception as error:  # no cluster there, no rights, another version
        where = f"at {options.address} " if options.address else ""
        raise LyricsError(f"Ray {where}cannot be used: {describe(error)}") from error


def _actors(ray: Any, options: RayOptions) -> tuple[int, dict[str, float]]:
    """How many actors, and what each takes. Cores are left for opening images: without any, nothing would move."""
    there = ray.cluster_resources()
    cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if cores < 2:
        raise LyricsError(f"Ray has {cores} CPU core; two are needed, one for the experts and one to open images.")
    if gpus:
        return min(gpus, cores - 1), {"num_gpus": 1, "num_cpus": 1}
    each = min(options.cores, cores - 1)
    return max(1, (cores - 1) // each), {"num_cpus": each}


def _run(ray: Any, recipe: RefinerRecipe, options: RayOptions, work: Path) -> None:
    from ray.data import ActorPoolStrategy, DataContext

    count, each = _actors(ray, options)
    context = DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    preprocessing = {
        name: expert.preprocessing for name, expert in build_refiner(dict(recipe.spec), weights="meta").experts.items()
    }
    try:
        (
            ray.data.read_parquet(str((work / "names").absolute()), ray_remote_args={"num_cpus": _LIST})
            .map_batches(Opener(preprocessing), batch_size=options.batch_size, batch_format="numpy", num_cpus=_OPEN)
            .map_batches(
                Seer,
                fn_constructor_args=(recipe, int(each.get("num_cpus", 1)), "num_gpus" in each),
                batch_size=options.batch_size,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=count),
                **each,
            )
            .write_parquet(str((work / "rows").absolute()), ray_remote_args={"num_cpus": _WRITE})
        )
    except LyricsError:
        raise
    except Exception as error:  # Ray wraps whatever a worker raised
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise LyricsError(f"Ray stopped: {cause}. Rows that are finished are kept; start again for the rest.") from (
            error
        )
    finally:
        context.enable_progress_bars = before


class Opener:
    """Opens images and prepares each for every expert; one that cannot be used is a row with its error."""

    def __init__(self, preprocessing: Mapping[str, Preprocessing]) -> None:
        self.processor = Processor(preprocessing)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        prepared = np.empty(len(batch["id"]), dtype=object)
        for index, one in enumerate(batch["id"]):
            name, where = (os.fsdecode(bytes.fromhex(part)) for part in str(one).split())
            try:
                prepared[index] = self.processor.images([picture_at(where).open()], names=[name])
            except ImageError as error:
                prepared[index] = (error.kind, str(error))
        return {"id": batch["id"], "prepared": prepared}


class Seer:
    """Holds the experts; gives the line of ``objects.jsonl`` of each image, or of ``skipped.jsonl``."""

    def __init__(self, recipe: RefinerRecipe, threads: int, on_gpu: bool) -> None:
        import torch

        if not on_gpu:
            torch.set_num_threads(threads)
        self.phrases = recipe.phrases
        self.refiner = recipe.build("cuda" if on_gpu else None)
        self.digest = self.refiner.digest(recipe.phrases)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        lines = np.empty(len(batch["id"]), dtype=object)
        kinds = np.full(len(batch["id"]), "", dtype=object)
        opened = {index: one for index, one in enumerate(batch["prepared"]) if isinstance(one, ModelImages)}
        seen = dict(zip(opened, self._lines(list(opened.values())), strict=True))
        for index, one in enumerate(batch["prepared"]):
            name = _name_of(str(batch["id"][index]))
            found = seen.get(index) if index in seen else ImageError(one[1], one[0])
            if isinstance(found, ImageError):
                kinds[index], lines[index] = found.kind, skipped_line(name, found).decode("utf-8")
            else:
                assert found is not None
                lines[index] = found.decode("utf-8")
        return {"id": batch["id"], "kind": kinds.astype(str), "line": lines.astype(str)}

    def _lines(self, images: Sequence[ModelImages]) -> list[bytes | ImageError]:
        if not images:
            return []
        try:
            together = self.refiner.placed(joined(images))
            phrases = None if self.phrases is None else [list(self.phrases)] * len(images)
            found = self.refiner.refine(together, phrases).refinements
            return [row_line(one.to_json() | {"refiner": self.digest}) for one in found]
        except Exception as error:  # an expert may raise anything
            if len(images) > 1:
                return [line for one in images for line in self._lines([one])]
            reason = str(error) if isinstance(error, LyricsError) else f"an expert failed: {describe(error)}"
            return [ImageError(f"{name_for_messages(images[0].names[0])}: {reason}", "expert")]


# --- what came out ---


@dataclass(frozen=True)
class _Rows:
    """The parquet shards that Ray wrote. One that cannot be read is of a task that died: its rows come again."""

    folder: Path
    arrow: Any

    def _tables(self, *columns: str) -> Iterator[Any]:
        for path in sorted(self.folder.rglob("*.parquet")):
            try:
                yield self.arrow.parquet.read_table(path, columns=list(columns))
            except (self.arrow.ArrowException, OSError):
                continue

    def finished(self) -> KeySet:
        """Keys of the pictures that have a row."""
        found = KeySet()
        for table in self._tables("id"):
            for one in table["id"].to_pylist():
                if (key := key_of(_name_of(one))) not in found:
                    found.add(key)
        return found

    def _of(self, *, skipped: bool) -> Iterator[bytes]:
        for table in self._tables("kind", "line"):
            for kind, line in zip(table["kind"].to_pylist(), table["line"].to_pylist(), strict=True):
                if bool(kind) == skipped:
                    yield line.encode("utf-8")

    def lines(self) -> Iterator[bytes]:
        return self._of(skipped=False)

    def skipped_lines(self) -> Iterator[bytes]:
        return self._of(skipped=True)

    def check(self) -> None:
        """Raise ``LyricsError`` where the experts failed on everything."""
        if next(self.lines(), None) is not None:
            return
        skipped = [parse_json(line) for line in islice(self.skipped_lines(), GIVE_UP_AFTER)]
        if len(skipped) == GIVE_UP_AFTER and all(one["kind"] == "expert" for one in skipped):
            raise LyricsError(
                f"the experts failed on every picture, so that the refiner seems to be broken; remove {self.folder} "
                f"before the next start. The first failure: {skipped[0]['reason']}"
            )


def _name_of(row_id: str) -> str:
    return os.fsdecode(bytes.fromhex(row_id.split()[0]))


class _Watch:
    """Counts finished rows every two seconds, for a progress bar."""

    def __init__(self, folder: Path, done: int, total: int, progress: Callable[[int, int], None], arrow: Any) -> None:
        self.folder, self.done, self.total, self.progress, self.arrow = folder, done, total, progress, arrow
        # Those that are there hold what was done before.
        self.counts: dict[Path, int] = dict.fromkeys(folder.rglob("*.parquet"), 0)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def stop(self) -> None:
        """Count a last time."""
        self.__exit__()
        self._count()

    def _watch(self) -> None:
        while not self.over.wait(2.0):
            self._count()

    def _count(self) -> None:
        for path in self.folder.rglob("*.parquet") if self.folder.is_dir() else ():
            if path not in self.counts:
                try:
                    self.counts[path] = self.arrow.parquet.read_metadata(path).num_rows
                except (self.arrow.ArrowException, OSError):
                    continue  # is being written
        self.progress(min(self.done + sum(self.counts.values()), self.total), self.total)
