"""Drawings of flows: a tree, Mermaid and SVG."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest

from tocsin import FlowEdge, FlowInfo, FlowJob, FlowSummary
from tocsin._jobs.flow_layout import lay_out

SVG = "{http://www.w3.org/2000/svg}"


def flow(
    jobs: dict[int, str], edges: dict[tuple[int, int], Any], *, name: str = "nightly"
) -> FlowInfo:
    """Return a flow of jobs with these names and edges with these rules."""
    return FlowInfo(
        FlowSummary(7, name, datetime(2030, 1, 1, tzinfo=UTC), None, "running", 1, 0, 0, 0, 0),
        tuple(FlowJob(id, job, "q", "t", "waiting", 0, None) for id, job in jobs.items()),
        tuple(FlowEdge(parent, child, rule, ()) for (parent, child), rule in edges.items()),
    )


def test_a_tree_names_the_other_parents() -> None:
    diamond = {(1, 2): "cancel", (1, 3): "cancel", (2, 4): "run", (3, 4): "run"}
    assert flow(dict(enumerate("abcd", 1)), diamond).draw().splitlines() == [
        "nightly running",
        "  a waiting",
        "    b waiting",
        "    c waiting",
        "      d waiting (also after b)",
    ]


def test_mermaid_reads_any_name_as_text() -> None:
    info = flow({1: '<b>&"x"#1;\ny'}, {})
    assert info.draw("mermaid").splitlines() == [
        "flowchart TD",
        '    j1["#lt;b#gt;#amp;#quot;x#quot;#35;1; y<br>waiting"]',
    ]


def test_a_picture_has_any_name_as_text() -> None:
    names = {1: "<script>&\"'", 2: "\x00\x1b[31m\ud800", 3: "long " * 20, 4: "日本語"}
    info = flow(names, {(1, 2): "hold", (2, 3): "cancel"}, name="]]><x>")
    root = ElementTree.fromstring(info.draw("svg"))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        "svg",
        "title",
        "marker",
        "path",
        "text",
        "g",
        "rect",
    }
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts[:3] == ["]]><x> running", "<script>&\"'", "waiting"]
    assert texts[3] == "\ufffd\ufffd[31m\ufffd"
    assert texts[5] == ("long " * 20)[:31] + "…"
    tooltips = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert "<script>&\"' → \ufffd\ufffd[31m\ufffd, on failure: hold" in tooltips
    assert any(("long " * 20) in text for text in tooltips)


def test_a_flow_without_jobs_is_drawn() -> None:
    empty = flow({}, {})
    assert empty.draw() == "nightly running"
    assert empty.draw("mermaid") == "flowchart TD"
    assert ElementTree.fromstring(empty.draw("svg")).findtext(f"{SVG}title") == "nightly running"
    with pytest.raises(ValueError, match="tree, mermaid, svg"):
        empty.draw("pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_jobs_do_not_overlap_and_edges_cross_none(seed: int) -> None:
    dice = random.Random(seed)
    jobs = range(1, dice.randint(2, 40))
    widths = {job: dice.uniform(50, 200) for job in jobs}
    edges = [pair for pair in combinations(jobs, 2) if dice.random() < 2 / len(jobs)]
    layout = lay_out(widths, edges, 40)
    for job in jobs:
        x, y = layout.corners[job]
        assert layout.widths[job] >= widths[job]
        assert 0 <= x <= layout.width - layout.widths[job] + 0.01
        assert -0.01 <= y <= layout.height - 40 + 0.01
    for one, other in combinations(jobs, 2):
        if layout.corners[one][0] == layout.corners[other][0]:
            assert abs(layout.corners[one][1] - layout.corners[other][1]) > 40
    for parent, child in edges:
        route = layout.routes[parent, child]
        (x, y), (end_x, end_y) = layout.corners[parent], layout.corners[child]
        assert route[0] == pytest.approx((x + layout.widths[parent], y + 20))
        assert route[-1] == pytest.approx((end_x, end_y + 20))
        for (from_x, lane), (to_x, same) in zip(route[1:-1:2], route[2::2], strict=True):
            assert lane == same
            for job in jobs:
                left, top = layout.corners[job]
                assert not (from_x <= left < to_x and top < lane < top + 40), (parent, child, job)


def test_a_chain_is_straight_and_a_diamond_has_its_ends_in_the_middle() -> None:
    chain = lay_out(dict.fromkeys([1, 2, 3], 50.0), [(1, 2), (2, 3)], 40)
    assert {y for _, y in chain.corners.values()} == {0}
    diamond = lay_out(dict.fromkeys([1, 2, 3, 4], 50.0), [(1, 2), (1, 3), (2, 4), (3, 4)], 40)
    (_, top), (_, left), (_, right), (_, bottom) = (diamond.corners[job] for job in (1, 2, 3, 4))
    assert top == bottom == (left + right) / 2
