"""``lyrics convert``: public checkpoints of other projects to safetensors that the components read.

Components say which formats there are (``lyrics.core.registry.component.Converter``). A converter decides by names and
shapes what is taken (``lyrics.core.conversion.plan.ConversionPlan``); here the source is found and opened, the result
is written aside and put in its place, and every key is accounted for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.formats import Format, find_format, recognize, run_converter
from lyrics.core.errors import SpecError, WeightsError, did_you_mean
from lyrics.core.registry.registry import Registry
from lyrics.core.resolve import Resolved, resolve, wire
from lyrics.core.weights.published import fetch, is_published

if TYPE_CHECKING:
    from lyrics.core.conversion.plan import ConversionPlan, SourceCheckpoint

REPORT_FILE = "conversion.json"


@dataclass(frozen=True)
class Origin:
    """Which file a conversion read or wrote."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key.

    ``taken`` keys kept their name; ``renamed`` says under which names a key's values are now; ``new`` names are of the
    model and not of the source, and are initialized; ``left`` keys of the source are not used. ``files`` are put beside
    the weights, as ``beside`` has them with their hashes.
    """

    format: str
    component: str
    source: tuple[Origin, ...]
    result: tuple[Origin, ...]
    taken: tuple[str, ...]
    renamed: Mapping[str, tuple[str, ...]]
    new: tuple[str, ...]
    left: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]
    beside: tuple[Origin, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def convert(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    format: str,
    *,
    spec: str | None = None,
    beside: Mapping[str, str | os.PathLike[str]] | None = None,
    registry: Registry | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ConversionReport:
    """Convert a checkpoint to a folder that the component reads, or of a whole model to a model folder.

    Args:
        source: a file, or a folder with the only file of weights or with an index; or where a file is published
            (``hub:OWNER/NAME/FILE``, ``https://...``), which is fetched, with what the format declares beside it.
            Pickled files are read by a process of their own.
        dest: the folder to write; there is none of that name yet, or an empty one. It appears whole or not at all.
        format: one of ``formats``.
        spec: a preset or a YAML or JSON file whose part states the checkpoint's sizes; without one, the component's
            defaults do. For a whole model, the model to fill; without one, the preset of the format's name.
        beside: of a whole model, for parts by their path in the spec, a folder with what they need beside their
            tensors and no checkpoint holds: a tokenizer, a tag list. Where none is given, a stand-in is written and a
            note of the report says so.
        registry: where components are looked up; everything installed unless given.
        say: told of what is fetched.

    Raises:
        UnknownNameError: there is no such format.
        SpecError: the spec is not valid, or has no part that reads the format; or ``beside`` names a part that it
            does not have, or that needs nothing.
        WeightsError: the source cannot be found or read, is refused, is of another format, or lacks tensors or has
            them in other shapes; ``dest`` is there already; or what a folder of ``beside`` holds is missing, broken, or
            of another size than the part.
        PluginError: the converter is broken.
    """
    wanted = find_format(format, registry)
    named, target = os.fspath(source), Path(dest)
    if not is_published(named) and not Path(named).exists():
        where = f" {_such_as(wanted)} may be named as SRC, and is then fetched." if wanted.published else ""
        raise WeightsError(f"{named}: no such file or folder.{where}")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise WeightsError(f"{target}: is there already; name a folder that does not exist or is empty.")
    # What is wrong with the spec is said before torch is imported and gigabytes are read.
    resolved = None if spec is None and not wanted.whole_model else resolve(spec or wanted.name, registry=registry)
    given = {part: Path(folder) for part, folder in (beside or {}).items()}
    _check_given(given, wanted, resolved)

    from lyrics.core.conversion.plan import opened, source_files

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.resolve().parent))
    try:
        result = work / "result"
        result.mkdir()
        path = _fetched(named, wanted, work / "fetched", say) if is_published(named) else Path(named)
        with opened(path, work / "unpickled") as checkpoint:
            _check_marks(checkpoint, wanted, registry)
            if resolved is not None and wanted.whole_model:
                from lyrics.core.conversion.whole_model import convert_model

                label = f"preset {wanted.name}" if spec is None else f"spec {spec}"
                plan = convert_model(checkpoint, wanted, resolved, result, given)
            else:
                label, plan = _convert_part(checkpoint, wanted, resolved, result)
            read = source_files(path)
            report = _report(checkpoint, plan, wanted, label, read, sorted(result.glob("*.safetensors")))
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
        (result / REPORT_FILE).write_text(text, encoding="utf-8")
        os.replace(result, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def _such_as(wanted: Format) -> str:
    return " or ".join(wanted.published)


def _fetched(name: str, wanted: Format, folder: Path, say: Callable[[str], None]) -> Path:
    """What was named by where it is published, and beside it what the format says belongs there."""
    path = fetch(name, folder, say)
    for file, address in wanted.beside.items():
        fetch(address, folder, say).rename(folder / file)
    return path


def _check_given(given: Mapping[str, Path], wanted: Format, resolved: Resolved | None) -> None:
    """Raises ``SpecError`` for a part that there is not, ``WeightsError`` for a folder that there is not."""
    for path, folder in given.items():
        if resolved is None or not wanted.whole_model:
            raise SpecError(
                f"--with {path}={folder}: the format {wanted.name!r} is of one part; what it needs beside its tensors "
                "lies beside SRC."
            )
        if path not in resolved.parts:
            raise SpecError(
                f"--with {path}={folder}: the model has no part {path!r}.{did_you_mean(path, resolved.parts)} "
                f"Its parts: {', '.join(resolved.parts)}."
            )
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder; it was given for {path}.")


def _check_marks(checkpoint: SourceCheckpoint, wanted: Format, registry: Registry | None) -> None:
    """Raises ``WeightsError`` when the keys are another format's."""
    found = recognize(checkpoint, registry)
    if found is not None and found.name == wanted.name:
        return
    missing = sorted(wanted.marks - {key.removeprefix("module.") for key in checkpoint})
    without = f": it has no {missing[0]!r}" if missing else ""
    guess = (
        f"It looks like {found.name!r}; then say --from {found.name}."
        if found
        else f"It looks like none of the formats; its keys begin with {', '.join(sorted(checkpoint)[:3])}."
    )
    raise WeightsError(f"{checkpoint.path}: is not of format {wanted.name!r}{without}. {guess}")


def _convert_part(
    checkpoint: SourceCheckpoint, wanted: Format, resolved: Resolved | None, result: Path
) -> tuple[str, ConversionPlan]:
    """Convert for one component: one safetensors file, with the files that belong beside it."""
    from lyrics.core.conversion.plan import write_file
    from lyrics.core.weights.tensors import WEIGHTS_FILE

    if resolved is None:
        entry, converter = wanted.declared[0]
        plan = run_converter(entry, converter, checkpoint, entry.component.options(), BuildContext("meta"))
    else:
        part = next((part for part in resolved.parts.values() if wanted.converter_of(part.entry)), None)
        if part is None:
            readers = ", ".join(f"{entry.component.kind} {entry.component.name!r}" for entry, _ in wanted.declared)
            raise SpecError(f"--model: no part of it reads the format {wanted.name!r}; those that do: {readers}.")
        wiring = wire(resolved)
        local_dims = {source: dim for source, dim in wiring.local_dims.items() if dim is not None}
        context = BuildContext("meta", wiring.image_dim or 0, local_dims)
        entry, declared = part.entry, wanted.converter_of(part.entry)
        assert declared is not None
        plan = run_converter(entry, declared, checkpoint, part.options, context)
    write_file(result / WEIGHTS_FILE, plan.tensors, checkpoint)
    for name, file in plan.files.items():
        shutil.copyfile(file, result / name)
    return f"{entry.component.kind} {entry.component.name}", plan


def _report(
    checkpoint: SourceCheckpoint,
    plan: ConversionPlan,
    wanted: Format,
    component: str,
    read: Sequence[Path],
    written: Sequence[Path],
) -> ConversionReport:
    names: dict[str, list[str]] = {}
    for name, piece in plan.tensors.items():
        for key in piece.keys:
            names.setdefault(key, []).append(name)
    return ConversionReport(
        format=wanted.name,
        component=component,
        source=tuple(_origin(file) for file in read),
        result=tuple(_origin(file) for file in written),
        taken=tuple(sorted(key for key, found in names.items() if found == [key])),
        renamed={key: tuple(sorted(found)) for key, found in sorted(names.items()) if found != [key]},
        new=plan.new,
        left=tuple(sorted(set(checkpoint) - set(names))),
        files=tuple(sorted(plan.files)),
        notes=plan.notes,
        beside=tuple(replace(_origin(file), file=name) for name, file in sorted(plan.files.items())),
    )


def _origin(file: Path) -> Origin:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Origin(file.name, file.stat().st_size, digest)
