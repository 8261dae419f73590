"""Files that a user names by where they are published: one of a repository of the hub, or one at an address.

The network is used for exactly the file that was named, and for those that a format declares beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lyrics.core.errors import WeightsError
from lyrics.core.json_reading import read_json
from lyrics.core.weights.pretrained import first_line

Say = Callable[[str], None]

#: How the name of one file of a repository begins: ``hub:OWNER/NAME/FILE``, or ``hub:OWNER/NAME@REVISION/FILE``.
HUB = "hub:"
_HTTPS = "https://"
_INDEX = ".index.json"
_PART = re.compile(r"[\w.-]+")
_OTHERWISE = "Check the name and the connection; a file that you fetched by other means is named by its path."
_BLOCK = 1 << 20
#: Seconds that a server may be silent.
_TIMEOUT = 60


def is_published(name: str) -> bool:
    """Return whether a name says where a file is published, and not where it lies."""
    return name.startswith((HUB, _HTTPS))


def fetch(name: str, folder: Path, say: Say) -> Path:
    """Fetch what is published under that name, if it was not fetched before.

    Args:
        name: ``hub:OWNER/NAME/FILE``, ``hub:OWNER/NAME@REVISION/FILE``, or an address that begins with ``https://``.
            An index of shards on the hub (``*.index.json``) brings its shards.
        folder: is made, and gets a link to the file in the cache.
        say: told of what is fetched.

    Returns the link; for an index, the folder.

    Raises ``WeightsError`` for a name of another form, a file that cannot be had, and one that was damaged on its way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith(_HTTPS):
        return _linked(_from_address(name, say), folder)
    repository, revision, file = _hub_name(name)
    found = _linked(_from_hub(name, repository, revision, file, say), folder, Path(file).name)
    if not file.endswith(_INDEX):
        return found
    for shard in _shards(found, name):
        beside = str(Path(file).with_name(shard))
        _linked(_from_hub(name, repository, revision, beside, say), folder, shard)
    return folder


def _linked(file: Path, folder: Path, name: str | None = None) -> Path:
    link = folder / (name or file.name)
    link.symlink_to(file)
    return link


def _hub_name(name: str) -> tuple[str, str | None, str]:
    """``hub:OWNER/NAME@REVISION/FILE`` -> repository, revision, file."""
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    repository, at, revision = repository.partition("@")
    parts = (owner, repository, *([revision] if at else []), *file.split("/"))
    if not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise WeightsError(f"{name}: write hub:OWNER/NAME/FILE, or hub:OWNER/NAME@REVISION/FILE.")
    return f"{owner}/{repository}", revision or None, file


def _from_hub(name: str, repository: str, revision: str | None, file: str, say: Say) -> Path:
    from huggingface_hub import hf_hub_download

    say(f"{file} of {repository}, from the hub")
    try:
        found = Path(hf_hub_download(repository, file, revision=revision)).resolve()
    except (OSError, ValueError) as error:
        raise WeightsError(f"{name}: the hub did not give {file}: {first_line(error)}. {_OTHERWISE}") from error
    # The hub's cache calls what is kept in git-lfs by its SHA-256.
    if re.fullmatch(r"[0-9a-f]{64}", found.name) and _sha256(found) != found.name:
        raise WeightsError(f"{name}: {file} was damaged on its way: its SHA-256 is not the hub's. Delete {found}.")
    return found


def _shards(index: Path, name: str) -> Sequence[str]:
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{name}: is not an index of weights: {type(error).__name__}: {error}.") from error
    for shard in shards:
        if not isinstance(shard, str) or not _PART.fullmatch(shard):
            raise WeightsError(f"{name}: names the shard {shard!r}, which is no file beside it.")
    return shards


def _from_address(address: str, say: Say) -> Path:
    """The cached file of an address; it has the file's own name, in a folder of the address's own."""
    file = Path(unquote(urlsplit(address).path)).name
    if not _PART.fullmatch(file) or not file.strip("."):
        raise WeightsError(f"{address}: names no file; its last part is the file's name.")
    cached = _cache() / hashlib.sha256(address.encode()).hexdigest()[:16] / file
    if cached.is_file():
        return cached
    say(f"{file} from {urlsplit(address).netloc}, into {cached.parent}")
    cached.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{file}.", dir=cached.parent)
    try:
        with os.fdopen(handle, "wb") as written:
            request = urllib.request.Request(address, headers={"User-Agent": "lyrics"})
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                if not answer.geturl().startswith(_HTTPS):
                    raise WeightsError(f"{address}: leads to {answer.geturl()}, which is not https.")
                expected = answer.headers.get("Content-Length")
                shutil.copyfileobj(answer, written, _BLOCK)
            size = written.tell()
        if expected is not None and size != int(expected):
            raise WeightsError(f"{address}: ended after {size:,} of {int(expected):,} bytes. Try it again.")
        os.replace(part, cached)
    except WeightsError:
        raise
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        raise WeightsError(f"{address}: cannot be fetched: {first_line(error)}. {_OTHERWISE}") from error
    finally:
        Path(part).unlink(missing_ok=True)
    return cached


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lyrics" / "published"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
