"""Where the weights of a model's parts come from, under which license, and what that asks for. Imports no torch.

Nothing is fetched: a license is known from the model card beside the files, or because the plugin states it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lyrics.core.clean_text import one_line
from lyrics.core.errors import LyricsError, WeightsError
from lyrics.core.registry.component import NamesWeights
from lyrics.core.registry.registry import Entry, Registry, default_registry
from lyrics.core.spec import ModelSpec, RefinerOnlySpec, parse_yaml
from lyrics.core.weights.pretrained import PACKAGED, is_hub_id, packaged

_CARD = "README.md"
_UNKNOWN = "not stated"
_UNKNOWN_ASKS = "not known here: read the model card before you use or pass on the weights"

#: What licenses ask for, in a few words that replace none of them. Keys are as the hub writes them, lower case.
ASKS: Mapping[str, str] = {
    "apache-2.0": "pass on the license and notices; say what you changed",
    "as lyrics": "pass on the license and notices; say what you changed",
    "mit": "pass on the copyright notice and the license",
    "bsd-3-clause": "pass on the copyright notice and the license; no endorsement by name",
    "cc-by-4.0": "name the authors and the license; say what you changed",
    "cc-by-sa-4.0": "name the authors; pass on what you make of it under the same license",
    "cc-by-nc-4.0": "no commercial use; name the authors",
    "cc-by-nc-sa-4.0": "no commercial use; name the authors; pass on under the same license",
    "agpl-3.0": "pass on the source of everything it is part of, to users over a network, too",
    "gpl-3.0": "pass on the source of everything it is part of",
    "openrail": "pass on its use restrictions",
    "llama2": "Llama 2 Community License: pass it on with its notice; its use policy; above 700 million users ask Meta",
    "gemma": "Gemma Terms of Use: pass on its use restrictions and notice",
    "dinov3-license": "DINOv3 License: pass it on; its use restrictions; to download, agree to it on the hub",
    "sam-license": "SAM License: pass it on; its use restrictions; to download, agree to it on the hub",
}


@dataclass(frozen=True)
class LicenseRow:
    """One checkpoint of one part; a part without any has a row for its code.

    Args:
        path: the part's place in the specification, with the option that names the checkpoint.
        component: its name.
        checkpoint: as the option names it; None without one.
        revision: the hub's commit of what was downloaded before, or ``sha256:`` of local tensors; empty where neither
            is known.
        source: the hub's address, a local path, or the package.
        license: its name, as the model card or the plugin states it.
        asks: what it asks for.
    """

    path: str
    component: str
    checkpoint: str | None
    revision: str
    source: str
    license: str
    asks: str


def license_rows(
    spec: ModelSpec | RefinerOnlySpec,
    *,
    whole: str | None = None,
    registry: Registry | None = None,
    hashes: bool = True,
) -> tuple[LicenseRow, ...]:
    """Return a row for each checkpoint that the parts of a resolved specification name.

    Args:
        spec: the specification.
        whole: the checkpoint of a public model, which holds the parts that name none, too.
        registry: where parts are looked up; everything installed unless given.
        hashes: False leaves local tensors unread.

    Parts that are not installed are left out.
    """
    registry = registry or default_registry()
    rows: list[LicenseRow] = []
    for path, kind, slot in spec.slots():
        try:
            entry = registry.component(kind, slot.use)
        except LyricsError:
            continue
        if kind != "objective":
            found = _rows_of(path, entry, slot.options, hashes)
            if whole is not None and not any(row.checkpoint for row in found):
                found = [_row(path, entry.component.name, whole, None, hashes)]
            rows += found
    return tuple(rows)


def _rows_of(path: str, entry: Entry, options: Mapping[str, Any], hashes: bool) -> list[LicenseRow]:
    component = entry.component
    found = []
    for name, field in component.options.model_fields.items():
        value = options.get(name, field.get_default(call_default_factory=True))
        if isinstance(value, str) and any(isinstance(one, NamesWeights) for one in field.metadata):
            stated = component.weights_licenses.get(value)
            if stated is None and value == field.default:
                stated = component.license
            if stated is None and value.startswith(f"{PACKAGED}{entry.source.module.partition('.')[0]}/"):
                about: Any = importlib.metadata.metadata(entry.source.distribution)
                stated = about.get("License-Expression")
            found.append(_row(f"{path}.{name}", component.name, value, stated, hashes))
    if not found:
        license_ = component.license or _UNKNOWN
        found.append(LicenseRow(path, component.name, None, "", "", license_, _asks(component.license)))
    return found


def _row(path: str, component: str, checkpoint: str, stated: str | None, hashes: bool) -> LicenseRow:
    folder, source, revision = _where(checkpoint)
    if folder is not None and not revision and hashes:
        revision = _sha256(folder)
    license_ = (_of_card(folder) if folder is not None else None) or stated
    return LicenseRow(path, component, checkpoint, revision, source, license_ or _UNKNOWN, _asks(license_))


def _where(checkpoint: str) -> tuple[Path | None, str, str]:
    """The local file or folder of a checkpoint, if there is one; where it comes from; the hub's commit."""
    if checkpoint.startswith(PACKAGED):
        try:
            return packaged(checkpoint), checkpoint, ""
        except WeightsError:
            return None, checkpoint, ""
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path, str(path), ""
    if not is_hub_id(checkpoint):
        return None, checkpoint, ""
    cached = _cached(checkpoint)
    return cached, f"https://huggingface.co/{checkpoint}", cached.name if cached is not None else ""


def _cached(hub_id: str) -> Path | None:
    """The folder of what was downloaded of a repository before."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        found = try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _sha256(path: Path) -> str:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        return ""
    seen = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                seen.update(block)
    return f"sha256:{seen.hexdigest()[:16]}"


def _of_card(path: Path) -> str | None:
    """The license that a model card's header states."""
    card = (path if path.is_dir() else path.parent) / _CARD
    if not card.is_file() or card.stat().st_size > 1 << 20:
        return None
    match = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if match is None:
        return None
    try:
        header = parse_yaml(match[1], source=str(card))
    except LyricsError:
        return None
    found = header.get("license_name") or header.get("license") if isinstance(header, dict) else None
    return one_line(found, 100) if isinstance(found, str) else None


def _asks(license_: str | None) -> str:
    """What a license asks for; of a text that names several, what each does."""
    if not license_:
        return _UNKNOWN_ASKS
    words: Sequence[str] = [name for name in ASKS if _names(license_.lower(), name)]
    return "; ".join(ASKS[name] for name in words) or _UNKNOWN_ASKS


def _names(text: str, name: str) -> bool:
    """Whether a text names a license: by the hub's name for it, or in words (``Llama 2 Community License``)."""
    said = {"llama2": "llama 2 community", "dinov3-license": "dinov3", "sam-license": "sam license"}.get(name, name)
    return any(re.search(rf"(?<![\w.-]){re.escape(one)}(?![\w-])", text) for one in {name, said})
