"""``lyrics refine --engine ray``: the same pass in Ray Data, on this machine or on a cluster.

Images are opened and resized by tasks on CPU cores, experts are held by one actor for each GPU, or for some cores each.
Rows come out as parquet shards in ``OUT/ray/rows`` and are brought together at the end, sorted by path, as those of
shards are. A second start lists only images that have no row there. (Ray's own ``CheckpointConfig`` would hold a
whole core for its filter: on two cores nothing is left to read with, and the run stands still. It would not say what
is left to do, either.)

Only lists of our own making are read by Ray's readers. Everything that a worker needs comes with the task: the resolved
specification, never code.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lyrics.core.arrow import import_arrow
from lyrics.core.build import build_refiner
from lyrics.core.contracts import Weights
from lyrics.core.data.refine_inputs import is_address, picture_at
from lyrics.core.errors import ImageError, LyricsError, MissingRequirementError
from lyrics.core.files import name_for_messages
from lyrics.core.json_reading import read_json_object
from lyrics.core.lease import Lease
from lyrics.core.pictures.model_inputs import ModelImages, joined
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.formats import batched, check_formats
from lyrics.core.refining.index import KeySet, key_of
from lyrics.core.refining.inputs import InputPicture
from lyrics.core.refining.refine_files import FORMATS, GIVE_UP_AFTER
from lyrics.core.refining.refiner import VisualRefiner
from lyrics.core.refining.rows import OBJECTS_FILE, SKIPPED_FILE, row_line, skipped_line, written_whole
from lyrics.core.refining.shards import SHARDS_FOLDER, MergeSummary, check_merged, merge_lines
from lyrics.core.registry.registry import describe
from lyrics.core.types import Preprocessing
from lyrics.workflows.ray_rows import RowCounter, RowShards, name_and_place, row_id

RAY_FOLDER = "ray"
#: Names in a file of the list that Ray reads.
_NAMES_OF_A_FILE = 512
#: Rows in a file at most; or a thousandth of what there is to do, which is lost where all is killed.
_ROWS_OF_A_FILE = 512
#: So often a batch is given to an actor again that died of it, or of something else.
_TRIES = 4
#: Cores of a task that reads names, opens images, or writes rows: all three find room on the one core that the experts
#: leave on a machine of two. What takes as many as the experts would be run in their process, and nothing beside them.
_LIST, _OPEN, _WRITE = 0.2, 0.5, 0.2
#: Settings of a Ray that is started here, where the caller's environment has none: on a busy machine Ray would have
#: workers of the lowest priority, end those that do not come up within a minute, and start others in their place.
_PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_health_check_failure_threshold": "20",
    "RAY_num_workers_soft_limit": "8",
}
_QUIET = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}


@dataclass(frozen=True)
class RayOptions:
    """Where and how wide it runs.

    Args:
        address: of a cluster, as ``ray.init`` has it; None starts Ray on this machine.
        cores: of one actor, where there are no GPUs; as many of four as a machine can spare unless given.
        batch_size: images that go through the experts together.
    """

    address: str | None = None
    cores: int | None = None
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
    """Refine images that are files or in object stores, wherever Ray has room, into ``out``.

    ``out`` is a folder that all machines of the cluster see. A bad image is a row with its error; as without Ray, the
    next start tries it again.

    Raises:
        MissingRequirementError: Ray or pyarrow is not installed.
        LyricsError: Ray cannot be reached, or has too few cores; ``out`` is in use, or was made by another refiner; an
            image is neither a file nor an address; or the experts failed on everything.
    """
    wanted = check_formats(formats)
    ray, arrow = import_ray(), import_arrow()
    out.mkdir(parents=True, exist_ok=True)
    work = out / RAY_FOLDER
    with ExitStack() as stack:
        stack.enter_context(Lease(out, "refining into"))
        _same_as_before(work, recipe, out)
        rows = RowShards(work / "rows", arrow)
        made_by = rows.refiner()
        total, waiting = _write_names(pictures, work / "names", arrow, rows.keys())
        progress(total - waiting, total)
        if waiting:
            _start(ray, options, stack)
            folder = rows.begin()
            with RowCounter(folder, total - waiting, total, progress, arrow):
                _run(ray, recipe, options, work / "names", folder, waiting, made_by)
            if left := waiting - len(rows.keys(last_start=True)):
                raise LyricsError(f"Ray left {left} of {waiting} images without a row; start again for the rest.")
            rows.refiner()
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
    """Raise ``LyricsError`` where the rows in ``work`` are of another refiner, or ``out`` has rows of other runs."""
    check_merged(out, "without --engine ray")
    now = {"spec": recipe.spec, "weights": recipe.weights, "dtype": recipe.dtype, "phrases": recipe.phrases}
    now = json.loads(json.dumps(now))
    file = work / "refiner.json"
    if file.is_file():
        if read_json_object(file) != now:
            raise LyricsError(
                f"{name_for_messages(out)}: holds rows of another refiner or of other phrases; give another --out."
            )
        return
    if (out / SHARDS_FOLDER).exists():
        raise LyricsError(f"{name_for_messages(out)}: holds rows of runs with --shard; give another --out.")
    work.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as opened:
        opened.write(json.dumps(now, indent=1).encode())


def _write_names(pictures: Iterable[InputPicture], folder: Path, arrow: Any, finished: KeySet) -> tuple[int, int]:
    """Write the list that Ray reads, and return how many images there are, and how many of them have no row yet."""
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
                yield row_id(one.name, one.name if is_address(one.name) else os.path.abspath(one.name))

    for number, ids in enumerate(batched(without_row(), _NAMES_OF_A_FILE)):
        arrow.parquet.write_table(arrow.table({"id": ids}), folder / f"{number:08}.parquet")
        waiting += len(ids)
    return total, waiting


def _start(ray: Any, options: RayOptions, stack: ExitStack) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its makers of each start otherwise
    try:
        if not ray.is_initialized():
            if options.address:
                _answers(options.address)
                ray.init(address=options.address, **_QUIET)
            else:
                start_here(ray)
            stack.callback(ray.shutdown)
    except Exception as error:  # no cluster there, no rights, another version
        where = f"at {options.address} " if options.address else ""
        raise LyricsError(f"Ray {where}cannot be used: {describe(error)}") from error


def _answers(address: str) -> None:
    """Raise ``OSError`` where an address is of a machine and port and nothing is there; Ray would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def start_here(ray: Any, **settings: Any) -> None:
    """Start Ray on this machine; ``settings`` are those of ``ray.init``.

    It gives its own processes half a minute to come up, which is too little where many others run. What did not come up
    is ended, and started again. Raises what the last of three starts raised.
    """
    for name, value in _PATIENT.items():
        os.environ.setdefault(name, value)
    for again in (True, True, False):
        try:
            ray.init(include_dashboard=False, **_QUIET, **settings)
            return
        except Exception:
            ray.shutdown()
            if not again:
                raise


def actors(machines: Iterable[Mapping[str, float]], cores: int | None) -> tuple[int, dict[str, float]]:
    """Return how many actors there are, and what each takes.

    Cores are left for opening images: without any, nothing would move.

    Args:
        machines: what each has, as Ray counts it: ``CPU`` and ``GPU``.
        cores: of one actor where there are no GPUs.

    Raises:
        LyricsError: there are not two cores, or no machine has so many.
    """
    each_has = [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in machines]
    total = sum(cpus for cpus, _ in each_has)
    if total < 2:
        raise LyricsError(f"Ray has {total} CPU core; two are needed, one for the experts and one to open images.")
    if any(gpus for _, gpus in each_has):
        return min(sum(min(one) for one in each_has), total - 1), {"num_gpus": 1, "num_cpus": 1}
    largest = max(cpus for cpus, _ in each_has)
    most = largest - (largest == total)
    if cores is not None and cores > most:
        raise LyricsError(f"--cores {cores}: an actor can have {most} here, one core is left to open images.")
    each = cores or min(4, most)
    # An actor lives on one machine.
    count = sum(cpus // each for cpus, _ in each_has)
    return count - (count * each > total - 1), {"num_cpus": each}


def _run(
    ray: Any, recipe: RefinerRecipe, options: RayOptions, names: Path, rows: Path, waiting: int, made_by: str | None
) -> None:
    """Refine the images of the list in ``names`` into shards in ``rows``."""
    from ray.data import ActorPoolStrategy, DataContext

    count, each = actors((node["Resources"] for node in ray.nodes() if node["Alive"]), options.cores)
    context = DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    preprocessing = {
        name: expert.preprocessing for name, expert in build_refiner(dict(recipe.spec), weights="meta").experts.items()
    }
    try:
        (
            ray.data.read_parquet(str(names.absolute()), ray_remote_args={"num_cpus": _LIST})
            .map_batches(Opener(preprocessing), batch_size=options.batch_size, batch_format="numpy", num_cpus=_OPEN)
            .map_batches(
                Seer,
                fn_constructor_args=(recipe, int(each["num_cpus"]), "num_gpus" in each, made_by),
                batch_size=options.batch_size,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=count),
                max_task_retries=_TRIES,
                **each,
            )
            .write_parquet(
                str(rows.absolute()),
                min_rows_per_file=max(1, min(_ROWS_OF_A_FILE, waiting // 1000)),
                ray_remote_args={"num_cpus": _WRITE},
            )
        )
    except Exception as error:  # Ray wraps whatever a worker raised
        if (ours := _ours(error)) is not None:
            raise type(ours)(str(ours)) from error
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise LyricsError(f"Ray stopped: {cause}. Rows that are finished are kept; start again for the rest.") from (
            error
        )
    finally:
        context.enable_progress_bars = before


def _ours(error: BaseException | None) -> LyricsError | None:
    """Find the error that a worker of ours raised, as it was raised."""
    while error is not None:
        if type(error).__module__ == LyricsError.__module__:
            return cast(LyricsError, error)
        error = getattr(error, "cause", None) or error.__cause__
    return None


class Opener:
    """Opens images and prepares each for every expert; one that cannot be used is a row with its error."""

    def __init__(self, preprocessing: Mapping[str, Preprocessing]) -> None:
        self.processor = Processor(preprocessing)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        prepared = np.empty(len(batch["id"]), dtype=object)
        for index, one in enumerate(batch["id"]):
            name, where = name_and_place(str(one))
            try:
                prepared[index] = self.processor.images([picture_at(where).open()], names=[name])
            except ImageError as error:
                prepared[index] = (error.kind, str(error).replace(where, name))
        return {"id": batch["id"], "prepared": prepared}


class Seer:
    """Holds the experts; gives the line of ``objects.jsonl`` of each image, or of ``skipped.jsonl``.

    Args:
        recipe: of the refiner.
        threads: of one that is not on a GPU.
        on_gpu: or not.
        made_by: digest of the refiner that made the rows that are there, None where there are none.

    Raises:
        LyricsError: the refiner is another one, or fails on everything.
    """

    def __init__(self, recipe: RefinerRecipe, threads: int, on_gpu: bool, made_by: str | None = None) -> None:
        import torch

        if not on_gpu:
            torch.set_num_threads(threads)
        self.phrases = recipe.phrases
        self.refiner = recipe.build("cuda" if on_gpu else None)
        self.digest = self.refiner.digest(recipe.phrases)
        if made_by not in (None, self.digest):
            raise LyricsError(
                f"the rows that are there were made with other weights (refiner {made_by}; this is {self.digest}); "
                "give another --out."
            )
        self.ever_worked, self.failed = made_by is not None, 0

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        count = len(batch["id"])
        lines, kinds = np.empty(count, dtype=object), np.empty(count, dtype=object)
        opened = {index: one for index, one in enumerate(batch["prepared"]) if isinstance(one, ModelImages)}
        seen = dict(zip(opened, self._lines(list(opened.values())), strict=True))
        for index, one in enumerate(batch["prepared"]):
            found = seen[index] if index in seen else ImageError(one[1], one[0])
            if isinstance(found, ImageError):
                name, _ = name_and_place(str(batch["id"][index]))
                kinds[index], lines[index] = found.kind, skipped_line(name, found).decode("utf-8")
            else:
                kinds[index], lines[index] = "", found.decode("utf-8")
        return {
            "id": batch["id"],
            "kind": kinds.astype(str),
            "line": lines.astype(str),
            "refiner": np.full(count, self.digest),
        }

    def _lines(self, images: Sequence[ModelImages]) -> list[bytes | ImageError]:
        if not images:
            return []
        try:
            together = self.refiner.placed(joined(images))
            phrases = None if self.phrases is None else [list(self.phrases)] * len(images)
            found = self.refiner.refine(together, phrases).refinements
            lines: list[bytes | ImageError] = [row_line(one.to_json() | {"refiner": self.digest}) for one in found]
            self.ever_worked = True
            return lines
        except Exception as error:  # an expert may raise anything
            if len(images) > 1:
                return [line for one in images for line in self._lines([one])]
            reason = str(error) if isinstance(error, LyricsError) else f"an expert failed: {describe(error)}"
            if (name := name_for_messages(images[0].names[0])) not in reason:
                reason = f"{name}: {reason}"
            self.failed += 1
            if self.failed >= GIVE_UP_AFTER and not self.ever_worked:
                raise LyricsError(
                    f"the experts failed on each of the first {self.failed} images, so that the refiner seems to be "
                    f"broken. The last failure: {reason}"
                ) from None
            return [ImageError(reason, "expert")]
