"""``--set path=value`` on the command line -> overrides."""

from __future__ import annotations

from typing import Any

from lyrics.core.errors import SpecError
from lyrics.core.spec import parse_yaml


def parse_overrides(settings: list[str] | None) -> dict[str, Any]:
    """Map ``["a.b=3"]`` -> ``{"a.b": 3}``; values are YAML, so ``null``, numbers and ``[lists]`` work.

    Raises ``SpecError``.
    """
    overrides = {}
    for setting in settings or []:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise SpecError(f"--set {setting}: write path=value, such as --set refiner.detector=null.")
        overrides[path.strip()] = parse_yaml(value, source=f"--set {setting}")
    return overrides
