from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from keyhole.errors import SettingError, UnknownNameError
from keyhole.plans import ArmPlan
from keyhole.studies.conclusion import mixture
from keyhole.studies.landscape import Group, survey
from keyhole.studies.plan import Comparison
from keyhole.studies.verdict import Row, holm, judge, paired


def cell(arm: str, seed: int, top1: float | None, best: float | None = None) -> dict[str, Any]:
    if top1 is None:
        return {"arm": arm, "seed": seed, "diverged": "loss is nan in epoch 1"}
    top = {"last": top1, "best": top1 if best is None else best}
    return {"arm": arm, "seed": seed, "diverged": None, "top1": top, "parameters": 278324, "macs": 40818944}


def grid(**values: list[float | None]) -> list[dict[str, Any]]:
    return [cell(arm, seed, top1) for arm, tops in values.items() for seed, top1 in enumerate(tops)]


def row(arm: str, *values: float, first: int = 0) -> Row:
    return Row(arm, tuple(range(first, first + len(values))), values, values, (), 1, 1)


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_a_paired_difference_is_that_of_scipy(count: int) -> None:
    random = np.random.default_rng(count)
    a, b = 60 + random.normal(size=count), 59.5 + random.normal(size=count)
    found = paired(row("a", *a.tolist()), row("b", *b.tolist()))
    assert found is not None
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(float(np.mean(a - b)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(float(expected.pvalue))


def test_a_difference_worked_by_hand() -> None:
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975; 2) = 4.302653
    found = paired(row("a", 61, 62, 63), row("b", 60, 60, 60))
    assert found is not None
    assert (found.mean, found.seeds) == (2, 3)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)


def test_only_seeds_that_both_finished_are_compared() -> None:
    found = paired(row("a", 1, 2, 3), row("b", 0, 0, 9, first=1))
    assert found is not None
    assert (found.seeds, found.mean) == (2, 2.5)
    assert paired(row("a", 1), row("b", 1, first=5)) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [((61, 62), (60, 61)), ((60.37, 61.22), (60.02, 60.87)), ((61.03, 62.11), (60.68, 61.76))],
)
def test_equal_differences_have_neither_interval_nor_probability(first, second) -> None:  # type: ignore[no-untyped-def]
    """Also where their rounded numbers differ in the last bit."""
    found = paired(row("a", *first), row("b", *second))
    assert found is not None
    assert found.mean == pytest.approx(first[0] - second[0])
    assert (found.low, found.high, found.p) == (None, None, None)
    cells = grid(a=list(first), b=list(second))
    told = judge(cells, ["b", "a"], comparisons=[Comparison("x", ("a",), ("b",))]).sentence
    assert "points on each of 2 seeds, of which nothing can be said" in told


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.03, 0.01, 0.02], [0.04, 0.03, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([None, 0.02, None, 0.01], [None, 0.02, None, 0.02]),
    ],
)
def test_holm_worked_by_hand(given: list[float | None], expected: list[float | None]) -> None:
    found = holm(given)
    assert [p is None for p in found] == [p is None for p in expected]
    assert [p for p in found if p is not None] == pytest.approx([p for p in expected if p is not None])


def test_holm_keeps_the_chance_of_any_false_finding() -> None:
    random = np.random.default_rng(0)
    false = 0
    for _ in range(2000):
        corrected = holm([float(p) for p in random.uniform(size=8)])
        false += any(p is not None and p < 0.05 for p in corrected)
    assert 0.035 < false / 2000 < 0.065  # 5 % within three standard deviations


def test_the_verdict_of_a_study() -> None:
    cells = grid(kd=[60.0, 61.0, 62.0], better=[62.0, 63.1, 63.9], same=[60.5, 60.4, 62.3], wild=[None, 60.0, None])
    found = judge(cells, ["kd", "better", "same", "wild"])
    assert [each.arm for each in found.rows] == ["kd", "better", "same", "wild"]
    assert (found.rows[3].seeds, found.rows[3].diverged) == ((1,), (0, 2))
    assert [(gap.arm, gap.against, gap.seeds) for gap in found.gaps] == [
        ("better", "kd", 3), ("same", "kd", 3), ("wild", "kd", 1)
    ]  # fmt: skip
    assert found.gaps[0].corrected is not None
    assert found.gaps[0].corrected == pytest.approx(2 * (found.gaps[0].p or 0))
    assert found.gaps[2].corrected is None
    assert found.sentence.startswith(
        "better is highest with 63.00 % over 3 seeds. Of 3 arms compared with kd, 1 better "
    )
    assert "; of the other 2 it cannot tell." in found.sentence
    low, high = found.gaps[0].low, found.gaps[0].high
    assert low is not None
    assert high is not None
    half = (high - low) / 2 * stats.t.ppf(1 - 0.05 / 2 / 3, 2) / stats.t.ppf(0.975, 2)
    told = f"better minus kd: +2.00 points (95 % interval for the best of 3 {2 - half:+.2f} to {2 + half:+.2f})."
    assert told in found.sentence
    assert judge(cells, ["kd", "better", "same", "wild"], baseline="same").gaps[0].against == "same"


def test_the_highest_is_that_of_the_seeds_that_all_arms_share() -> None:
    """The seed that only one of them finished has a level of its own."""
    tops: dict[str, list[float | None]] = {"kd": [60.0, 61.0, 65.0], "early": [62.0, 63.0], "late": [61.0, 62.0, 69.0]}
    assert "late is highest" in judge(grid(kd=tops["kd"], late=tops["late"]), ["kd", "late"]).sentence
    for held_out in (False, True):
        cells = [
            {**each, "held_out_top1": {"last": each["top1"]["last"] + 3}} if held_out else each for each in grid(**tops)
        ]
        found = judge([*cells, None], list(tops))
        where = "highest on the held-out images, and reaches" if held_out else "highest with"
        assert found.sentence.startswith(f"early is {where} 62.50 % over the 2 seeds that the arms share. ")
        assert "early minus kd: +2.00 points on each of 2 seeds, of which" in found.sentence  # the same: no interval
        assert found.rows[2].last == (61.0, 62.0, 69.0)  # rows show all that an arm has
    apart = judge([*grid(a=[60.0]), cell("b", 1, 61.0), None], ["a", "b"]).sentence
    assert apart.startswith("No seed has come to the end with all 2 arms, so none is called the highest.")


@pytest.mark.parametrize(
    ("tops", "told"),
    [
        ([70.0, None, 71.0], "1 cell diverged, and no arm that did is called the highest (wild, seed 1: {0})."),
        ([None, None, None], "3 cells diverged (wild, seed 0: {0}; wild, seed 1: {0}; wild, seed 2: {0})."),
        ([59.0, 60.0, 60.5], None),
    ],
)
def test_it_tells_how_many_cells_diverged_and_ranks_no_arm_that_did(tops: list[float | None], told: str | None) -> None:
    sentence = judge(grid(kd=[60.0, 61.0, 62.0], wild=tops), ["kd", "wild"]).sentence
    assert sentence.startswith("kd is highest with 61.00 % over 3 seeds. ")
    assert ("diverged" in sentence) is (told is not None)
    why = "loss is nan in epoch 1"
    assert told is None or sentence.endswith(f" {told.format(why)}")
    all_did = judge(grid(kd=[60.0, None, 62.0], wild=[None, 63.0, 64.0]), ["kd", "wild"]).sentence
    assert all_did.startswith("wild is highest with 64.00 % over the 1 seed that the arms share. ")
    assert all_did.endswith(f" 2 cells diverged (kd, seed 1: {why}; wild, seed 0: {why}).")


def test_what_is_sure_alone_is_not_sure_among_several() -> None:
    cells = grid(kd=[60.0, 60.0, 60.0], near=[60.64, 61.0, 61.36], other=[60.0, 61.0, 59.5])
    asked = [Comparison("asked", ("near",), ("kd",)), Comparison("beside", ("other",), ("kd",))]
    found = judge(cells, ["kd", "near", "other"], comparisons=asked)
    for gap in (found.gaps[0], found.comparisons[0]):
        assert gap.p is not None
        assert gap.corrected is not None
        assert gap.p < 0.05 <= gap.corrected
    assert "This study cannot tell any of 2 arms from kd beyond chance" in found.sentence
    assert "better" not in found.sentence
    assert "asked: +1.00 points (95 % interval +0.11 to +1.89), which cannot be told from chance." in found.sentence
    alone = judge(cells, ["kd", "near"], comparisons=asked[:1]).sentence
    assert "The one arm beside kd is better beyond chance" in alone
    assert "asked: +1.00 points (95 % interval +0.11 to +1.89), beyond chance." in alone


FACING_KD: dict[str, list[float | None]] = {
    "kd": [60.0, 61.0, 62.0], "strong": [61.9, 63.0, 64.1], "stronger": [62.9, 64.0, 65.1],
    "weak": [60.5, 60.5, 62.3], "bad": [57.9, 59.0, 60.1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (["strong"], "The one arm beside kd is better beyond chance (Holm-corrected p below 0.05)."),
        (["bad"], "The one arm beside kd is worse beyond chance (Holm-corrected p below 0.05)."),
        (["weak"], "This study cannot tell the one arm from kd beyond chance (Holm-corrected p below 0.05)."),
        (
            ["strong", "weak", "bad"],
            "Of 3 arms compared with kd, 1 better and 1 worse beyond chance (Holm-corrected p below 0.05); "
            "of the other 1 it cannot tell.",
        ),
        (["strong", "stronger", "bad"], "Of 3 arms compared with kd, 2 better and 1 worse beyond chance"),
    ],
)
def test_it_tells_how_many_arms_are_better_and_how_many_worse(arms: list[str], words: str) -> None:
    assert words in judge(grid(**FACING_KD), ["kd", *arms]).sentence


@pytest.mark.parametrize("arms", [["strong", "weak", "bad"], ["strong", "weak", "bad", "stronger"]])
def test_an_answer_tells_whether_it_is_beyond_chance(arms: list[str]) -> None:
    asked = [Comparison(f"is {arm} better", (arm,), ("kd",)) for arm in arms]
    told = judge(grid(**FACING_KD), list(FACING_KD), comparisons=asked).sentence
    assert "is strong better: +2.00 points (95 % interval +1.75 to +2.25), beyond chance." in told
    assert "is bad better: -2.00 points (95 % interval -2.25 to -1.75), beyond chance." in told
    unsure = "is weak better: +0.10 points (95 % interval -1.21 to +1.41), which cannot be told from chance."
    assert (unsure in told) is (len(arms) == 3)  # of more, those that are sure
    many = "Of 4 comparisons that were asked for, 1 cannot be told from chance."
    assert (many in told) is (len(arms) == 4)


def test_a_verdict_that_cannot_be_sure_says_so() -> None:
    one = judge(grid(kd=[60.0], hints=[61.0]), ["kd", "hints"])
    assert "With one seed nothing can be said about chance" in one.sentence
    assert one.gaps[0].low is None
    some = judge([*grid(kd=[60.0, 61.0], hints=[61.0, 60.5]), None, None], ["kd", "hints"])
    assert "This study cannot tell the one arm from kd beyond chance" in some.sentence
    assert "With 2 seeds hardly any difference could be told." in some.sentence
    three = judge(grid(kd=[60.0, 61.0, 60.2], hints=[61.0, 60.5, 60.3]), ["kd", "hints"]).sentence
    assert "This study cannot tell the one arm from kd" in three
    assert "With 2 seeds" not in three
    assert "2 cells are still open" in some.sentence
    assert judge([None], ["kd"]).sentence == "Nothing has come to the end yet."
    assert judge(grid(kd=[None]), ["kd"]).rows[0].parameters is None


def test_a_comparison_compares_means_of_arms_seed_by_seed() -> None:
    tops: dict[str, list[float | None]] = {
        "kd": [60.0, 60.0, 60.0], "centers a": [61.0, 62.0, 63.5], "centers b": [62.0, 62.0, None],
        "ends": [60.5, 61.0, 60.0], "random": [60.5, 60.0, 62.0],
    }  # fmt: skip
    asked = [
        Comparison("centers against guesses", ("centers *",), ("ends", "random")),
        Comparison("a against ends", ("centers a",), ("ends",)),
    ]
    found = judge(grid(**tops), list(tops), comparisons=asked)
    first, second = found.comparisons
    # seed 2 is left out: there is no centers b; 61.5 - 60.5 and 62 - 60.5
    assert (first.arm, first.against, first.seeds) == ("centers against guesses", "ends and random", 2)
    assert first.mean == pytest.approx((1.0 + 1.5) / 2)
    assert second.mean == pytest.approx((0.5 + 1.0 + 3.5) / 3)
    assert [each.corrected for each in found.comparisons] == pytest.approx(holm([first.p, second.p]))
    assert "centers against guesses: +1.25 points (95 % interval" in found.sentence
    assert [gap.corrected for gap in found.gaps] == [gap.corrected for gap in judge(grid(**tops), list(tops)).gaps]
    many = [Comparison(f"{k}", ("centers a",), ("ends",)) for k in range(4)]
    assert (
        "Of 4 comparisons that were asked for, 4 cannot be told"
        in judge(grid(**tops), [*tops], comparisons=many).sentence
    )
    cells = grid(kd=[60.0], ends=[None])
    none = judge(cells, ["kd", "ends"], comparisons=[Comparison("x", ("kd",), ("ends",))])
    assert (none.comparisons, none.unanswered) == ((), ("x",))
    assert "No seed has come to the end with all arms of: x." in none.sentence
    one = judge(grid(kd=[60.0], ends=[61.0]), ["kd", "ends"], comparisons=[Comparison("x", ("ends",), ("kd",))])
    assert "x: +1.00 points on one seed, of which nothing can be said." in one.sentence


def test_the_best_arm_is_chosen_on_held_out_images_where_there_are_any() -> None:
    cells = grid(kd=[60.0, 61.0], hints=[59.0, 60.0])
    held = {"kd": 50.0, "hints": 51.0}
    cells = [{**each, "held_out_top1": {"last": held[each["arm"]] + each["seed"], "best": 99.0}} for each in cells]
    found = judge(cells, ["kd", "hints"])
    assert found.rows[1].held_out == (51.0, 52.0)
    assert "hints is highest on the held-out images, and reaches 59.50 % over 2 seeds" in found.sentence
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["held_out_last"] for line in lines] == ["50.0", "51.0", "51.0", "52.0"]
    cells[0]["held_out_top1"] = None
    assert "kd is highest with 60.50 %" in judge(cells, ["kd", "hints"]).sentence


def test_the_tables_for_programs() -> None:
    found = judge(grid(kd=[60.0, 61.0], **{"a, b": [62.0, None]}), ["kd", "a, b"])
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(line["arm"], line["seed"], line["top1_last"], line["diverged"]) for line in lines] == [
        ("kd", "0", "60.0", "0"), ("kd", "1", "61.0", "0"), ("a, b", "0", "62.0", "0"), ("a, b", "1", "", "1")
    ]  # fmt: skip
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value["rows"][1]["diverged"] == [1]
    assert value["gaps"][0]["mean"] == 2.0


def test_what_is_said_of_combinations_is_said_by_their_landscape() -> None:
    arms = {(name,): f"x {name}" for name in "abc"}
    cells = grid(kd=[60.0, 61.0], **{arm: [60.0 + i, 61.2 + i] for i, arm in enumerate(arms.values())})
    seen = survey(Group("x", ArmPlan(), arms, {}), cells)
    assert seen is not None
    found = judge([*cells, None], ["kd", *arms.values()], landscapes=[seen])
    assert found.sentence == f"{seen.sentence} 1 cells are still open."
    assert "highest" not in found.sentence  # of several combinations one is always the highest
    assert len(found.gaps) == 3
    first = next(iter(arms.values()))
    own_base = judge(cells, [*arms.values(), "kd"], landscapes=[seen])
    assert (own_base.baseline, [gap.arm for gap in own_base.gaps]) == (first, [*list(arms.values())[1:], "kd"])
    more = judge([*cells, *grid(all=[63.0, 64.0])], ["kd", "all", *arms.values()], landscapes=[seen])
    assert more.sentence.startswith(
        f"{seen.sentence} Beside the combinations all is highest with 63.50 % over 2 seeds."
    )
    own = {gap.arm: gap for gap in more.gaps}
    assert own["all"].corrected == own["all"].p  # it is not one of the combinations
    tried = [own[arm] for arm in arms.values()]
    assert [gap.corrected for gap in tried] == holm([gap.p for gap in tried])
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["landscapes"][0]["name"] == "x"


def made(seed: int, **environment: str | None) -> dict[str, Any]:
    usual = {"source_sha256": 64 * "a", "torch": "2.14.1", "gpu": None, "processor": "AMD EPYC"}
    return {"seed": seed, "precision": "bf16", "environment": usual | environment}


def named(twins: dict[str, str], **values: list[float | None]) -> list[dict[str, Any]]:
    """Return cells with their losses, and those of twins, which are the very same."""
    cells = [each | {"history": [{"loss": 1 / (3 + i)}]} for i, each in enumerate(grid(**values))]
    return cells + [each | {"arm": twin} for twin, arm in twins.items() for each in cells if each["arm"] == arm]


TOPS: dict[str, list[float | None]] = {
    "kd": [60, 61, 62], "a": [61, 62.1, 63.2], "b": [60.2, 60.9, 62.4], "c": [61.5, 61.2, 62.9]
}  # fmt: skip


@pytest.mark.parametrize("order", [1, -1], ids=["twins last", "twins first"])
@pytest.mark.parametrize("baseline", ["kd", "kd too"])
def test_one_student_under_several_names_is_compared_once(order: int, baseline: str) -> None:
    twins = {"a too": "a", "kd too": "kd", "a again": "a"}
    plain = judge(named({}, **TOPS), list(TOPS), baseline="kd")
    found = judge(named(twins, **TOPS), [*TOPS, *twins][::order], baseline=baseline)
    gaps = {gap.arm: gap for gap in found.gaps}
    for gap in plain.gaps:  # corrected for three, not for six
        assert gaps[gap.arm] == replace(gap, against=baseline)
    assert gaps["a too"] == replace(gaps["a"], arm="a too")
    assert gaps["a again"] == replace(gaps["a"], arm="a again")
    other = {"kd", "kd too"} - {baseline}
    assert [(gap.mean, gap.p, gap.corrected) for gap in found.gaps if gap.arm in other] == [(0, None, None)]
    told = [text.replace("kd too", "kd").replace("a again", "a") for text in found.findings]
    assert told == list(plain.findings)
    assert {row.arm: row.same_as for row in found.rows}[["a again", "a"][order < 0]] == ["a", "a again"][order < 0]


def test_an_arm_on_both_sides_of_a_comparison_is_told() -> None:
    cells = grid(kd=[60.0, 61.0], h=[61.0, 63.0], g=[62.0, 62.5])
    asked = [Comparison("all", ("*",), ("kd",)), Comparison("apart", ("h", "g"), ("kd",))]
    found = judge(cells, ["kd", "h", "g"], comparisons=asked)
    told = [text for text in found.findings if "both sides" in text]
    assert told == ["all: kd is on both sides, which pulls the difference towards zero."]
    both = [Comparison("more", ("kd", "h"), ("kd", "h", "g"))]
    assert "more: kd, h are on both sides" in judge(cells, ["kd", "h", "g"], comparisons=both).sentence


def test_why_cells_diverged_is_told_of_the_first_three() -> None:
    found = judge(grid(kd=[60.0, 61.0], wild=[None, 63.0]), ["kd", "wild"])
    told = "1 cell diverged, and no arm that did is called the highest (wild, seed 0: loss is nan in epoch 1)."
    assert told in found.findings
    many = judge(grid(kd=[60.0, 61.0], a=[None, None], b=[None, None]), ["kd", "a", "b"])
    reason = "loss is nan in epoch 1"
    assert f"4 cells diverged (a, seed 0: {reason}; a, seed 1: {reason}; b, seed 0: {reason}; ...)." in many.findings


def test_arms_that_learnt_next_to_nothing_are_told() -> None:
    cells = grid(kd=[60.0, 61.0], dead=[1.0, 1.4], b=[1.1, 1.2])
    found = judge(cells, ["kd", "dead", "b"], classes=100)
    told = "2 arms are hardly better than chance (1.0 %) and learnt next to nothing, so differences of them say little"
    assert f"{told}: dead, b." in found.findings
    assert "better than chance" not in judge(cells, ["kd", "dead", "b"]).sentence
    assert "1 arm is hardly better than chance (50.0 %)" in judge(grid(kd=[54.0]), ["kd"], classes=2).sentence
    for top1, classes in ((2.0, 100), (16.0, 10), (56.0, 2)):
        assert "better than chance" not in judge(grid(kd=[top1]), ["kd"], classes=classes).sentence


def test_a_baseline_that_diverged_is_told() -> None:
    found = judge(grid(kd=[60.0, 61.0], base=[None, None]), ["kd", "base"], baseline="base")
    assert found.gaps == ()
    told = "The baseline base diverged with every seed that has ended, so no arm is compared with it."
    assert told in found.findings
    whole = judge(grid(kd=[60.0, None], base=[None, 61.0]), ["kd", "base"], baseline="base")
    assert told not in whole.findings


def test_that_all_diverged_is_not_told_while_cells_are_open() -> None:
    cells = grid(kd=[None, None], h=[None, None])
    assert judge(cells, ["kd", "h"]).sentence.startswith("No student came to the end. 4 cells diverged (kd, seed 0: ")
    assert judge([*cells[:3], None], ["kd", "h"]).sentence.startswith("Nothing has come to the end yet.")


def test_a_difference_that_is_the_same_on_every_seed_is_told() -> None:
    found = judge(grid(kd=[60.0, 61.0, 62.0], h=[65.0, 66.0, 67.0]), ["kd", "h"])
    assert "h minus kd: +5.00 points on each of 3 seeds, of which nothing can be said." in found.findings


def test_comparisons_of_the_same_students_count_once() -> None:
    asked = [
        Comparison("one", ("a",), ("kd",)),
        Comparison("two", ("a too",), ("kd",)),
        Comparison("b", ("b",), ("kd",)),
    ]
    once = judge(named({}, **TOPS), list(TOPS), comparisons=[asked[0], asked[2]]).comparisons
    both = judge(named({"a too": "a"}, **TOPS), [*TOPS, "a too"], comparisons=asked).comparisons
    assert [gap.corrected for gap in both] == [once[0].corrected, once[0].corrected, once[1].corrected]
    # two names on a side weigh as two
    mixed = [Comparison("m", ("a", "a too", "b"), ("kd",)), Comparison("n", ("a", "b"), ("kd",))]
    found = judge(named({"a too": "a"}, **TOPS), [*TOPS, "a too"], comparisons=mixed).comparisons
    assert found[0].mean > found[1].mean


def test_equal_accuracies_alone_make_no_twins() -> None:
    cells = named({}, kd=[60, 61], a=[61, 62.1], b=[61, 62.1])
    assert [row.same_as for row in judge(cells, ["kd", "a", "b"]).rows] == [None] * 3
    del cells[-1]["history"]
    cells[-2]["history"] = cells[-4]["history"]
    assert [row.same_as for row in judge(cells, ["kd", "a", "b"]).rows] == [None] * 3
    fewer = named({"b": "a"}, kd=[60, 61], a=[61, 62.1])[:-1]  # nor part of the seeds
    assert [row.same_as for row in judge(fewer, ["kd", "a", "b"]).rows] == [None] * 3


def test_in_what_the_cells_of_a_study_differ() -> None:
    assert mixture([None, made(0), made(1), {**made(0), "diverged": "loss is nan"}]) == []
    assert mixture([made(0), made(0), made(1, source_sha256=64 * "b"), None]) == [
        {"what": "source", "cells": {"aaaaaaaa": 2, "bbbbbbbb": 1}, "seeds": []}
    ]
    found = mixture([made(0), made(1, gpu="H200"), made(1, torch="2.15.0"), {"seed": 2, "precision": "fp32"}])
    assert [(each["what"], each["cells"], each["seeds"]) for each in found] == [
        ("source", {"aaaaaaaa": 3, "not told": 1}, []),
        ("version of torch", {"2.14.1": 2, "2.15.0": 1, "not told": 1}, [1]),
        ("precision", {"bf16": 3, "fp32": 1}, []),
        ("hardware", {"AMD EPYC": 2, "H200": 1, "not told": 1}, [1]),
    ]
    without = {"bf16": "products in fp32"}
    assert mixture([made(0), made(1, **without)]) == [
        {"what": "hardware", "cells": {"AMD EPYC": 1, "AMD EPYC, products in fp32": 1}, "seeds": []}
    ]
    assert mixture([{**made(0), "precision": "fp32"}, {**made(1, **without), "precision": "fp32"}]) == []


def test_what_cannot_be_judged() -> None:
    with pytest.raises(UnknownNameError, match="Unknown baseline 'kdd'; nearest known: kd"):
        judge([], ["kd"], baseline="kdd")
    with pytest.raises(SettingError, match="no arm"):
        judge([], [])
