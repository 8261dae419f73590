"""The guard itself: with it torchvision and what imports it work, in this process; without it they do not, in a fresh
one.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.experts.conftest import _declared, needs

needs("torchvision")

import torch
from torchvision.transforms import v2


def test_torchvision_is_usable() -> None:
    assert v2.functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)


@pytest.mark.skipif(not _declared, reason="torchvision fits torch here")
def test_a_declared_operator_says_that_it_is_not_implemented() -> None:
    with pytest.raises(NotImplementedError, match="torchvision::nms"):
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.skipif(not _declared, reason="torchvision fits torch here")
def test_the_guard_is_still_needed() -> None:
    """When this fails, torchvision's wheel fits a CPU torch or no longer minds, and the guard can go."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "operator torchvision::nms does not exist" in done.stderr
