"""Steps, ranks, workers: the same samples however the work is shared out, from any step on."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lyrics.core.data.mixture import Mixture, Source
from lyrics.core.data.sampler import StepSampler
from lyrics.core.data.stream import SampleStream
from lyrics.core.errors import SpecError
from lyrics.core.types import Sample


class Texts:
    """Text-only samples that say which row they are."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Sample:
        return Sample(image=None, source=f"{self.name} {index}")

    def picture(self, sample: Sample) -> None:
        raise AssertionError("text has no picture")


@given(
    steps=st.lists(st.integers(0, 50), min_size=2, max_size=2).map(sorted),
    switches=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=6),
)
def test_ranks_may_change_at_any_step(steps: list[int], switches: list[int]) -> None:
    start, stop = steps
    for step in range(start, stop):
        ranks = switches[step % len(switches)]
        shares = [
            next(iter(StepSampler(12, start=step, stop=step + 1, rank=rank, ranks=ranks))) for rank in range(ranks)
        ]
        assert {len(share) for share in shares} == {12 // ranks}
        assert [position for share in shares for position in share] == list(range(12 * step, 12 * (step + 1)))


def test_a_resumed_sampler_goes_on_where_it_was() -> None:
    whole = list(StepSampler(8, start=0, stop=30, rank=1, ranks=2))
    assert len(StepSampler(8, start=17, stop=30)) == 13
    assert list(StepSampler(8, start=17, stop=30, rank=1, ranks=2)) == whole[17:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("weights", [(None, None), (3.0, 1.0)], ids=["concatenated", "weighted"])
def test_workers_and_ranks_do_not_change_the_samples(weights: tuple[float | None, float | None]) -> None:
    sources = [Source("a", 40, weights[0]), Source("b", 25, weights[1], [10, 15])]
    stream = SampleStream(Mixture(sources, 5), {"a": Texts("a", 40), "b": Texts("b", 25)})

    def read(workers: int, ranks: int, start: int, stop: int) -> list[list[str]]:
        loaders = [
            iter(
                torch.utils.data.DataLoader(
                    stream,
                    batch_sampler=StepSampler(12, start=start, stop=stop, rank=rank, ranks=ranks),
                    num_workers=workers,
                    collate_fn=list,
                )
            )
            for rank in range(ranks)
        ]
        return [[example.sample.source for loader in loaders for example in next(loader)] for _ in range(start, stop)]

    expected = read(workers=0, ranks=1, start=0, stop=8)
    assert len({source for step in expected for source in step}) > 40
    for workers, ranks, start in ((1, 1, 0), (4, 1, 0), (0, 2, 3), (0, 3, 0), (1, 4, 5)):
        assert read(workers, ranks, start, 8) == expected[start:], (workers, ranks, start)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_twins_meet_in_every_batch_whatever_the_ranks_workers_and_the_step_begun_with() -> None:
    """Rows 2k and 2k + 1; the last row of an odd number has no twin and never comes."""
    stream = SampleStream(Mixture([Source("a", 41), Source("b", 24)], 5, 2), {"a": Texts("a", 41), "b": Texts("b", 24)})

    def read(workers: int, ranks: int, start: int) -> list[list[list[str]]]:
        samplers = [StepSampler(12, start=start, stop=11, rank=rank, ranks=ranks, group=2) for rank in range(ranks)]
        loaders = [
            iter(torch.utils.data.DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=list))
            for sampler in samplers
        ]
        return [[[one.sample.source for one in next(loader)] for loader in loaders] for _ in range(start, 11)]

    expected = [list(chain(*step)) for step in read(workers=0, ranks=1, start=0)]
    assert {source for step in expected for source in step} == {f"a {row}" for row in range(40)} | {
        f"b {row}" for row in range(24)
    }
    for workers, ranks, start in ((2, 1, 0), (0, 2, 3), (0, 3, 0), (1, 6, 5)):
        found = read(workers, ranks, start)
        assert [list(chain(*step)) for step in found] == expected[start:], (workers, ranks, start)
        for share in (share for step in found for share in step):
            for first, second in zip(share[::2], share[1::2], strict=True):
                name, row = first.split()
                assert (int(row) % 2, second) == (0, f"{name} {int(row) + 1}")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"global_batch": 10, "start": 0, "stop": 1, "ranks": 4}, "10 cannot be shared equally by 4 ranks; take 8"),
        ({"global_batch": 2, "start": 0, "stop": 1, "ranks": 4}, "take 4"),
        ({"global_batch": 0, "start": 0, "stop": 1}, "cannot be shared"),
        ({"global_batch": 4, "start": 0, "stop": 1, "rank": 2, "ranks": 2}, "rank must be from 0 to 1, not 2"),
        ({"global_batch": 4, "start": 5, "stop": 1}, "not from 5 to 1"),
        (
            {"global_batch": 18, "start": 0, "stop": 1, "ranks": 2, "group": 2},
            "gives each of 2 ranks 9 samples, which are not whole groups of 2; take 16",
        ),
        ({"global_batch": 3, "start": 0, "stop": 1, "group": 2}, "not whole groups of 2; take 2"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        StepSampler(**arguments)
