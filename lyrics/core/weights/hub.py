"""Model folders on the Hugging Face hub: what ``LyricsModel`` puts in the place of ``ModelHubMixin``'s own functions.

The mixin keeps constructor arguments in a ``config.json``; a model folder has ``spec.json``, and no other account of
what it is. The network is used only for a repository that the user named.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lyrics.core.errors import WeightsError
from lyrics.core.weights.pretrained import first_line

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD_FILE = "README.md"
#: ``*`` matches folders, too. Nothing that is unpickled or run.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", CARD_FILE)

#: Of the card that is uploaded with a model; ``parts`` are (path in the spec, component),
#: ``licenses`` rows of ``lyrics.core.weights.licenses``.
CARD = """---
{{ card_data }}
---

# {{ model_id | default("A lyrics model", true) }}

A vision-language model that sees objects, made with the Python library `lyrics`. `spec.json` lists its parts:

| part | component |
|---|---|
{% for path, component in parts -%}
| `{{ path }}` | `{{ component }}` |
{% endfor %}
```python
from lyrics import LyricsModel

model = LyricsModel.from_pretrained("{{ model_id | default("owner/name", true) }}")
print(model.generate("image.jpg", "What is in the image?").text)
```

Weights are in safetensors; nothing here is unpickled. Each part's weights keep the license of where they come from:

| part | weights | license | asks for |
|---|---|---|---|
{% for row in licenses -%}
| `{{ row.path }}` | {{ row.source or "trained here" }} | {{ row.license }} | {{ row.asks }} |
{% endfor %}
"""


#: Files that say what a model is: all but its tensors.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")


class Pushed(Protocol):
    """What is uploaded: a model that saves itself to a folder and writes its own card."""

    def save_pretrained(self, folder: str, *, trainable_only: bool) -> str | None: ...

    def generate_model_card(self, **values: Any) -> ModelCard: ...


def local_folder(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the model folder of that path; a hub id (``owner/name``) that is no local path is downloaded.

    Raises ``WeightsError`` when there is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or path.exists():
        raise WeightsError(
            f"there is no model folder {name!r}, and it is no hub id (owner/name) either. "
            "A preset or a specification is built by lyrics.build_model."
        )
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    return _fetched(name, _PATTERNS, **options)


def small_files(name: str, *, downloads: bool = True) -> Path:
    """Return the local folder with the files of a hub repository that say what it is, without its tensors.

    Raises ``WeightsError`` when the hub does not give it.
    """
    return _fetched(name, _SMALL, local_files_only=not downloads)


def _fetched(name: str, patterns: Sequence[str], **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **options))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{name!r} is no local folder, and the hub did not give it: {first_line(error)}. Check the name and the "
            "connection."
        ) from error


def push(
    model: Pushed,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    branch: str | None = None,
    commit_message: str = "Upload a lyrics model",
    create_pr: bool | None = None,
    allow_patterns: list[str] | str | None = None,
    ignore_patterns: list[str] | str | None = None,
    delete_patterns: list[str] | str | None = None,
    model_card_kwargs: dict[str, Any] | None = None,
    trainable_only: bool = False,
) -> str:
    """Save the model and its card aside and upload the folder; the repository is made if need be.

    Args:
        model: what to upload.
        repo_id: ``owner/name``, or ``name`` for the owner of the token.
        private: of a repository that is made.
        token: for the hub, where the one that ``hf auth login`` keeps is not meant.
        revision, branch: two names for the same: the branch that is written, ``main`` unless given.
        commit_message, create_pr, allow_patterns, ignore_patterns, delete_patterns: as in ``huggingface_hub``. The
            card takes the place of the repository's; ``ignore_patterns="README.md"`` leaves that one alone.
        model_card_kwargs: values for the template of the card.
        trainable_only: as for ``save_pretrained``.

    Returns the address of the commit.

    Raises ``ValueError`` for a ``revision`` and a ``branch`` that differ, ``WeightsError`` when the hub cannot be
    reached or refuses.
    """
    from huggingface_hub import HfApi

    if revision and branch and revision != branch:
        raise ValueError(f"revision={revision!r} and branch={branch!r} name the same thing; give one of them")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, trainable_only=trainable_only)
        with _reaching(repo_id):
            made = api.create_repo(repo_id, private=private, exist_ok=True)
        card = model.generate_model_card(**{"model_id": made.repo_id, **(model_card_kwargs or {})})
        card.save(Path(folder) / CARD_FILE)
        with _reaching(repo_id):
            commit = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision or branch,
                commit_message=commit_message,
                create_pr=create_pr,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                delete_patterns=delete_patterns,
            )
    return str(commit.commit_url)


@contextlib.contextmanager
def _reaching(repo_id: str) -> Iterator[None]:
    """Turn what the hub's client raises, which has no common base, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise WeightsError(
            f"{repo_id!r} cannot be uploaded: {reason}. Check the name, the connection and the token (hf auth login); "
            "save_pretrained(folder) keeps the model here."
        ) from error
