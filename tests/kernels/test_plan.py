"""The plan: two intervals per row, and exactly the visibility that was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lyrics.kernels import PlanError, Segment, StreamGroup, build_plan


def lengths(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def full(*groups: str) -> dict[tuple[str, str], str]:
    return {(a, b): "full" for group in groups for a in group for b in group}


def group(name: str, sizes: dict[str, list[int]], visibility: dict, **kwargs) -> StreamGroup:
    segments = tuple(Segment(s, lengths(*n), 0 if s in "VG" else 1) for s, n in sizes.items())
    return StreamGroup(name, segments, visibility, torch.arange(len(next(iter(sizes.values())))), **kwargs)


TABLES = {
    "itc": full("VG", "SC"),
    "itc_split": full("VG", "S", "C"),
    "itm": full("VC", "GS"),
    "itm_full": full("VGSC"),
    "msp": full("VGS"),
    "lm": {
        **full("VG"),
        ("S", "S"): "causal",
        ("C", "S"): "full",
        ("C", "C"): "causal",
        **{(t, q): "full" for t in "SC" for q in "VG"},
    },
    "caption": {**full("VG"), ("C", "C"): "causal", ("C", "V"): "full", ("C", "G"): "full"},
    "nothing": {},
}


def by_definition(groups: list[StreamGroup]) -> torch.Tensor:
    """The dense mask from the tables, token by token, sharing nothing with the plan but the layout."""
    layout, _ = build_plan(groups)
    tokens = [None] * layout.num_tokens
    for g in groups:
        for s in g.segments:
            for row in range(g.num_rows):
                for i in range(int(s.lengths_R[row])):
                    tokens[int(layout.starts[g.name, s.name][row]) + i] = (g, s.name, row, i)
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for a, (g, s, row, i) in enumerate(tokens):
        for b, (h, t, other, j) in enumerate(tokens):
            if g is h and row == other:
                seen = g.visibility.get((s, t), "none")
                mask[a, b] = seen == "full" or (seen == "causal" and j <= i)
            elif g.prefix == h.name:
                wanted = row if g.prefix_row_R is None else int(g.prefix_row_R[row])
                mask[a, b] = wanted == other
    return mask


row_lengths = st.integers(0, 5)


@st.composite
def groups_strategy(draw: st.DrawFn) -> list[StreamGroup]:
    found = []
    for number, table in enumerate(draw(st.lists(st.sampled_from(sorted(TABLES)), min_size=1, max_size=3))):
        rows = draw(st.integers(1, 3))
        sizes = {s: draw(st.lists(row_lengths, min_size=rows, max_size=rows)) for s in "VGSC"}
        found.append(group(f"{table}{number}", sizes, TABLES[table]))
    if draw(st.booleans()):
        rows = draw(st.integers(1, 3))
        caption = {"C": draw(st.lists(row_lengths, min_size=rows, max_size=rows))}
        queries = group("queries", {"V": [2] * 3, "G": [3] * 3}, full("VG"))
        pointer = lengths(*draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))
        found = [queries, *found, group("icg", caption, {("C", "C"): "causal"}, prefix="queries", prefix_row_R=pointer)]
    return found


@settings(max_examples=60, deadline=None)
@given(groups_strategy())
def test_the_plan_says_exactly_what_the_tables_say(groups: list[StreamGroup]) -> None:
    _, plan = build_plan(groups)
    assert torch.equal(plan.dense_mask(), by_definition(groups))


@settings(max_examples=60, deadline=None)
@given(groups_strategy(), st.data())
def test_selecting_rows_selects_rows_of_the_mask(groups: list[StreamGroup], data: st.DataObject) -> None:
    _, plan = build_plan(groups)
    kept = data.draw(st.lists(st.booleans(), min_size=plan.num_queries, max_size=plan.num_queries))
    rows = torch.tensor(kept, dtype=torch.bool).nonzero()[:, 0]
    selected = plan.select(rows)
    assert torch.equal(selected.dense_mask(), plan.dense_mask()[rows])
    assert torch.equal(selected.row_id_T, plan.row_id_T[rows])


def test_every_query_row_is_in_exactly_one_run() -> None:
    _, plan = build_plan([group("itm", {"V": [2, 2], "G": [2, 2], "S": [3, 0], "C": [0, 4]}, TABLES["itm"])])
    covered = torch.zeros(plan.num_queries, dtype=torch.int64)
    for q0, qn, *_ in plan.table.tolist():
        covered[q0 : q0 + qn] += 1
    assert (covered == 1).all()


def test_queries_of_all_groups_come_first() -> None:
    a = group("a", {"V": [2], "G": [2], "S": [3], "C": [1]}, TABLES["itm"])
    b = group("b", {"V": [2], "G": [2], "S": [1], "C": [2]}, TABLES["msp"])
    layout, _ = build_plan([a, b])
    assert layout.bank_sizes == (8, 7)
    assert [int(layout.starts[n, "V"][0]) for n in "ab"] == [0, 4]


def test_segments_are_reordered_where_that_makes_two_intervals() -> None:
    """C sees V, S and itself causally; in the declared order that is three intervals, with S before C it is two."""
    table = {("C", "C"): "causal", ("C", "S"): "full", ("C", "V"): "full", ("S", "S"): "full"}
    declared = group("x", {"V": [2], "C": [2], "S": [3]}, table)
    layout, plan = build_plan([declared])
    assert int(layout.starts["x", "S"][0]) == 2
    assert int(layout.starts["x", "C"][0]) == 5
    assert torch.equal(plan.dense_mask(), by_definition([declared]))


def test_three_intervals_are_refused_with_the_segments_named() -> None:
    sizes = {"V": [1], "G": [1], "W": [1], "S": [1], "C": [1]}
    segments = tuple(Segment(n, lengths(*v), 0 if n in "VGW" else 1) for n, v in sizes.items())
    table = {("S", "S"): "full", ("V", "V"): "full", ("V", "S"): "full"}
    queries = StreamGroup("q", segments[:3], full("VGW"), torch.arange(1))
    table = {("V", "V"): "full", ("V", "S"): "full"}
    bad = StreamGroup("bad", (segments[0], segments[3]), table, torch.arange(1), prefix="q")
    with pytest.raises(PlanError, match=r"'bad'.*'V' sees V\+G\+W and V and S.*more than two intervals"):
        build_plan([queries, bad])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visibility": {("V", "X"): "full"}}, "names segment 'X'"),
        ({"visibility": {("V", "G"): "causal"}}, "only a segment can be causal to itself"),
        ({"visibility": {("V", "V"): "half"}}, "is 'half', not none, full or causal"),
        ({"prefix": "nobody"}, "prefix 'nobody' is not among"),
        ({"prefix": "a"}, "cannot be its own prefix"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    fields = {"visibility": full("VG"), **change}
    with pytest.raises(PlanError, match=message):
        build_plan([group("a", {"V": [2], "G": [2]}, fields.pop("visibility"), **fields)])


def test_logical_ids_do_not_depend_on_packing() -> None:
    a = group("a", {"V": [2, 2], "S": [3, 1]}, full("VS"))
    b = group("b", {"V": [2, 2], "S": [1, 2]}, full("VS"))
    both, plan_both = build_plan([b, a])
    alone, plan_alone = build_plan([a])
    for segment in "VS":
        packed = plan_both.row_id_T[both.positions("a", segment)]
        assert torch.equal(packed, plan_alone.row_id_T[alone.positions("a", segment)])
    assert plan_both.row_id_T.unique().numel() == plan_both.num_queries
