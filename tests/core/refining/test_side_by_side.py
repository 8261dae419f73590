"""Two at a time on a CPU with threads: the same results in the same order, and what holds for the caller
holds within.
"""

from __future__ import annotations

import threading

import pytest
import torch

from lyrics.core.refining.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def test_results_come_in_order_and_two_run_at_a_time() -> None:
    both = threading.Barrier(2, timeout=120)  # breaks unless two are inside together

    def work(item: int) -> tuple[int, int, bool]:
        both.wait()
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    assert side_by_side(work, range(6), CPU) == [(item, 2, False) for item in range(6)]
    assert torch.get_num_threads() == 4


def test_what_holds_for_the_caller_holds_within() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = side_by_side(
            lambda item: (torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype), [1, 2], CPU
        )
    assert found == [(True, torch.bfloat16)] * 2
    with torch.no_grad():
        found = side_by_side(
            lambda item: (torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype), [1, 2], CPU
        )
    assert found == [(False, torch.float32)] * 2


@pytest.mark.parametrize("why", ["gradients", "one thread", "one item", "another device"])
def test_one_after_the_other_in_this_thread(why: str) -> None:
    here = threading.get_ident()
    if why == "one thread":
        torch.set_num_threads(1)
    device = torch.device("meta") if why == "another device" else CPU
    items = [1] if why == "one item" else [1, 2, 3]
    with torch.set_grad_enabled(why == "gradients"):
        assert side_by_side(lambda item: threading.get_ident(), items, device) == [here] * len(items)
    assert side_by_side(len, [], CPU) == []


@torch.no_grad()
def test_the_first_failure_is_raised_and_the_threads_come_back() -> None:
    def work(item: int) -> int:
        if item:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 1"):
        side_by_side(work, [0, 1, 2], CPU)
    assert torch.get_num_threads() == 4
