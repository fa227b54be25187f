from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student_t

from keyhole.distillation.config import TrainConfig
from keyhole.plans import ArmPlan
from keyhole.studies.finalists import CENTERS, GUESSES, SEARCHED, Finalist, comparisons_of, finalists
from keyhole.studies.landscape import Group, Landscape, groups_of, survey
from keyhole.studies.plan import Comparison, Study, expand, with_combinations
from keyhole.studies.rules import LookSeconds

LAYERS = ("l1.0", "l1.1", "l2.0", "l2.1", "l3.0", "l3.1")
COMBOS = list(combinations(LAYERS, 3))  # 20
ARMS = {combo: f"x {'+'.join(combo)}" for combo in COMBOS}


def cell(arm: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "seed": seed,
        "diverged": None,
        "top1": {"last": top1, "best": top1},
        "held_out_top1": {"last": top1, "best": top1},
        "history": [],
        "cohort_seconds": 40.0,
        "cohort_students": 20,
        "macs": 10,
        "teacher_macs": 200,
        "hints": [],
        **more,
    }


def world(worth: dict[str, float], noise: float, *, seeds: int = 2, draw: int = 0) -> list[dict[str, Any] | None]:
    """Cells in which a combination is worth the sum of its layers, and seeds and runs add what they like."""
    random = np.random.default_rng(draw)
    found: list[dict[str, Any] | None] = []
    for seed in range(seeds):
        level = 60 + random.normal()
        for combo, arm in ARMS.items():
            true = level + sum(worth.get(layer, 0.0) for layer in combo)
            top1, held_out = (true + noise * float(random.normal()) for _ in "th")
            found.append(cell(arm, seed, top1, held_out_top1={"last": held_out, "best": held_out}))
    return found


GROUP = Group("x", ArmPlan(), ARMS, {})
DEEP = {"l3.1": 1.5, "l1.0": -1.0}
RULES = {
    "kmeans r2_cca": COMBOS[-1],  # l2.1 l3.0 l3.1: among the best
    "segments r2_cca": COMBOS[-1],
    "stage-ends": ("l1.1", "l2.1", "l3.1"),
    "uniform": COMBOS[0],
    "elsewhere": ("l9.9",),
}


def surveyed(cells: list[dict[str, Any] | None], **more: Any) -> Landscape:
    found = survey(GROUP, cells, rules=RULES, **more)
    assert found is not None
    return found


def test_where_layers_matter_it_says_so_and_finds_which() -> None:
    found = surveyed(world(DEEP, 0.2))
    assert (len(found.combinations), found.seeds, found.left_out) == (20, (0, 1), 0)
    assert found.spread is not None
    assert found.spread.share > 0.9
    assert found.seeds_agree is not None
    assert found.seeds_agree > 0.9
    effects = {effect.layer: effect for effect in found.effects}
    assert tuple(effects) == LAYERS  # in the order of depth
    # of additive worths, with and without a layer differ by its own worth less the mean of the others
    assert effects["l3.1"].mean == pytest.approx(1.5 - (-1.0) / 5, abs=0.15)
    assert effects["l3.1"].p is not None
    assert effects["l3.1"].p < 1e-6
    assert effects["l2.0"].low is not None
    assert effects["l2.0"].low < -0.1
    assert found.sentence.startswith(
        "Which layers are taken matters, more than the chance of a single run. Over 20 combinations"
    )
    assert "Trying them all pays" in found.sentence
    ends = next(each for each in found.standings if "stage-ends" in each.names)
    assert f"Of the combinations, stage ends beat {100 * ends.better_than:.0f} %, uniform layers beat" in found.sentence
    standings = {name: each for each in found.standings for name in each.names}
    assert standings["kmeans r2_cca"] is standings["segments r2_cca"]
    assert standings["kmeans r2_cca"].better_than > 0.6
    assert standings["uniform"].gain < 0
    assert "elsewhere" not in standings
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["standings"]


def test_where_layers_matter_less_than_the_seed_it_says_so() -> None:
    found = surveyed(world({"l3.1": 0.5, "l1.0": -0.4}, 0.8, seeds=6))
    assert found.spread is not None
    assert found.spread.p is not None
    assert found.spread.p < 0.05
    assert found.spread.between < found.spread.noise
    assert found.sentence.startswith(
        "Which layers are taken matters, but less than the chance of a single run. Over 20 combinations"
    )


GOOD, POOR, POORER = ("l2.1", "l3.0", "l3.1"), ("l1.0", "l2.0", "l2.1"), ("l1.0", "l1.1", "l2.0")


@pytest.mark.parametrize(
    ("takes", "words"),
    [
        ([GOOD], ["Cluster centers by k-means, the method, are better than {0} % of the other combinations: better"]),
        ([POOR], ["Cluster centers by k-means, the method, are better than {0} % of the other combinations: worse"]),
        (
            [POOR, GOOD, POORER],
            [
                "are better than {0} to {2} % of the other combinations: of 2 different choices 2 are worse",
                "Those of other clusterings are better than {1} % of the other combinations: better",
            ],
        ),
        (
            [GOOD, POOR, POORER],
            ["{2} to {0} % of the other combinations: of 2 different choices 1 is better and 1 is worse"],
        ),
    ],
)
def test_it_tells_whether_centers_are_better_or_worse(takes: list[tuple[str, ...]], words: list[str]) -> None:
    rules = dict(zip(("kmeans r2_cca", "segments r2_cca", "kmeans linear_cka"), takes, strict=False))
    found = survey(GROUP, world(DEEP, 0.1), rules=rules)
    assert found is not None
    places = {each.layers: f"{100 * each.better_than:.0f}" for each in found.standings}
    for text in words:
        told = f"{text.format(*(places[layers] for layers in takes))} than the average combination beyond chance."
        assert sum(told in each for each in found.findings) == 1


def test_where_layers_do_not_matter_it_does_not_claim_it() -> None:
    claims = pays = 0
    for draw in range(60):
        found = surveyed(world({}, 0.5, draw=draw))
        claims += not found.sentence.startswith("Which layers are taken cannot be told to matter; if it does, then by")
        if "cannot be told to matter" in found.sentence:
            assert "Trying them all is not shown to pay" in found.sentence
        pays += "Trying them all pays" in found.sentence or "than the average combination beyond" in found.sentence
    assert claims <= 8  # 5 % of 60 are 3
    assert pays <= 9


def test_where_nothing_differs_nothing_matters() -> None:
    found = surveyed(world({}, 0.0))
    assert found.sentence.startswith("Which layers are taken cannot be told to matter")


def test_what_a_search_finds_is_judged_on_the_seed_that_it_has_not_seen() -> None:
    flattered, fair = [], []
    for draw in range(40):
        found = surveyed(world({}, 0.5, draw=draw)).winner
        assert found is not None
        flattered.append(found.highest - 60)
        fair.append(found.gain)
    assert abs(float(np.mean(fair))) < 0.2  # nothing to find, and nothing found
    assert float(np.mean(flattered)) > 0.4  # the highest of 20 always looks like something
    tops = {("a",): (60.0, 61.0), ("b",): (62.0, 60.0), ("c",): (61.0, 62.5)}
    held = {("a",): (10.0, 30.0), ("b",): (20.0, 10.0), ("c",): (15.0, 20.0)}
    cells: list[Any] = [
        cell(combo[0], seed, tops[combo][seed], held_out_top1={"last": held[combo][seed]})
        for combo in tops for seed in (0, 1)
    ]  # fmt: skip
    winner = surveyed_of(tops, cells).winner
    assert winner is not None
    # without seed 0 the held-out values of seed 1 choose a, without seed 1 those of seed 0 choose b
    assert winner.chosen == (("a",), ("b",))
    assert winner.fair == pytest.approx((60.0 + 60.0) / 2)
    assert (winner.layers, winner.top1) == (("a",), 60.5)  # means 20, 15, 17.5
    assert winner.highest == 61.75


def surveyed_of(tops: dict[tuple[str, ...], Any], cells: list[Any], **more: Any) -> Landscape:
    found = survey(Group("x", ArmPlan(), {combo: combo[0] for combo in tops}, {}), cells, **more)
    assert found is not None
    return found


def test_a_standing_worked_by_hand() -> None:
    tops = {("a",): (60.0, 61.0), ("b",): (62.0, 63.0), ("c",): (64.0, 65.5), ("d",): (62.0, 63.0)}
    cells: list[Any] = [cell(combo[0], seed, tops[combo][seed]) for combo in tops for seed in (0, 1)]
    (standing,) = surveyed_of(tops, cells, rules={"uniform": ("b",)}).standings
    assert standing.top1 == 62.5
    assert standing.gain == pytest.approx(62.5 - (60.5 + 62.5 + 64.75 + 62.5) / 4)
    assert standing.rank == 2
    assert standing.better_than == pytest.approx((1 + 0.5) / 3)  # a is worse, d is equal
    assert standing.low is not None
    assert standing.high is not None
    assert standing.low < standing.gain < standing.high
    assert standing.better_low is not None
    assert standing.better_high is not None
    assert 0 <= standing.better_low <= standing.better_high <= 1


def test_held_out_images_tell_as_much_of_test_images_as_their_ranks_agree() -> None:
    tops = {("a",): (60.0, 61.0), ("b",): (62.0, 63.0), ("c",): (64.0, 65.0), ("d",): (66.0, 67.0)}
    held = {("a",): 30.0, ("b",): 10.0, ("c",): 20.0, ("d",): 40.0}
    cells: list[Any] = [
        cell(combo[0], seed, tops[combo][seed], held_out_top1={"last": held[combo] + seed})
        for combo in tops for seed in (0, 1)
    ]  # fmt: skip
    # ranks differ by 2, 1, 1 and 0: 1 - 6 * 6 / (4 * 15)
    assert surveyed_of(tops, cells).held_out_tells == pytest.approx(0.4)
    # those of one seed tell of the tests of the other, not of their own
    for each in cells:
        each["top1"] = {"last": -each["top1"]["last"] if each["seed"] else each["top1"]["last"]}
    held_by = {("a", 0): 1.0, ("b", 0): 2.0, ("c", 0): 3.0, ("d", 0): 4.0, ("a", 1): 4.0, ("b", 1): 3.0, ("c", 1): 2.0,
               ("d", 1): 1.0}  # fmt: skip
    for each in cells:
        each["held_out_top1"] = {"last": held_by[each["arm"], each["seed"]]}
    assert surveyed_of(tops, cells).held_out_tells == pytest.approx(-1)
    assert surveyed_of(tops, [each for each in cells if each["seed"] == 0]).held_out_tells == pytest.approx(1)


def test_the_mean_of_all_has_the_noise_of_the_whole_table() -> None:
    cells: list[Any] = world(DEEP, 0.3)
    found = survey(GROUP, [*cells, cell("kd", 0, 50.0), cell("kd", 1, 50.5)], baseline="kd")
    assert found is not None
    assert found.spread is not None
    gap = found.over_baseline
    assert gap is not None
    assert gap.low is not None
    half = student_t.ppf(0.975, 19) * found.spread.noise * np.sqrt((1 + 1 / 20) / 2)
    assert (gap.mean - gap.low, gap.high - gap.mean) == pytest.approx((half, half))
    assert gap.p == pytest.approx(2 * student_t.sf(abs(gap.mean) / half * student_t.ppf(0.975, 19), 19))


def test_a_place_is_certain_where_runs_hardly_vary() -> None:
    found = surveyed(world({layer: 2.0**k for k, layer in enumerate(LAYERS)}, 0.01))
    for each in found.standings:
        assert (each.better_low, each.better_high) == (each.better_than, each.better_than)
        assert each.better_than == pytest.approx((20 - each.rank) / 19)


def test_an_arm_beside_the_combinations_stands_where_it_would_come_in() -> None:
    group = replace(GROUP, rivals={"all of them": "all", "centers": "auto", "open": "auto", "heavy": "auto"})
    pairs = [{"teacher": name} for name in COMBOS[3]]
    cells: list[Any] = world(DEEP, 0.1)
    for each in cells:
        if each["arm"] == ARMS[COMBOS[3]]:
            each["hints"] = pairs
    cells += [cell("all of them", seed, 70.0, hints=[{"teacher": name} for name in LAYERS]) for seed in (0, 1)]
    cells += [cell("centers", 0, 1.0, hints=pairs), None]
    cells += [cell("heavy", 0, 1.0, hints=[{**pair, "weight": 3.0} for pair in pairs])]
    found = survey(group, cells, rules={"uniform": COMBOS[3]})
    assert found is not None
    standings = {each.names: each for each in found.standings}
    assert standings[("all of them",)].rank == 1
    assert standings[("all of them",)].better_than == 1
    assert standings[("all of them",)].gain == pytest.approx(70 - found.mean)
    assert standings[("all of them",)].better_low == 1
    assert ("uniform", "centers") in standings  # one combination, and its own cells tell
    assert standings[("heavy",)].layers == ()  # the same hints, but they weigh otherwise
    assert "all layers beat 100 %" in found.sentence


def test_names_of_arms_are_not_taken_for_rules() -> None:
    names = ("kmeans last", "random, seed 9", "my last-only", "kmeans r2_cca", "uniform")
    group = replace(GROUP, rivals=dict.fromkeys(names, "auto"))
    cells: list[Any] = world(DEEP, 0.1)
    cells += [cell(name, 0, 60.0 + k, hints=[{"teacher": LAYERS[0]}]) for k, name in enumerate(names)]
    found = survey(group, cells, rules={"segments linear_cka": COMBOS[3], "random, seed 0": COMBOS[4]})
    plain = survey(GROUP, cells, rules={"segments linear_cka": COMBOS[3], "random, seed 0": COMBOS[4]})
    assert found is not None
    assert plain is not None
    assert {each.names for each in found.standings if not each.rules} == {(name,) for name in names}
    for word in ("k-means", "uniform layers", "the last alone", "draws of the random rule"):
        assert word not in found.sentence
    assert [each.name for each in finalists(found)] == [each.name for each in finalists(plain)]


def test_the_luck_of_random_draws_is_told() -> None:
    rules = {f"random, seed {k}": COMBOS[k] for k in (3, 9)}
    found = survey(GROUP, world(DEEP, 0.1), rules=rules)
    assert found is not None
    gains = sorted(each.gain for each in found.standings)
    assert f"The 2 draws of the random rule lie {gains[0]:+.2f} to {gains[1]:+.2f} points" in found.sentence
    assert f"{sum(gains) / 2:+.2f} in the mean" in found.sentence
    one = survey(GROUP, world(DEEP, 0.1), rules={"random, seed 0": COMBOS[3]})
    assert one is not None
    assert "draws of the random rule" not in one.sentence


def test_intervals_of_places_hold_the_true_place() -> None:
    held = total = 0
    worth = {"l3.1": 0.5, "l1.0": -0.4, "l2.1": 0.3}
    true = {combo: sum(worth.get(layer, 0.0) for layer in combo) for combo in COMBOS}
    for draw in range(60):
        for each in surveyed(world(worth, 0.4, draw=draw)).standings:
            others = [true[combo] for combo in COMBOS if combo != each.layers]
            low = np.mean([value < true[each.layers] - 1e-9 for value in others])
            high = np.mean([value < true[each.layers] + 1e-9 for value in others])
            assert each.better_low is not None
            assert each.better_high is not None
            held += each.better_low <= high and low <= each.better_high
            total += 1
    assert held / total > 0.9


def test_an_unfinished_study_tells_the_largest_whole_part() -> None:
    cells = world(DEEP, 0.1, seeds=3)
    cells[5]["diverged"] = "loss is nan"  # type: ignore[index]
    cells[45:] = [None] * 15  # most of seed 2
    found = surveyed(cells)
    assert found.seeds == (0, 1)
    assert (len(found.combinations), found.left_out) == (19, 1)
    longer = world(DEEP, 0.1, seeds=3)
    longer[20:] = [None if i % 4 == 0 else each for i, each in enumerate(longer[20:])]  # more cells, with holes
    assert len(surveyed(longer).combinations) == 20
    one = surveyed(world(DEEP, 0.1)[:20])
    assert (one.seeds, one.spread) == ((0,), None)
    assert all(each.low is None and each.better_low is None for each in one.standings)
    assert one.winner is not None
    assert one.winner.low is None
    assert "It takes a second seed" in one.sentence
    assert survey(GROUP, [None] * 40) is None
    assert survey(GROUP, world(DEEP, 0.1)[:1]) is None


def test_a_part_of_the_combinations_tells_no_more_than_that_it_is_there() -> None:
    """Cells come in the order of layers: of the first twelve, ten have the first layer and one of the others each."""
    cells = world(DEEP, 0.1)
    part: list[Any] = [
        {**each, "history": [{"held_out_top1": 0.5}]} if each and i % 20 < 12 else None for i, each in enumerate(cells)
    ]
    found = surveyed([*part, cell("kd", 0, 50.0), cell("kd", 1, 50.0)], baseline="kd", look_s=LookSeconds(9.0, {}))
    assert (found.whole, len(found.combinations), found.left_out, found.seeds) == (False, 12, 8, (0, 1))
    assert (found.effects, found.standings, found.replays, found.matches) == ((), (), (), ())
    assert (found.mean, found.spread, found.winner, found.over_baseline) == (None, None, None, None)
    assert (found.seeds_agree, found.held_out_tells, found.early_tells) == (None, None, {})
    assert found.sentence.startswith(
        "12 of 20 combinations of layers have come to the end on seeds 0 and 1. What layers"
    )
    part[:20] = cells[:20]
    part[3] = {**cell("x", 0, 0.0), "arm": ARMS[COMBOS[3]], "diverged": "loss is nan"}
    found = surveyed(part)
    assert (found.whole, len(found.combinations), found.left_out, found.seeds) == (True, 19, 1, (0,))
    assert [each.layer for each in found.effects] == list(LAYERS)


def test_the_mean_of_all_is_compared_with_the_baseline() -> None:
    cells: list[Any] = world({}, 0.1)
    found = survey(GROUP, [*cells, cell("kd", 0, 50.0), cell("kd", 1, 50.5)], baseline="kd")
    assert found is not None
    assert found.over_baseline is not None
    assert found.over_baseline.mean == pytest.approx(found.mean - 50.25)
    assert survey(GROUP, cells, baseline="kd").over_baseline is None  # type: ignore[union-attr]


def test_without_held_out_images_nothing_is_searched() -> None:
    cells: list[Any] = [{**each, "held_out_top1": None, "history": [{}]} for each in world(DEEP, 0.1) if each]
    found = surveyed(cells)
    assert (found.winner, found.held_out_tells, found.early_tells, found.replays) == (None, None, {}, ())
    assert "Trying" not in found.sentence
    assert "Held-out" not in found.sentence


def test_searches_are_replayed_over_what_was_logged() -> None:
    cells: list[Any] = [
        {**each, "history": [{"held_out_top1": each["top1"]["last"] * part} for part in (0.5, 1.0)]}
        for each in world(DEEP, 0.1) if each
    ]  # fmt: skip
    found = surveyed(cells, students_per_pass=7)
    whole = next(each for each in found.replays if each.method == "random" and each.combinations == 20)
    assert whole.cost.passes == 2 * 3
    assert whole.gain > 1
    # nine epochs: what is seen after the first ranks them the other way round, after the third as the end does
    parts = [-1.0, 0.0, 1.0] + [0.5] * 5 + [1.0]
    long: list[Any] = [
        {**each, "history": [{"held_out_top1": each["held_out_top1"]["last"] * part} for part in parts]}
        for each in cells
    ]
    early = surveyed(long, students_per_pass=7)
    assert list(early.early_tells) == [1, 3]
    assert early.held_out_tells is not None
    assert early.early_tells[3] == pytest.approx(early.held_out_tells)
    assert early.early_tells[1] == pytest.approx(-early.held_out_tells)
    assert early.held_out_tells > 0.9
    told = f"{-early.held_out_tells:.2f} after epoch 1 and {early.held_out_tells:.2f} after epoch 3)"
    assert told in early.sentence
    assert {each.method: each.looks for each in early.replays} == {
        "random": (9,), "halving": (1, 3, 9), "halving from epoch 3": (3, 9)
    }  # fmt: skip
    looks = LookSeconds(50.0, {"r2_cca": 2.0, "svcca": 3.0})
    rules = RULES | {"kmeans svcca": COMBOS[-1], "kmeans pwcca": COMBOS[7], "kmeans svcca, last": COMBOS[4]}
    timed = survey(GROUP, cells, rules=rules, students_per_pass=7, look_s=looks)
    assert timed is not None
    assert timed.seconds_a_cell is not None
    assert timed.seconds_a_pass is not None
    assert (timed.look_s, timed.centers_s) == (50.0, {"r2_cca": 2.0, "svcca": 3.0})
    alone = timed.seconds_a_cell + timed.seconds_a_pass
    first = {each.choice: each for each in reversed(timed.matches)}  # the slower counts, and all where it is not known
    assert {names: each.seconds for names, each in first.items()} == {
        ("r2_cca", "svcca"): pytest.approx(3 + alone), ("pwcca",): pytest.approx(50 + alone)
    }  # fmt: skip
    standing = next(each for each in timed.standings if "kmeans pwcca" in each.names)
    assert first[("pwcca",)].choice_gain == pytest.approx(standing.gain)
    assert surveyed(cells, students_per_pass=7).matches == ()  # no look was timed
    cells[3]["history"] = []  # one of them is not known
    assert surveyed(cells, look_s=looks).replays == ()


def test_the_time_of_a_cohort_is_parted_between_teacher_and_students() -> None:
    """Forty seconds for 200 operations of the teacher and 3 times 10 of each of 20 students, which go back as well.

    A teacher makes 84 of them where a student makes 52.
    """
    cells: list[Any] = world({}, 0.1)
    found = surveyed(cells)
    own, taught = 30 / 0.52, 200 / 0.84
    assert found.seconds_a_cell == pytest.approx(40 * own / (taught + 20 * own))
    assert found.seconds_a_pass == pytest.approx(40 * taught / (taught + 20 * own))
    beside_others = surveyed([{**each, "cohort_students": 40} for each in cells])  # some of them are no combinations
    assert beside_others.seconds_a_cell == pytest.approx(40 * own / (taught + 40 * own))
    unknown = surveyed([{k: v for k, v in each.items() if k != "cohort_students"} for each in cells])
    assert (unknown.seconds_a_cell, unknown.seconds_a_pass) == (None, None)


def study(*tables: dict[str, Any]) -> Study:
    arms = tuple(plan for table in tables for plan in expand(table))
    read = Study("resnet14", None, "digits", None, TrainConfig(epochs=1), (0, 1), 40, 2, arms)
    return with_combinations(read, lambda glob: ["a", "b", "c"] if glob is None else ["b", "c"])


def test_groups_are_arms_of_one_loss_and_their_rivals() -> None:
    whole = study(
        {"name": "kd", "terms": "ce,kd"},
        {"name": "x", "terms": "ce,hint", "hints": "combinations", "count": 2},
        {"name": "y", "terms": "ce,at", "hints": "combinations", "count": 1, "layers": "l*"},
        {"name": "hint {hints}", "terms": "ce,hint", "hints": ["all", "uniform"], "count": 2},
        {"name": "at all", "terms": "ce,at", "hints": "all"},
        {"name": "other", "terms": "ce,at", "hints": "all", "student": "resnet8"},
    )
    first, second = groups_of(whole)
    assert (first.name, second.name) == ("x", "y")
    assert first.arms == {("a", "b"): "x a+b", ("a", "c"): "x a+c", ("b", "c"): "x b+c"}
    assert first.rivals == {"hint all": "all", "hint uniform": "uniform"}
    assert second.rivals == {"at all": "all"}
    assert (second.plan.layers, second.plan.hints, second.plan.name) == ("l*", None, "y")
    assert groups_of(study({"name": "kd", "terms": "ce,kd"})) == ()


def test_what_is_worth_fresh_seeds() -> None:
    found = finalists(surveyed(world(DEEP, 0.2)))
    by_kind = {kind: [each for each in found if kind in each.kinds] for kind in (CENTERS, GUESSES, SEARCHED)}
    assert [each.name.split(";")[0] for each in by_kind[SEARCHED]] == ["searched 1", "searched 2", "searched 3"]
    assert any(each.layers == RULES["stage-ends"] and "stage-ends" in each.name for each in by_kind[GUESSES])
    assert [each.layers for each in by_kind[CENTERS]] == [RULES["kmeans r2_cca"]]
    assert len({each.layers for each in found}) == len(found)
    named = " ".join(each.name for each in found)
    assert "segments" not in named
    assert "last" not in named
    tops = {("a",): (60.0,), ("b",): (61.0,), ("c",): (62.0,)}
    cells: list[Any] = [cell(combo[0], 0, tops[combo][0]) for combo in tops]
    rules = {"kmeans r2_cca": ("a",), "uniform": ("a",), "stage-ends": ("c",)}
    seen = surveyed_of(tops, cells, rules=rules)
    final = finalists(seen, searched=1)
    assert final == (
        Finalist("searched 1; stage-ends", ("c",), (SEARCHED, GUESSES), (), ("stage-ends",)),
        Finalist("centers by r2_cca; uniform", ("a",), (CENTERS, GUESSES), ("r2_cca",), ("uniform",)),
    )
    (asked,) = comparisons_of(final)  # all else would be of the same two
    assert asked == Comparison("centers by r2_cca against stage-ends", (final[1].name,), (final[0].name,))


def test_the_sentence_says_what_its_interval_is_of_and_what_held_out_images_tell() -> None:
    tops = {("a",): (60.0, 61.0), ("b",): (62.0, 63.5), ("c",): (64.0, 65.0), ("d",): (66.0, 67.0)}
    held = {("a",): (30.0, 31.0), ("b",): (10.0, 11.0), ("c",): (20.0, 21.0), ("d",): (40.0, 9.0)}
    cells: list[Any] = [
        cell(combo[0], seed, tops[combo][seed], held_out_top1={"last": held[combo][seed]})
        for combo in tops for seed in (0, 1)
    ]  # fmt: skip
    told = surveyed_of(tops, cells)
    assert told.winner is not None
    assert told.winner.chosen == (("a",), ("d",))
    assert "of the 2 combinations that were chosen so; a search on other seeds may choose others)." in told.sentence
    assert told.held_out_tells is not None
    tells = f"as test images of another seed do with a rank correlation of {told.held_out_tells:.2f}; where the teacher"
    assert tells in told.sentence
    one = surveyed_of(tops, [each for each in cells if each["seed"] == 0])
    assert "test images of the same runs do with a rank correlation of" in one.sentence
    for each in cells:
        each["held_out_top1"] = {"last": {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}[each["arm"]]}
    assert "of the combination that was chosen so;" in surveyed_of(tops, cells).sentence
