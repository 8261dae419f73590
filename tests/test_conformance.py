"""Every installed component keeps its contract; and the suite that says so can tell right from wrong."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.errors import MissingRequirementError
from lyrics.core.registry.component import KINDS
from lyrics.core.registry.registry import PluginSource, Registry, default_registry
from lyrics.testing import (
    CONTRACTS,
    ComponentContract,
    ConformanceReport,
    DetectorContract,
    VocabularyContract,
    check_component,
    check_vocabulary,
    checks_of,
)
from lyrics.testing.run import checks_without_files
from lyrics.testing.small import PARTS, Provides
from tests.conformance_parts import registry as parts

# --- our own components; public data sets need files, so all their checks run in tests/plugins/datasets ---

BUILT_IN = [entry for entry in default_registry().entries if entry.source.distribution == "lyrics-vl"]
#: How many checks each kind has. Changing a number is changing what plugin authors must keep: say so in the changelog.
CHECKS = {
    "image-encoder": 15,
    "tagger": 13,
    "detector": 16,
    "segmenter": 14,
    "query-transformer": 24,
    "language-model": 24,
    "objective": 16,
    "dataset": 11,
    "benchmark": 8,
}


@pytest.mark.parametrize(
    ("kind", "name", "check"),
    [
        pytest.param(
            e.component.kind,
            e.component.name,
            check,
            id=f"{e.component.kind}-{e.component.name}-{check.removeprefix('test_')}",
        )
        for e in BUILT_IN
        for check in checks_without_files(e)[0]
    ],
)
def test_built_in_component_keeps_its_contract(kind: str, name: str, check: str) -> None:
    case = type("Case", (CONTRACTS[kind],), {"component": f"lyrics-vl/{name}"})
    try:
        getattr(case(), check)()
    except MissingRequirementError as error:
        pytest.skip(str(error))


def test_every_kind_that_the_presets_need_is_built_in() -> None:
    kinds = {entry.component.kind for entry in BUILT_IN}
    assert kinds >= set(KINDS) - {"dataset", "benchmark"}


def test_number_of_checks_is_written_down() -> None:
    assert {kind: len(checks_of(contract)) for kind, contract in CONTRACTS.items()} == CHECKS


def test_pytest_and_the_command_run_the_same_checks() -> None:
    """pytest collects every method whose name begins with ``test``; a check named otherwise would run in one and not
    the other.
    """
    for contract in CONTRACTS.values():
        collected = {name for name in dir(contract) if name.startswith("test")}
        assert collected == set(checks_of(contract))


# --- the suite itself ---


@functools.cache
def report(kind: str, fault: str = "") -> ConformanceReport:
    registry = parts(fault)
    return check_component(registry.component(kind, "part"), registry)


@pytest.mark.parametrize("kind", KINDS)
def test_right_component_passes_every_check(kind: str) -> None:
    found = report(kind)
    assert dict(found.failures) == {}
    assert (found.kind, found.name, found.checks) == (kind, "part", CHECKS[kind])


@pytest.mark.parametrize("path", sorted(PARTS))
def test_the_suites_own_parts_pass_it(path: str) -> None:
    """Among them a query transformer that reads no text, and objects to being handed some."""
    component = PARTS[path]
    registry = Registry(
        [(PluginSource("lyrics-testing", "1", "parts", "lyrics.testing.small"), lambda: Provides([component]))]
    )
    found = check_component(registry.component(component.kind, component.name), registry)
    assert dict(found.failures) == {}


BATCH = "test_batch_composition_does_not_matter"
OF_MODULES = {
    "no module": "test_is_a_module",
    "memory": "test_builds_on_the_meta_device",
    "state": "test_state_dict_comes_back",
    "network": "test_builds_offline",
}
FAULTS: Mapping[str, Mapping[str, str]] = {
    "image-encoder": {
        **OF_MODULES,
        "declared": "test_declared_width_is_the_real_one",
        "undescribed": "test_every_option_is_described",
        "lax": "test_unknown_option_is_refused",
        "rounding": "test_options_round_trip_through_json",
        "width": "test_tokens_have_the_promised_shape",
        "integers": "test_tokens_have_the_promised_shape",
        "empty": "test_no_images_give_no_tokens",
        "batch": BATCH,
        "random": "test_is_deterministic_in_evaluation_mode",
        "unread": "test_every_parameter_reaches_the_tokens",
    },
    "tagger": {
        **OF_MODULES,
        "unsorted": "test_tags_are_records_best_first",
        "percent": "test_tags_are_records_best_first",
        "strings": "test_tags_are_records_best_first",
        "count": "test_tags_are_records_best_first",
        "empty": "test_no_images_give_no_tags",
        "batch": BATCH,
    },
    "detector": {
        **OF_MODULES,
        "declared": "test_declared_width_is_the_real_one",
        "width": "test_output_keeps_the_contract",
        "unsorted": "test_output_keeps_the_contract",
        "invented": "test_output_keeps_the_contract",
        "float mask": "test_output_keeps_the_contract",
        "pixels": "test_boxes_are_normalized_and_scores_probabilities",
        "percent": "test_boxes_are_normalized_and_scores_probabilities",
        "mask count": "test_output_keeps_the_contract",
        "canvas masks": "test_masks_are_of_the_original_picture",
        "always": "test_no_phrases_give_no_detections",
        "empty": "test_no_images_give_no_detections",
        "batch": BATCH,
        "batch detections": BATCH,
        "batch boxes": BATCH,
        "batch scores": BATCH,
    },
    "segmenter": {
        **OF_MODULES,
        "declared": "test_declared_width_is_the_real_one",
        "width": "test_masks_are_of_the_original_picture",
        "canvas": "test_masks_are_of_the_original_picture",
        "count": "test_masks_are_of_the_original_picture",
        "all exist": "test_masks_are_of_the_original_picture",
        "float mask": "test_masks_are_of_the_original_picture",
        "no boxes": "test_no_boxes_give_no_masks",
        "empty": "test_no_images_give_no_masks",
        "batch": BATCH,
    },
    "query-transformer": {
        "no module": "test_is_a_module",
        "width": "test_queries_have_the_promised_width",
        "batch": BATCH,
        "blind": "test_queries_read_the_image_that_is_indexed",
        "index": "test_queries_read_the_image_that_is_indexed",
        "deaf": "test_queries_see_the_text_they_are_shown",
        "objects": "test_no_objects_are_normal",
        "swapped": "test_projected_features_stand_for_the_features",
        "planned": "test_a_pass_laid_out_before_is_the_pass",
        "peeking": "test_captions_are_read_from_left_to_right",
        "all rows": "test_wanted_rows_are_those_asked_for",
        "idle": "test_trains_in_stage_1",
        "far": "test_two_ranks_are_one",
        "detached": "test_trains_in_stage_2",
        "forgetful": "test_saves_loads_and_answers",
        "values": "test_memory_is_counted",
    },
    "language-model": {
        "no module": "test_is_a_module",
        "width": "test_logits_have_the_promised_shape",
        "vocabulary": "test_logits_have_the_promised_shape",
        "padding": "test_generation_ignores_left_padding",
        "talkative": "test_generation_ignores_left_padding",
        "secretive": "test_tokens_are_reported_as_they_are_chosen",
        "overconfident": "test_tokens_are_as_probable_as_it_says",
        "no dice": "test_generation_follows_the_options_that_it_takes",
        "mixing": "test_packed_prompts_are_read_as_if_alone",
        "old prompt": "test_a_conversation_goes_on_from_what_was_read",
        "old weights": "test_a_conversation_goes_on_from_what_was_read",
        "muddled": "test_prompts_that_came_at_different_times_go_on_together",
        "template": "test_chat_template_exists",
        "adaptation": "test_adaptation_says_what_is_trained",
        "trained": "test_adaptation_says_what_is_trained",
        "detached": "test_trains_in_stage_2",
        "forgetful": "test_saves_loads_and_answers",
        "values": "test_memory_is_counted",
        "merging": "test_lora_merges_and_comes_out_again",
    },
    "objective": {
        "no module": "test_is_a_module",
        "float count": "test_loss_is_a_sum_with_its_count",
        "vector": "test_loss_is_a_sum_with_its_count",
        "one sample": "test_one_sample_is_enough",
        "mean": "test_nothing_to_see_or_to_say_is_normal",
        "leftover": "test_nothing_to_see_or_to_say_is_normal",
        "comparing": "test_comparing_samples_is_declared",
        "segments": "test_streams_have_the_segments_of_the_query_transformer",
        "values": "test_streams_do_not_depend_on_values_of_parameters",
    },
    "dataset": {
        "nothing": "test_has_a_length_and_samples",
        "dicts": "test_has_a_length_and_samples",
        "nameless": "test_has_a_length_and_samples",
        "random": "test_samples_are_the_same_every_time",
        "endless": "test_index_out_of_range_is_an_index_error",
        "gray": "test_pictures_are_rgb_and_the_same_every_time",
        "open file": "test_survives_the_way_to_a_loader_worker",
    },
    "benchmark": {
        "nothing": "test_samples_have_prompts",
        "silent": "test_samples_have_prompts",
        "words": "test_scores_are_numbers",
        "no metric": "test_scores_are_numbers",
    },
}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults])
def test_wrong_component_fails_the_check_that_is_about_it(kind: str, fault: str) -> None:
    found = report(kind, fault)
    assert FAULTS[kind][fault] in found.failures, dict(found.failures)
    assert found.checks == CHECKS[kind]
    assert all(cause.strip() for cause in found.failures.values())


def test_every_kind_has_faults_and_every_check_of_a_kind_catches_one() -> None:
    shared = set(checks_of(ComponentContract))
    for kind, contract in CONTRACTS.items():
        own = {name for name in vars(contract) if name.startswith("test_")}
        assert own <= set(FAULTS[kind].values()), (
            f"no fault of {kind} shows that {own - set(FAULTS[kind].values())} can fail"
        )
    caught = {check for faults in FAULTS.values() for check in faults.values()}
    # The manifest and the guard have tests of their own below.
    assert shared - caught == {"test_manifest_imports_nothing_heavy", "test_no_check_is_missing"}


def words(fault: str, module: str = "tests.conformance_parts") -> ConformanceReport:
    registry = parts(fault, module)
    ((record, source),) = registry.vocabularies
    return check_vocabulary(record, source, registry)


@pytest.mark.parametrize(
    ("fault", "check", "cause"),
    [
        ("any order", "test_words_are_the_same_in_every_process", "another process got other words"),
        ("two words", "test_tokenizer_knows_the_words", "'fire truck' is no word"),
    ],
)
def test_wrong_vocabulary_fails_the_check_that_is_about_it(fault: str, check: str, cause: str) -> None:
    found = words(fault)
    assert cause in found.failures[check]
    assert (found.kind, found.name, found.checks) == ("vocabulary", "part-words", len(checks_of(VocabularyContract)))


def test_right_vocabulary_passes_every_check() -> None:
    assert words("").failures == {}


def test_vocabulary_of_a_heavy_manifest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest_of_words.py").write_text("import torch.nn\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(words("", "manifest_of_words").failures) == ["test_manifest_imports_nothing_heavy"]


@pytest.mark.parametrize("heavy", ["torch", "transformers", "triton"])
def test_manifest_that_imports_something_heavy_fails(
    heavy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"manifest_with_{heavy}.py").write_text(f"import {heavy}.nn\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = parts(module=f"manifest_with_{heavy}")
    found = check_component(registry.component("dataset", "part"), registry)
    assert list(found.failures) == ["test_manifest_imports_nothing_heavy"]
    assert f"the manifest imports {heavy}" in found.failures["test_manifest_imports_nothing_heavy"]


def test_component_that_needs_something_fails_with_the_command() -> None:
    import dataclasses

    from lyrics.core.registry.registry import Entry

    registry = parts()
    entry = registry.component("dataset", "part")
    needy = dataclasses.replace(entry.component, requires=("acme-engine>=2",), install="pip install acme-engine")
    registry.plugins[0].components = [needy]
    found = check_component(Entry(needy, entry.source), registry)
    assert "Run: pip install acme-engine" in found.failures["test_builds_offline"]


# --- the guard ---


def case(**members: Any) -> type[ComponentContract]:
    return type(
        "TestAcme", (DetectorContract,), {"component": "part", "registry": parts(), "__module__": __name__, **members}
    )


def test_contract_can_be_inherited() -> None:
    for check in checks_of(DetectorContract):
        getattr(case()(), check)()


@pytest.mark.parametrize("check", checks_of(DetectorContract))
def test_check_cannot_be_removed(check: str) -> None:
    with pytest.raises(TypeError, match=f"TestAcme overrides the check {check} of DetectorContract"):
        case(**{check: None})


def test_check_cannot_be_overridden_without_a_reason() -> None:
    def passes(self: Any) -> None:
        pass

    for override in (passes, pytest.mark.xfail(passes), pytest.mark.skip(reason="slow")(passes), property(passes)):
        with pytest.raises(TypeError, match=r"may only be overridden by a test marked @pytest\.mark\.xfail"):
            case(test_output_keeps_the_contract=override)


def test_check_cannot_be_overridden_by_a_mixin() -> None:
    class Mixin:
        def test_output_keeps_the_contract(self) -> None:
            pass

        def test_no_check_is_missing(self) -> None:
            pass

    with pytest.raises(TypeError, match="overrides the check"):
        type("TestAcme", (Mixin, DetectorContract), {"__module__": __name__})


def test_check_may_be_overridden_with_a_reason() -> None:
    @pytest.mark.xfail(reason="the engine pads")
    def fails(self: Any) -> None:
        raise AssertionError

    cls = case(**{BATCH: fails})
    cls().test_no_check_is_missing()
    # ... and its own subclass keeps the reason.
    type("TestSub", (cls,), {"__module__": __name__})().test_no_check_is_missing()


def test_check_removed_after_the_class_was_made_is_noticed() -> None:
    cls = case()
    cls.test_output_keeps_the_contract = lambda self: None  # type: ignore[attr-defined]
    with pytest.raises(
        AssertionError, match="the check test_output_keeps_the_contract of DetectorContract was removed"
    ):
        cls().test_no_check_is_missing()


def test_own_checks_may_be_added() -> None:
    def test_mine(self: Any) -> None:
        pass

    cls = case(test_mine=test_mine)
    assert set(checks_of(cls)) == {*checks_of(DetectorContract), "test_mine"}


def test_in_process_registry_is_used() -> None:
    with_part = case()()
    assert with_part.entry.source.distribution == "acme-parts"
    with_part.registry = Registry([])  # type: ignore[misc]
    with pytest.raises(ValueError, match="no detector named 'part'"):
        _ = with_part.entry
