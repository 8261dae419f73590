"""What the components of the extra ``experts`` say where it is not installed. Runs in both environments."""

from __future__ import annotations

import importlib.metadata

import pytest

from lyrics.core.build import check_requirements
from lyrics.core.errors import MissingRequirementError
from lyrics.core.registry.registry import Registry
from lyrics.core.resolve import Part
from lyrics.plugins import grounding_dino, sam_hq, timm_vit

REGISTRY = Registry.discover(grounding_dino, sam_hq, timm_vit)
EXPERTS = [
    ("image-encoder", "timm-vit", ("timm", "torchvision")),
    ("detector", "grounding-dino-upstream", ("groundingdino-py", "timm", "torchvision")),
    ("segmenter", "sam-hq-upstream", ("segment-anything-hq", "timm", "torchvision")),
]


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment where none of the extra's packages is installed."""
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name in {package for _, _, packages in EXPERTS for package in packages}:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)


@pytest.mark.parametrize(("kind", "name", "packages"), EXPERTS)
@pytest.mark.usefixtures("without_the_extra")
def test_use_without_the_extra_says_how_to_install_it(kind: str, name: str, packages: tuple[str, ...]) -> None:
    module = {"image-encoder": timm_vit, "detector": grounding_dino, "segmenter": sam_hq}[kind]
    entry = REGISTRY.component(kind, f"{module.__name__}/{name}")
    unmet = entry.unmet()
    assert len(unmet) == len(packages)
    for package, complaint in zip(packages, unmet, strict=True):
        assert complaint.startswith(package)
        assert complaint.endswith("(not installed)")
    with pytest.raises(MissingRequirementError, match=r"Run: pip install 'lyrics-vl\[experts\]'$"):
        check_requirements(Part("here", entry, entry.component.options()))


def test_the_default_backends_need_nothing_more() -> None:
    for module in (grounding_dino, sam_hq):
        default = next(iter(module.lyrics_components()))
        assert default.requires == ()
