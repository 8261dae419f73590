"""Sampling of feature maps in every type, and that nothing samples otherwise."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lyrics.core.contracts import BuildContext
from lyrics.core.grid_sample import grid_sample
from lyrics.core.registry.registry import default_registry
from tests.fresh import ROOT


def maps_and_places() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 20, 32, generator=random), torch.rand(2, 9, 40, 2, generator=random) * 2.6 - 1.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(dtype: torch.dtype) -> None:
    """torch's own sampling of these is off by 0.3 and more, and on some CPUs not finite."""
    values, places = maps_and_places()
    found = grid_sample(values.to(dtype), places)
    assert found.dtype == dtype
    exact = F.grid_sample(values.to(dtype).float(), places, align_corners=False)
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_float32_and_float64_are_torchs_own(padding_mode: Any) -> None:
    values, places = maps_and_places()
    for dtype in (torch.float32, torch.float64):
        own = F.grid_sample(values.to(dtype), places.to(dtype), padding_mode=padding_mode, align_corners=False)
        assert torch.equal(grid_sample(values.to(dtype), places, padding_mode=padding_mode), own)


def test_no_source_samples_otherwise() -> None:
    bare = []
    for folder in ("lyrics", "examples", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == ROOT / "lyrics/core/grid_sample.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                attribute = isinstance(node, ast.Attribute) and node.attr in ("grid_sample", "grid_sampler")
                taken = isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
                    "lyrics.core.grid_sample"
                )
                names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
                if attribute or (taken and names & {"grid_sample", "grid_sampler"}):
                    bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare, "call lyrics.core.grid_sample instead"


def test_no_module_of_another_package_samples_by_itself() -> None:
    """Of every expert that is installed: classes of transformers, timm and others that call torch's sampling."""
    walked, sampling = 0, []
    for entry in default_registry().entries:
        component = entry.component
        if component.kind not in ("image-encoder", "tagger", "detector", "segmenter") or entry.unmet():
            continue
        if component.name == "grounding-dino-upstream":  # refuses everything but float32
            continue
        module_name, _, attribute = component.build.partition(":")
        build = getattr(importlib.import_module(module_name), attribute)
        with torch.device("meta"):
            built = build(component.options(**component.test_options), BuildContext("meta"))
        for owner in {type(part) for part in built.modules()}:
            walked += 1
            if not owner.__module__.startswith("lyrics.") and "grid_sample(" in inspect.getsource(owner):
                sampling.append(f"{component.name}: {owner.__module__}.{owner.__name__}")
    assert walked > 50
    assert not sampling
