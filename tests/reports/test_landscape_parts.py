"""What a report says of all combinations: the same figures as the landscape, and nothing that is not known."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from keyhole.plans import ArmPlan
from keyhole.reports.landscape_parts import _time
from keyhole.reports.markup import duration
from keyhole.reports.study_page import study_page
from keyhole.studies.landscape import Group, Landscape, survey
from keyhole.studies.rules import LookSeconds
from keyhole.studies.verdict import judge

LAYERS = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "<b>")
ARMS = {combo: f"hints {'+'.join(combo)}" for combo in combinations(LAYERS, 2)}
RULES = {"kmeans r2_cca": ("layer1.1", "layer2.1"), "stage-ends": ("layer1.1", "layer2.1"), "uniform": LAYERS[:2]}
SETTING: dict[str, Any] = {
    "teacher": "resnet14",
    "teacher_top1": 71.23,
    "data": "cifar100",
    "students": ["resnet8"],
    "epochs": 2,
    "batch_size": 64,
    "holdout": 5000,
    "seeds": [0, 1],
}


def cells(seeds: int = 2) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for arm in ("kd", *ARMS.values()):
            top1 = 60 + ("layer2.1" in arm) + 0.2 * float(random.normal())
            found.append(
                {
                    "arm": arm, "seed": seed, "diverged": None, "top1": {"last": top1, "best": top1},
                    "held_out_top1": {"last": top1 + 0.1}, "cohort_seconds": 33.0, "cohort_students": 11,
                    "parameters": 1, "macs": 1, "teacher_macs": 3,
                    "history": [{"held_out_top1": top1 / 200}, {"held_out_top1": top1 / 100}], "hints": [],
                }
            )  # fmt: skip
    return found


def seen(seeds: int = 2) -> Landscape:
    found = survey(
        Group("hints", ArmPlan(), ARMS, {}),
        cells(seeds),
        rules=RULES,
        baseline="kd",
        students_per_pass=5,
        look_s=LookSeconds(2.75, {"r2_cca": 0.5, "svcca": 0.75}),
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return seen()


def page_of(landscape: Landscape, seeds: int = 2) -> str:
    found = judge(cells(seeds), ["kd", *ARMS.values()], landscapes=[landscape])
    return study_page(found, {**SETTING, "seeds": list(range(seeds))})


def test_the_page_tells_what_the_landscape_holds(landscape: Landscape) -> None:
    page = page_of(landscape)
    assert page.index("Which layers are taken matters, more than the chance of a single run") < page.index("<table")
    spread, winner = landscape.spread, landscape.winner
    assert spread is not None
    assert winner is not None
    first = landscape.standings[0]
    for told in (
        "All combinations of layers: hints", f"{landscape.mean:.2f}", f"{spread.noise:.2f}",
        f"{100 * spread.share:.0f}", f"{landscape.seeds_agree:.2f}", "kmeans r2_cca; stage-ends",
        f"{first.top1:.2f}", f"{first.gain:+.2f}", f"{winner.fair:.2f}", f"{winner.highest:.2f}",
        "rank correlation of held-out images and test images of another seed", "halving", "random", "teacher passes",
        "takes 0.50 s to 0.75 s, at most 16.3&nbsp;% of the 4.60 s that one student takes alone",
        f"{landscape.effects[0].mean:+.2f}", "without layer2.1, points", f"{landscape.effects[0].apart:+.2f} (",
        f"{100 * (landscape.additive or 0):.0f}",
    ):  # fmt: skip
        assert told in page, told
    assert "<b>" not in page
    assert page.count("<svg") >= 3


def test_combinations_do_not_crowd_the_other_tables(landscape: Landscape) -> None:
    page = page_of(landscape)
    assert "What the other students reach" in page
    assert "hints layer1.0+layer1.1" not in page
    assert re.search(r"<td[^>]*>kd</td>", page)


def test_what_is_not_known_is_not_told(landscape: Landscape) -> None:
    one = seen(seeds=1)
    page = page_of(one, seeds=1)
    assert "It takes a second seed" in page
    assert "a second seed would tell by how much" in page
    assert "share of the combination in" not in page
    assert "beyond chance (Holm-corrected)" not in page
    assert "test images of the same seed, which flatters it" in page
    assert "test images of the seeds that it did not see" in page_of(landscape)
    bare = replace(landscape, winner=None, standings=(), effects=(), replays=(), over_baseline=None, left_out=3)
    assert '<td class="n">10 of 13</td>' in page_of(bare)
    page = page_of(bare)
    for title in ("What a search would find", "Where choices stand", "What each layer is worth", "minus kd, points"):
        assert title not in page
    assert "combinations left out: diverged" in page
    unlooked = page_of(replace(landscape, look_s=None, centers_s={}, matches=()))
    assert "At equal seconds" not in unlooked
    assert "a look for all rules together takes 2.75 s (for one metric it was not timed)" in page_of(
        replace(landscape, centers_s={})
    )
    assert "Costs are student epochs" in page_of(replace(landscape, seconds_a_cell=None, seconds_a_pass=None))
    assert "time here" in page_of(landscape)
    assert "time here" in page_of(replace(landscape, seconds_a_cell=None, seconds_a_pass=None))


def test_the_time_of_a_search_counts_the_passes_that_it_needs(landscape: Landscape) -> None:
    """Of 33 s of a cohort each of 11 students had 3 / 0.52 operations, and the teacher 3 / 0.84."""
    own, taught = 3 / 0.52, 3 / 0.84
    assert landscape.seconds_a_cell == pytest.approx(33 * own / (11 * own + taught))
    assert landscape.seconds_a_pass == pytest.approx(33 * taught / (11 * own + taught))
    alone = next(each for each in landscape.replays if each.combinations == 1 and each.method == "random")
    assert (alone.cells, alone.cost.passes) == (1, 2)
    assert _time(alone, landscape) == duration(33 * (own + taught) / (11 * own + taught))


def test_centers_stand_beside_searches_that_take_as_long(landscape: Landscape) -> None:
    page = page_of(landscape)
    assert "Costs are seconds, the teacher&#x27;s passes among them, in units of the 4.60 s" in page
    random, halving = landscape.matches[:2]
    assert (random.method, halving.method, random.choice) == ("random", "halving", ("r2_cca",))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page.replace("&nbsp;", " "))
    common = ["r2_cca", duration(random.seconds), f"{random.choice_gain:+.2f}"]
    rows = [
        [
            *first,
            each.method,
            "1",
            f"{each.search_gain:+.2f}",
            f"{each.difference:+.2f} ({each.low:+.2f} to {each.high:+.2f})",
        ]
        for first, each in ((common, random), (["", "", ""], halving))
    ]
    [place] = [i for i in range(len(cells)) if cells[i : i + 3] == common]
    assert cells[place : place + 14] == [cell for row in rows for cell in row]
    assert len({each.seconds for each in landscape.matches}) == 2  # and three times one student


def test_a_part_of_the_combinations_says_how_many_there_are() -> None:
    found = survey(
        Group("hints", ArmPlan(), ARMS, {}), cells()[:6], rules=RULES, baseline="kd", look_s=LookSeconds(2.75, {})
    )
    assert found is not None
    page = page_of(found)
    assert "combinations that have come to the end on seed 0" in page
    assert "5 of 10" in page
    assert page.index("5 of 10 combinations of layers have come to the end on seed 0.") < page.index("<table")
    for title in ("What a search would find", "Where choices stand", "What each layer is worth", "mean top-1"):
        assert title not in page
