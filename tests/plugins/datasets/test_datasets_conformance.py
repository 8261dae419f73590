"""What ``lyrics test-plugin`` makes of a data set whose files it does not have."""

from __future__ import annotations

import pytest

from lyrics.testing import check_component
from tests.plugins.datasets.conftest import REGISTRY


@pytest.mark.parametrize("entry", REGISTRY.entries, ids=lambda entry: entry.component.name)
def test_it_is_held_to_what_can_be_told_without(entry) -> None:
    report = check_component(entry, REGISTRY)
    assert (report.failures, report.skipped, report.checks) == ({}, "needs root", 4)
