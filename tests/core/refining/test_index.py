"""A set of keys against Python's own."""

from __future__ import annotations

import os
import sys

import pytest

from lyrics.core.refining import index
from lyrics.core.refining.index import KeySet, key_of


def test_a_set_of_keys_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_RECENT", 7)
    keys, plain = KeySet(), set()
    for number in range(2_000):
        key = key_of(f"{number}.jpg")
        assert key not in keys
        keys.add(key)
        plain.add(key)
        assert key in keys
    assert len(keys) == len(plain) == 2_000
    assert all(key in keys for key in plain)
    assert not any(key_of(f"{number}.png") in keys for number in range(2_000))
    assert len(keys._sorted) < 12, "a look-up goes through few arrays"


@pytest.mark.skipif(sys.platform == "win32", reason="names of any bytes")
def test_names_of_any_bytes_have_keys_of_sixteen_that_end_in_no_zero() -> None:
    names = [os.fsdecode(bytes([letter])) for letter in range(1, 256)]
    assert len({key_of(name) for name in names}) == 255
    assert {(len(key_of(name)), key_of(name)[-1]) for name in names} == {(16, 1)}
