from __future__ import annotations

import math

import numpy as np
import pytest

from keyhole.errors import DataError, DivergenceError, SettingError, ShapeError
from keyhole.faces.metrics import identification
from keyhole.faces.metrics.identification import (
    Searches,
    cmc,
    cmc_area,
    cmc_area_statistic,
    detection_identification_rate,
    fnir,
    fnir_at_fpir,
    fnir_at_fpir_statistic,
    fnir_statistic,
    fpir,
    fpir_statistic,
    hits,
    open_set_curve,
    rank_k,
    rank_statistic,
    search,
    threshold_for_fpir,
)
from keyhole.faces.metrics.intervals import Resampling, difference, exact_ends, interval

GALLERY = ["bob", "ann", "cid"]
PROBES = ["ann", "bob", "cid", "zoe", "ann", "yan"]
SCORES = np.array(
    [
        [0.2, 0.9, 0.1],  # ann first
        [0.5, 0.5, 0.1],  # bob ties with ann: second
        [0.6, 0.7, 0.3],  # cid last
        [0.4, 0.1, 0.2],  # zoe is not enrolled; best 0.4
        [0.0, 0.6, 0.3],  # ann first with 0.6
        [0.7, 0.1, 0.7],  # yan is not enrolled; best 0.7
    ]
)


@pytest.fixture
def table() -> Searches:
    return search(SCORES, gallery=GALLERY, probes=PROBES)


def slow(
    scores: np.ndarray, gallery: list[str], probes: list[str], found: np.ndarray, enrolled: np.ndarray, views: str
) -> list[tuple[float, float, int]]:
    """Mate, best other and rank of every search, person by person."""
    result = []
    people = sorted(set(gallery))
    for row, probe in enumerate(probes):
        own = {}
        for person in people:
            theirs = [
                float(scores[row, c]) for c, name in enumerate(gallery) if name == person and enrolled[c] and found[row]
            ]
            if theirs:
                own[person] = max(theirs) if views == "best" else sum(theirs) / len(theirs)
        mate = own.get(probe, -np.inf)
        others = [score for person, score in own.items() if person != probe]
        rank = 0 if probe not in people else len(people) + 1
        if probe in own:
            rank = 1 + sum(score >= mate for score in others)
        result.append((mate, max(others, default=-np.inf), rank))
    return result


def drawn(seed: int) -> tuple[np.ndarray, list[str], list[str], np.ndarray, np.ndarray]:
    """Quarters, which mean and tie exactly; several pictures a person, strangers, lost ones."""
    random = np.random.default_rng(seed)
    gallery = [f"p{i}" for i in random.integers(0, 12, 30)]
    probes = [f"p{i}" for i in random.integers(0, 18, 60)]
    same = np.array(gallery)[None] == np.array(probes)[:, None]
    scores = np.round(random.normal(same * 1.5, 1, same.shape) * 4) / 4
    return scores, gallery, probes, random.random(60) < 0.85, random.random(30) < 0.7


def test_the_table_by_hand(table: Searches) -> None:
    assert table.rank.tolist() == [1, 2, 3, 0, 1, 0]
    assert table.mate.tolist() == [0.9, 0.5, 0.3, -np.inf, 0.6, -np.inf]
    assert table.other.tolist() == [0.2, 0.5, 0.7, 0.4, 0.3, 0.7]
    assert table.mated.tolist() == [True, True, True, False, True, False]
    assert (table.people, table.lost_people) == (3, ())
    assert (rank_k(table), rank_k(table, 2), rank_k(table, 3)) == (0.5, 0.75, 1.0)
    assert cmc(table).tolist() == [0.5, 0.75, 1.0]
    assert cmc_area(table) == pytest.approx(0.75)
    assert fnir(table, 0.6) == 0.5  # at the threshold counts
    assert fnir(table, 0.61) == 0.75
    assert fnir(table, 0.5, rank=2) == 0.25
    assert detection_identification_rate(table, 0.6) == 0.5
    assert fnir(table, -np.inf) == 1 - rank_k(table)
    assert [fpir(table, t) for t in (0.4, 0.41, 0.7, 0.71)] == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("views", ["best", "mean"])
@pytest.mark.parametrize("seed", range(6))
def test_against_a_slow_loop(seed: int, views: identification.Views, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, gallery, probes, found, enrolled = drawn(seed)
    expected = slow(scores, gallery, probes, found, enrolled, views)
    dirty = scores.copy()
    dirty[~found] = np.nan
    dirty[:, ~enrolled] = np.inf
    before = dirty.copy()

    for given in (dirty, dirty.astype(np.float32), [dirty[:1], dirty[1:40], dirty[40:]], np.asfortranarray(dirty)):
        result = search(given, gallery=gallery, probes=probes, found=found, enrolled=enrolled, views=views)
        assert result.rank.tolist() == [rank for _, _, rank in expected]
        tolerance = 1e-6 if views == "mean" else 0
        assert np.allclose(result.mate, [mate for mate, _, _ in expected], atol=tolerance, rtol=0)
        assert np.allclose(result.other, [other for _, other, _ in expected], atol=tolerance, rtol=0)
    monkeypatch.setattr(identification, "_BLOCK_ELEMENTS", 100)
    small = search(dirty, gallery=gallery, probes=probes, found=found, enrolled=enrolled, views=views)
    assert np.array_equal(small.rank, result.rank)
    assert np.array_equal(before, dirty, equal_nan=True)


def test_no_figure_depends_on_an_order() -> None:
    scores, gallery, probes, found, enrolled = drawn(11)
    one = search(scores, gallery=gallery, probes=probes, found=found, enrolled=enrolled)
    rows, columns = (np.random.default_rng(0).permutation(n) for n in scores.shape)
    other = search(
        scores[rows][:, columns],
        gallery=[gallery[i] for i in columns],
        probes=[probes[i] for i in rows],
        found=found[rows],
        enrolled=enrolled[columns],
    )
    assert np.array_equal(one.rank[rows], other.rank)
    assert cmc(one).tolist() == cmc(other).tolist()
    assert threshold_for_fpir(one, 0.3) == threshold_for_fpir(other, 0.3)
    assert fnir_at_fpir(one, 0.4) == fnir_at_fpir(other, 0.4)


def test_scores_that_are_all_equal_help_nobody() -> None:
    flat = search(np.full((6, 3), 0.5), gallery=GALLERY, probes=PROBES)
    assert cmc(flat).tolist() == [0, 0, 1]
    assert cmc_area(flat) == pytest.approx(1 / 3)
    assert fnir(flat, 0.0) == 1.0
    assert fpir(flat, 0.5) == 1.0


def test_chance_gives_half_the_area() -> None:
    names = [f"p{i}" for i in range(20)]
    scores = np.array([[float((row * 7 + column) % 20) for column in range(20)] for row in range(20)])
    every_rank_once = search(scores, gallery=names, probes=[names[(-row * 6) % 20] for row in range(20)])
    ranks = every_rank_once.rank
    assert cmc_area(every_rank_once) == pytest.approx(np.mean((21 - ranks) / 20))


def test_misses_of_the_detector_are_misses(table: Searches) -> None:
    found = np.array([True, True, True, False, False, True])
    lost = search(SCORES, gallery=GALLERY, probes=PROBES, found=found)
    assert lost.rank.tolist() == [1, 2, 3, 0, 4, 0]
    assert rank_k(lost) == 0.25
    assert cmc(lost).tolist() == [0.25, 0.5, 0.75]
    assert cmc_area(lost) == pytest.approx(0.5)
    assert fnir(lost, -np.inf) == 0.75
    assert lost.alarms.tolist() == [False] * 5 + [True]  # zoe without a face was not searched for
    assert fpir(lost, 0.5) == 1.0
    assert threshold_for_fpir(lost, 0.5).searches == 1


def test_people_without_a_face_in_the_gallery_are_misses_and_stay_enrolled() -> None:
    enrolled = np.array([True, False, True])
    lost = search(SCORES, gallery=GALLERY, probes=PROBES, enrolled=enrolled)
    assert lost.lost_people == ("ann",)
    assert lost.people == 3
    assert lost.mated.tolist() == [True, True, True, False, True, False]
    assert lost.rank.tolist() == [4, 1, 2, 0, 4, 0]
    assert lost.other[0] == 0.2
    assert rank_k(lost, 3) == 0.5
    with pytest.raises(DataError, match=r"None of 3 gallery pictures shows a face"):
        search(SCORES, gallery=GALLERY, probes=PROBES, enrolled=np.zeros(3, bool))


def test_views_are_pooled_as_stated() -> None:
    scores = np.array([[0.9, 0.1, 0.6, 0.5], [0.2, 0.2, 0.1, 0.4]])
    gallery = ["ann", "ann", "bob", "bob"]
    best = search(scores, gallery=gallery, probes=["ann", "ann"])
    mean = search(scores, gallery=gallery, probes=["ann", "ann"], views="mean")
    assert (best.rank.tolist(), mean.rank.tolist()) == ([1, 2], [2, 2])
    assert mean.mate.tolist() == pytest.approx([0.5, 0.2])
    assert mean.other.tolist() == pytest.approx([0.55, 0.25])
    with pytest.raises(SettingError, match=r"views is 'all'"):
        search(scores, gallery=gallery, probes=["ann", "ann"], views="all")  # type: ignore[arg-type]


def test_one_person_enrolled() -> None:
    alone = search(np.array([[0.3], [0.8]]), gallery=["ann"], probes=["ann", "bob"])
    assert alone.other.tolist() == [-np.inf, 0.8]
    assert rank_k(alone) == cmc_area(alone) == 1.0
    assert fnir(alone, 0.5) == 1.0
    assert interval(rank_statistic(alone), resampling=Resampling(100)).low == pytest.approx(0.025)


def test_a_subset_keeps_the_gallery(table: Searches) -> None:
    part = table.subset(np.array([True, True, False, False, False, True]))
    assert part.rank.tolist() == [1, 2, 0]
    assert part.subjects.tolist() == ["ann", "bob", "yan"]
    assert part.people == 3
    assert rank_k(part) == 0.5


def of_strangers(best: list[float]) -> Searches:
    scores = np.array([[score, score - 1] for score in best])
    return search(scores, gallery=["ann", "bob"], probes=[f"z{i}" for i in range(len(best))])


def test_the_threshold_for_a_wanted_fpir_by_hand() -> None:
    strangers = of_strangers([i / 100 for i in range(100)])
    found = threshold_for_fpir(strangers, 0.1)
    assert found.threshold == pytest.approx(0.895)  # ten of a hundred at 0.90 and above
    assert (found.measured, found.searches, found.false_positives, found.warning) == (0.1, 100, 10, None)
    assert found.bound == pytest.approx(exact_ends(10, 100, level=0.9)[1])
    assert threshold_for_fpir(strangers, 0.109).threshold == found.threshold
    for wanted in (0.29, 0.57, 0.07):  # of which a hundred times is not exact
        assert threshold_for_fpir(strangers, wanted).false_positives == round(100 * wanted)


def test_ties_are_refused_together() -> None:
    strangers = of_strangers([0.5] * 50 + [0.9] * 5 + [0.1] * 45)
    found = threshold_for_fpir(strangers, 0.3)
    assert found.threshold == pytest.approx(0.7)
    assert found.measured == 0.05
    assert threshold_for_fpir(strangers, 0.04).threshold > 0.9
    assert threshold_for_fpir(strangers, 0.04).measured == 0.0


def test_a_rate_that_so_few_searches_cannot_show_is_answered_with_a_warning() -> None:
    strangers = of_strangers([i / 1000 for i in range(1000)])
    assert threshold_for_fpir(strangers, 0.003).warning is None
    found = threshold_for_fpir(strangers, 0.001)
    assert found.warning is not None
    assert (found.warning.searches, found.warning.needed) == (1000, 3000)
    assert found.false_positives == 1
    assert found.warning.bound == found.bound == pytest.approx(0.0047, abs=1e-4)
    assert str(found.warning) == (
        "FPIR 0.1 % cannot be shown by 1,000 non-mated searches (at least 3,000 are needed); "
        "with this threshold it may be up to 0.47 %."
    )
    none = threshold_for_fpir(strangers, 0.0)
    assert none.threshold > 0.999
    assert none.false_positives == 0
    assert none.bound == pytest.approx(3 / 1000, rel=0.01)
    assert "no number of searches shows a rate of 0" in str(none.warning)


def test_photos_of_one_stranger_show_no_more_than_one_of_them() -> None:
    scores = np.array([[i / 100, -1.0] for i in range(100)])
    each = [f"z{i // 10}" for i in range(100)]
    found = threshold_for_fpir(search(scores, gallery=["ann", "bob"], probes=each), 0.1)
    assert (found.threshold, found.searches, found.false_positives) == (pytest.approx(0.895), 100, 10)
    assert found.bound == pytest.approx(exact_ends(1, 10, level=0.9)[1])  # one of ten people raised an alarm
    assert found.warning is not None
    assert str(found.warning).startswith(
        "FPIR 10 % cannot be shown by 100 non-mated searches of 10 people (at least 30 are needed, each of someone "
        "else); with this threshold it may be up to 39 %."
    )
    both = search(np.vstack([scores, [[0.9, 0.1]]]), gallery=["ann", "bob"], probes=[*each, "ann"])
    assert fnir_at_fpir(both, 0.1) is None
    assert fnir_at_fpir(both, 0.3) is not None


def test_the_bound_holds_where_strangers_have_several_photos() -> None:
    """In at most a twentieth of the draws the true rate lies above it; as if searches were alone, in a third."""
    random, held, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        of_each = random.normal(size=(40, 1)) * np.sqrt(0.7) + random.normal(size=(40, 20)) * np.sqrt(0.3)
        scores = np.column_stack([of_each.ravel(), np.full(800, -9.0)])
        probes = [f"z{i // 20}" for i in range(800)]
        found = threshold_for_fpir(search(scores, gallery=["ann", "bob"], probes=probes), 0.05)
        true = 0.5 * math.erfc(found.threshold / math.sqrt(2))
        held += true <= found.bound
        naive += true <= exact_ends(found.false_positives, 800, level=0.9)[1]
    assert held / 400 > 0.95 > 0.75 > naive / 400


def test_a_threshold_above_everything_holds_in_single_precision() -> None:
    score = np.float32(0.7)
    strangers = search(np.full((4, 1), score), gallery=["ann"], probes=list("wxyz"))
    assert not score >= np.float32(threshold_for_fpir(strangers, 0.0).threshold)


@pytest.mark.parametrize("seed", range(4))
def test_the_open_set_curve_against_the_figures(seed: int) -> None:
    scores, gallery, probes, found, enrolled = drawn(seed)
    result = search(scores, gallery=gallery, probes=probes, found=found, enrolled=enrolled)
    curve = open_set_curve(result)
    assert (curve.fpir[0], curve.fnir[0], curve.fpir[-1]) == (0.0, 1.0, 1.0)
    for threshold, alarms, misses in zip(curve.thresholds, curve.fpir, curve.fnir, strict=True):
        assert fpir(result, threshold) == pytest.approx(alarms)
        assert fnir(result, threshold) == pytest.approx(misses)
    for wanted in (0.7, 0.9):  # of some five people
        assert fnir_at_fpir(result, wanted) == pytest.approx(fnir(result, threshold_for_fpir(result, wanted).threshold))


def test_fnir_at_fpir_in_a_draw_finds_its_threshold_anew() -> None:
    scores, gallery, probes, found, enrolled = drawn(3)
    result = search(scores, gallery=gallery, probes=probes, found=found, enrolled=enrolled)
    statistic = fnir_at_fpir_statistic(result, 0.75)
    assert statistic is not None
    times = np.random.default_rng(1).integers(0, 3, (5, 60))
    for row, value in zip(times, statistic.of(times.astype(float)), strict=True):
        again = result.subset(np.repeat(np.arange(60), row))
        assert value == pytest.approx(fnir(again, threshold_for_fpir(again, 0.75).threshold))
    assert fnir_at_fpir(of_mates_and_strangers(10), 0.2) is None  # two searches behind it
    assert fnir_at_fpir(of_mates_and_strangers(15), 0.2) == 0.0


def of_mates_and_strangers(strangers: int) -> Searches:
    probes = ["ann", "bob"] + [f"z{i}" for i in range(strangers)]
    scores = np.concatenate([np.eye(2), np.tile(np.linspace(0, 0.5, strangers)[:, None], (1, 2))])
    return search(scores, gallery=["ann", "bob"], probes=probes)


def test_statistics_and_their_intervals() -> None:
    scores, gallery, probes, found, enrolled = drawn(5)
    result = search(scores, gallery=gallery, probes=probes, found=found, enrolled=enrolled)
    few = Resampling(300)
    for statistic, value in (
        (rank_statistic(result, 2), rank_k(result, 2)),
        (cmc_area_statistic(result), cmc_area(result)),
        (fnir_statistic(result, 0.5, rank=2), fnir(result, 0.5, rank=2)),
        (fpir_statistic(result, 1.5), fpir(result, 1.5)),
        (fnir_at_fpir_statistic(result, 0.75), fnir_at_fpir(result, 0.75)),
    ):
        assert statistic is not None
        known = interval(statistic, resampling=few)
        assert known.value == value
        assert known.low < value < known.high
    mated = {p for p in probes if p in gallery}
    assert interval(rank_statistic(result), resampling=few).subjects == len(mated)
    better = search(
        scores + 3.0 * (np.array(gallery)[None] == np.array(probes)[:, None]), gallery=gallery, probes=probes
    )
    gain = difference(rank_statistic(better), rank_statistic(result), resampling=few)
    assert gain.value == pytest.approx(rank_k(better) - rank_k(result))
    assert gain.low > 0


def test_bad_scores() -> None:
    for value in (np.nan, np.inf, -np.inf):
        bad = SCORES.copy()
        bad[4, 1] = value
        with pytest.raises(DivergenceError, match=r"A score is NaN or infinite. Check the model"):
            search(bad, gallery=GALLERY, probes=PROBES)
    for given, message in (
        (SCORES[:5], "Scores have 5 rows for 6 probes"),
        (SCORES[:, :2], r"Scores of shape \(6, 2\) from row 0 for 6 probes and 3 gallery pictures"),
        ([SCORES[:4], SCORES[:4]], r"Scores of shape \(4, 3\) from row 4 for 6 probes"),
        (SCORES[0], r"Scores of shape \(3,\) from row 0"),
        ([], "Scores have 0 rows for 6 probes"),
    ):
        with pytest.raises(ShapeError, match=message):
            search(given, gallery=GALLERY, probes=PROBES)
    with pytest.raises(ShapeError, match=r"2 flags for 3 gallery pictures, 6 for 6 probes"):
        search(SCORES, gallery=GALLERY, probes=PROBES, enrolled=np.ones(2, bool))


def test_figures_that_need_what_is_not_there(table: Searches) -> None:
    strangers = of_strangers([0.1, 0.2])
    for figure in (rank_k, cmc, cmc_area, open_set_curve):
        with pytest.raises(
            DataError, match=r"None of 2 searches is for one of the 2 people enrolled.*name people alike"
        ):
            figure(strangers)
    mates = table.subset(table.mated)
    with pytest.raises(DataError, match=r"None of 4 searches is for a person who is not enrolled"):
        threshold_for_fpir(mates, 0.1)
    with pytest.raises(DataError, match=r"Add probes of other people"):
        fpir(mates, 0.5)
    for k in (0, 4):
        with pytest.raises(SettingError, match=f"Rank {k} in a gallery of 3 people, expected 1 to 3"):
            hits(table, k)
    for wanted in (-0.1, 1.0):
        with pytest.raises(SettingError, match=r"expected from 0 to below 1"):
            threshold_for_fpir(table, wanted)
        with pytest.raises(SettingError, match=r"expected from 0 to below 1"):
            fnir_at_fpir(table, wanted)
    with pytest.raises(SettingError, match=r"The threshold is NaN"):
        fnir(table, float("nan"))
