"""Canvases that are too small for all queries."""

from __future__ import annotations

from lyrics.core.refining import canvas_sizes as module


def test_canvas_padding_is_only_what_the_queries_need() -> None:
    assert module.missing_pixels(1333, 800, 900) == 0
    assert module._image_tokens(1333, 800) == 167 * 100 + 84 * 50 + 42 * 25 + 21 * 13
    missing = module.missing_pixels(1333, 27, 900)
    assert missing == 64 - 27
    assert module._image_tokens(1333, 27 + missing) >= 900 > module._image_tokens(1333, 27)
