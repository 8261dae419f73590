"""What is wrong with this installation, and why: versions, accelerator, attention implementations, plugins."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from lyrics.core.registry.registry import DISTRIBUTION, Failure, Plugin, Registry

#: A manifest that takes longer than this slows every command down.
SLOW_SECONDS = 0.5
PACKAGES = (
    "lyrics-vl",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "pydantic",
    "pluggy",
    "numpy",
    "pillow",
    "triton",
    "flash-attn",
    "timm",
    "torchvision",
    "groundingdino-py",
    "segment-anything-hq",
    "pycocotools",
    "bitsandbytes",
)


@dataclass(frozen=True)
class Diagnosis:
    """What ``lyrics doctor`` prints."""

    python: str
    machine: str
    accelerator: str
    versions: dict[str, str | None]
    kernels: dict[str, str]
    plugins: tuple[Plugin, ...]
    advice: tuple[str, ...]

    @property
    def failures(self) -> list[Failure]:
        return [failure for plugin in self.plugins for failure in plugin.failures]


def diagnose(registry: Registry) -> Diagnosis:
    """Look at everything; never raises for what it finds."""
    versions = {name: _version(name) for name in PACKAGES}
    advice = [
        f"the plugin {plugin.source} takes {plugin.seconds:.1f} s to import; its manifest should only yield records"
        for plugin in registry.plugins
        if plugin.seconds > SLOW_SECONDS
    ]
    advice += [
        f"the plugin {plugin.source} imports {', '.join(plugin.heavy_imports)} in its manifest; that belongs into the "
        "module that its build string names"
        for plugin in registry.plugins
        if plugin.heavy_imports
    ]
    if any(failure.source.distribution != DISTRIBUTION for failure in registry.failures):
        advice.append(
            "a plugin that is in the way can be left out: LYRICS_PLUGINS=none leaves out all third parties, and "
            "LYRICS_PLUGINS=NAME,NAME all but those distributions"
        )
    if (torchvision := _torchvision_problem()) is not None:
        advice.append(torchvision)
    return Diagnosis(
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        accelerator=_accelerator(),
        versions=versions,
        kernels=_kernels(),
        plugins=tuple(registry.plugins),
        advice=tuple(advice),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _accelerator() -> str:
    try:
        import torch
    except Exception as error:  # a broken torch is what this command is for
        return f"unknown: torch cannot be imported: {error}"
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return "Apple MPS"
    return f"none; {torch.get_num_threads()} CPU threads"


def _kernels() -> dict[str, str]:
    """Implementation -> ``runs here``, or why not."""
    try:
        from lyrics.kernels import available_implementations
    except Exception as error:
        return {"all": f"cannot be imported: {error}"}
    return {
        found.name: f"{'runs here' if found.available else 'not here'}: {found.reason}"
        for found in available_implementations()
    }


def _torchvision_problem() -> str | None:
    """torchvision's published build cannot load beside a CPU build of torch, and then breaks transformers with it."""
    if _version("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        reason = " ".join(str(error).split())
        return (
            f"torchvision is installed but cannot be imported ({reason[:120]}); transformers and peft then fail too. "
            "Uninstall it, or install the build that matches torch."
        )
    return None
