"""Conditions: their names, what shares a look, and values that are refused."""

from __future__ import annotations

from typing import Any

import pytest

import lyrics
from lyrics.core.conditions import CLEAR, Condition, kept_tokens
from lyrics.core.errors import SpecError


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (CLEAR, "own"),
        (Condition(blur_parts="experts", seed=5), "own"),
        (Condition(soft="shuffled"), "soft-shuffled"),
        (Condition(soft="noise", seed=2), "soft-noise+seed-2"),
        (Condition(soft="zero", seed=2), "soft-zero"),
        (Condition(blur_px=4), "blur-4"),
        (Condition(blur_px=0.5, blur_parts="encoder"), "blur-0.5-encoder"),
        (Condition(drop_tokens=0.5), "drop-0.5"),
        (Condition(drop_tokens=1, seed=3), "drop-1"),
        (Condition("zero", 2, "experts", 0.25, 1), "soft-zero+blur-2-experts+drop-0.25+seed-1"),
    ],
)
def test_names(condition: Condition, name: str) -> None:
    assert condition.name == name
    assert condition.changes_nothing == (name == "own")


def test_conditions_of_the_soft_tokens_share_a_look() -> None:
    soft = [Condition(soft=kind, seed=7, blur_parts="encoder") for kind in ("own", "shuffled", "zero", "noise")]  # type: ignore[arg-type]
    assert {one.look for one in (*soft, Condition(drop_tokens=0.5))} == {CLEAR}
    assert Condition("zero", 4, "encoder", 0.5, 3).look == Condition(blur_px=4, blur_parts="encoder")


def test_who_sees_a_blurred_image() -> None:
    experts = ("image_encoder", "tagger", "detector", "segmenter")
    seen = {
        part: [one for one in experts if Condition(blur_px=1, blur_parts=part).blurs(one)]  # type: ignore[arg-type]
        for part in ("both", "encoder", "experts")
    }
    assert seen == {"both": list(experts), "encoder": ["image_encoder"], "experts": list(experts[1:])}
    assert not any(CLEAR.blurs(one) for one in experts)


def test_kept_tokens() -> None:
    assert [kept_tokens(Condition(drop_tokens=share), 9) for share in (0, 0.1, 0.5, 0.99, 1)] == [9, 8, 5, 0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"soft": "shuffle"}, "soft=shuffle: is one of own, shuffled, zero, noise. Did you mean 'shuffled'?"),
        ({"blur_parts": "vit"}, "blur_parts=vit: is one of both, encoder, experts"),
        ({"blur_px": -1.0}, "blur_px=-1.0: is a number of pixels, 0 or more."),
        ({"blur_px": float("nan")}, "blur_px=nan: is a number"),
        ({"drop_tokens": 1.5}, "drop_tokens=1.5: is a share from 0 to 1."),
        ({"drop_tokens": float("nan")}, "drop_tokens=nan: is a share"),
        ({"seed": -1}, "seed=-1: is from 0 to"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as found:
        lyrics.Condition(**values)
    assert message in str(found.value)
