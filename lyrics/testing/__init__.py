"""The conformance suite: one class per kind of component, for plugin authors to inherit.

::

    from lyrics.testing import DetectorContract

    class TestAcmeBoxes(DetectorContract):
        component = "acme-boxes"
        options = {"checkpoint": "random"}   # must build offline; the component's test_options if left out

Every check is a method ``test_...`` with plain asserts, so pytest finds it and ``lyrics test-plugin`` runs it without
pytest. A check may not be removed: overriding one fails the suite unless the override is marked
``@pytest.mark.xfail(reason=...)``. Only the contract is tested (``lyrics.core.contracts``), never how a component keeps
it.
"""

from __future__ import annotations

from lyrics.core.renaming import moved_names
from lyrics.testing.base import ComponentContract, Contract, checks_of
from lyrics.testing.kinds import (
    CONTRACTS,
    BenchmarkContract,
    DatasetContract,
    DetectorContract,
    ImageEncoderContract,
    LanguageModelContract,
    ObjectiveContract,
    QueryTransformerContract,
    SegmenterContract,
    TaggerContract,
)
from lyrics.testing.run import ConformanceReport, check_component, check_vocabulary
from lyrics.testing.vocabulary import VocabularyContract

__all__ = [
    "CONTRACTS",
    "BenchmarkContract",
    "ComponentContract",
    "ConformanceReport",
    "Contract",
    "DatasetContract",
    "DetectorContract",
    "ImageEncoderContract",
    "LanguageModelContract",
    "ObjectiveContract",
    "QueryTransformerContract",
    "SegmenterContract",
    "TaggerContract",
    "VocabularyContract",
    "check_component",
    "check_vocabulary",
    "checks_of",
]


__getattr__ = moved_names(__name__, {"Report": f"{__name__}.ConformanceReport"})
