"""Keeping a composed model: saved, loaded, pushed to the hub.

A base class of ``LyricsModel``, which it does not name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin

from lyrics.core.build import build_resolved
from lyrics.core.changes import overridden
from lyrics.core.composed import ComposedModel
from lyrics.core.errors import WeightsError
from lyrics.core.public_models import find_public, load_public
from lyrics.core.resolve import resolve
from lyrics.core.runs.folder import find_run
from lyrics.core.spec import load
from lyrics.core.trained import trained_model
from lyrics.core.weights import hub
from lyrics.core.weights.licenses import license_rows
from lyrics.core.weights.model_folder import SPEC_FILE, save_folder, spec_file

M = TypeVar("M", bound=ComposedModel)


class SavedModel(
    ComposedModel,
    ModelHubMixin,
    library_name="lyrics",
    pipeline_tag="image-text-to-text",
    tags=["lyrics", "vision-language", "grounding"],
    model_card_template=hub.CARD,
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, as in transformers."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Without the mixin's account of the arguments, which would become a ``config.json`` beside ``spec.json``."""
        return object.__new__(cls)

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | os.PathLike[str],
        *,
        trainable_only: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """Write a model folder: specification, tensors, tokenizers (``lyrics.core.weights.model_folder``).

        ``trainable_only`` leaves out the parts that no stage trains and notes where they come from and their sha256.
        ``push_to_hub`` also uploads it, to ``repo_id`` or to a repository of the folder's name; options as for
        ``push_to_hub``, whose address is returned.

        Raises ``WeightsError`` for a model on the meta device, and for one whose LoRA is merged.
        """
        if options and not push_to_hub:
            raise TypeError(f"save_pretrained: {', '.join(options)} is for push_to_hub=True")
        save_folder(self, folder, trainable_only=trainable_only)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or Path(folder).resolve().name, trainable_only=trainable_only, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | os.PathLike[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        base: str | os.PathLike[str] | None = None,
        downloads: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """Return the model that ``save_pretrained`` wrote, or that a training run has made so far, in evaluation mode.

        Args:
            folder: a model folder, the folder of a run or one of its checkpoints, or a hub id (``owner/name``) that
                is no local path.
            overrides: of its specification, as for ``lyrics.build_model``; only the parts that they change are
                built anew.
            base: for a folder that holds trained parts only, a model folder with the frozen ones; without it they
                are loaded from the checkpoints that the specification names.
            downloads: whether checkpoints that the specification names may be fetched from the hub. Unless you
                allow it, a saved model uses the network for nothing but the hub id that you gave.
            device, dtype: as for ``lyrics.build_model``.
            revision, token, cache_dir, local_files_only, force_download: for a hub id, as in transformers.

        Raises ``WeightsError`` or ``SpecError`` naming the file.
        """
        if not isinstance(folder, str | os.PathLike):
            raise WeightsError(f"from_pretrained takes a model folder or a hub id (owner/name), not {folder!r}.")
        return cls._from_pretrained(
            model_id=os.fspath(folder),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            overrides=overrides,
            base=base,
            downloads=downloads,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> Self:
        found = hub.local_folder(
            model_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return load_saved(cls, found, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Save the model and upload it to a hub repository. Return the address of the commit.

        ``options`` are those of ``lyrics.core.weights.hub.push``.
        """
        return hub.push(self, repo_id, **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card that is uploaded: how to load the model, and its parts.

        ``kwargs`` are values for the template (``lyrics.core.weights.hub.CARD``).
        """
        parts = [(path, slot.use) for path, _, slot in self.spec.slots()]
        licenses = license_rows(self.spec, hashes=False)
        return super().generate_model_card(*args, **{"parts": parts, "licenses": licenses, **kwargs})


def load_saved(
    model_class: type[M],
    folder: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    base: str | os.PathLike[str] | None = None,
    downloads: bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> M:
    """Load the model of a local folder, in evaluation mode: one that ``save_pretrained`` wrote, that of a training
    run, or a public one.

    Args:
        model_class: what is made of the parts.
        folder: a model folder, the folder of a run, a checkpoint of one, or a public model's.
        overrides: of its specification; only the parts that they change are built anew.
        base: for a model folder that holds trained parts only, one that has the frozen parts.
        downloads, device, dtype: as for ``lyrics.build_model``.

    Raises ``SpecError`` or ``WeightsError`` naming what is wrong.
    """

    run = find_run(folder)
    if run is not None:
        if base is not None:
            raise WeightsError(
                f"base={os.fspath(base)!r}: {folder} is a run, whose configuration says what it began with."
            )
        return trained_model(
            model_class, run, overrides=overrides, downloads=bool(downloads), device=device, dtype=dtype
        )
    public = None if (Path(folder) / SPEC_FILE).is_file() else find_public(os.fspath(folder))
    if public is not None:
        if base is not None:
            raise WeightsError(f"base={os.fspath(base)!r}: {folder} is a public model, which has all of its parts.")
        return load_public(
            model_class, public, overrides=overrides, downloads=bool(downloads), device=device, dtype=dtype
        )
    spec, changes = load(spec_file(folder)), None
    if overrides:
        spec, changes = overridden(spec, overrides)
    return build_resolved(
        model_class,
        resolve(spec),
        weights=folder,
        base=base,
        downloads=downloads,
        device=device,
        dtype=dtype,
        changes=changes,
    ).eval()
