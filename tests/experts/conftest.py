"""Makes torchvision importable beside a torch without CUDA, for the tests of the extra ``experts``.

torchvision's wheel on PyPI is a CUDA build. Beside a CPU torch its library cannot be loaded, and ``import torchvision``
fails with "operator torchvision::nms does not exist", for it describes two operators that the library would have
defined. Worse, transformers imports torchvision wherever it is installed, so that most of transformers fails too. Here
the two operators are declared before anything imports torchvision, without an implementation: the plugins never call
them, and who does is told that they are not implemented.

This is for these tests only: a library must not declare another one's operators in its user's process. Where
torchvision fits torch (on a CUDA machine, or installed from PyTorch's own index) nothing is declared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

#: What torchvision 0.28 describes at import (``_meta_registrations.py``) whether or not its library was loaded.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_declared: list[object] = []  # a torch.library.Library takes its operators with it when it is collected


def guard_torchvision() -> None:
    """Declare the operators, unless torchvision is absent or its own library loads."""
    found = importlib.util.find_spec("torchvision")  # finds it without importing it
    if found is None or found.origin is None:
        return
    import torch

    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        _declared.append(library)


guard_torchvision()


def needs(package: str) -> ModuleType:
    """The package, or the module that asks is skipped: these tests have an environment of their own."""
    return pytest.importorskip(package, reason=f"{package} is not installed; make test-experts runs this")
