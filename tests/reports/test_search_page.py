"""The report of a search: what was found, what it cost, and that its score flatters it."""

from __future__ import annotations

import re

from keyhole.models.layers import Layer
from keyhole.reports.markup import COLORS
from keyhole.reports.search_page import search_page
from keyhole.studies.budget import Cost, Rung, SearchConfig
from keyhole.studies.search import Found, Tried


def found(tried: tuple[Tried, ...]) -> Found:
    return Found(
        teacher="resnet20",
        data="cifar100",
        student="resnet8",
        terms="ce,kd,hint",
        config=SearchConfig("halving", holdout=5000),
        epochs=3,
        combinations=1140,
        rungs=(Rung(3, 1), Rung(1, 3)),
        tried=tried,
        layers=(Layer("a", "Block", 16, (8, 8), 100),),
        cost=Cost(5, 3),
        seconds=754.0,
    )


def test_the_page_tells_what_was_found_and_what_it_cost() -> None:
    tried = (Tried(("<b>", "c"), (0.1, 0.2, 0.3456)), Tried(("a", "c"), (0.09,)), Tried(("a", "d"), (), "loss is nan"))
    page = search_page(found(tried))
    for told in (
        "resnet20 teaches resnet8: a search", "Of 3 tried of 1,140 combinations of 2 layers, &lt;b&gt;, c did best",
        "34.56", "flatters it", "halving: 3 to epoch 1, 1 to epoch 3", "5, as much as 1.667 students to the end",
        "12 min 34 s", "5,000 training images held out", "loss is nan", "9.00",
    ):  # fmt: skip
        assert told in page, told
    assert "<b>" not in page
    assert "more stand in search.json" not in page


def test_many_combinations_are_cut_off_in_the_table() -> None:
    page = search_page(found(tuple(Tried((f"l{i}",), (0.5 - i / 100,)) for i in range(40))))
    assert "10 more stand in search.json" in page
    assert "l29" in page


def test_the_best_have_a_color_and_a_name_and_the_others_are_gray() -> None:
    tried = tuple(Tried((f"l{i}", "m"), tuple(0.5 - i / 100 + k / 10 for k in range(3 - i // 3))) for i in range(8))
    page = search_page(found(tried))
    shown, drawn = re.findall(r"<li>.*?</li>", page), page[page.rindex("<svg") :]
    assert [re.sub("<[^<>]*>", "", item).strip() for item in shown] == [f"l{i}, m" for i in range(5)]
    assert "best first, the other 3 in gray" in page
    for color in COLORS[:5]:
        assert f'stroke="{color}"' in "".join(shown)
        assert re.search(f'stroke: {color};[^"]*stroke-width: 1.6', drawn, flags=re.IGNORECASE), color
    assert len(re.findall(r"stroke-width: 0.7", drawn)) == 3
    few = search_page(found(tried[:4]))
    assert "in gray" not in few
    assert "stroke-width: 0.7" not in few
