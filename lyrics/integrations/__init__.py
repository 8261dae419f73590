"""Lyrics inside other projects. This file imports none of them; a module named after a project needs that project."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """Return what the entry point ``lyrics`` of the group ``lmms_eval.models`` gives.

    It is the model ``lyrics`` of lmms-eval.

    lmms-eval (0.7.3, ``lmms_eval/models/registry_v2.py``) calls it and takes a ``ModelManifest``.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="lyrics", simple_class_path="lyrics.integrations.lmms_eval.Lyrics")
