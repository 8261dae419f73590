"""Model folders on the Hugging Face hub. The network is used only for a repository that the user named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lyrics.core.errors import WeightsError

if TYPE_CHECKING:
    from lyrics.core.model import LyricsModel

_PATTERNS = ("*.json", "*.safetensors", "tokenizers/*", "README.md")


def local_folder(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The model folder of that path; a hub id (``owner/name``) that is no local path is downloaded.

    Raises ``WeightsError`` when there is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.count("/") != 1 or name.startswith(("/", ".", "~")) or path.exists():
        raise WeightsError(f"there is no model folder {name!r}, and it is no hub id (owner/name) either.")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(_PATTERNS),
            )
        )
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{name!r} is no local folder, and the hub did not give it: {error}. Check the name and the connection."
        ) from error


def push(
    model: LyricsModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a lyrics model",
    trainable_only: bool = False,
) -> str:
    """Save the model aside and upload the folder; returns the address of the commit. The repository is made if need be."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, trainable_only=trainable_only)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    return str(commit.commit_url)
