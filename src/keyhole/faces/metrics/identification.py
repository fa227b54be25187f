"""Figures of identification: who of the gallery is this? Closed set (CMC) and open set (FNIR, FPIR).

A search is one probe against all people of the gallery. Scores are higher for what is more alike; a candidate counts
where its score is at or above the threshold. Ties never help: the mate ranks behind all others of equal score.

A probe without a detected face is a miss of a mated search; so is every search for a person none of whose gallery
pictures shows a face, who still counts as enrolled. A non-mated probe without a face is not a search at all: it cannot
raise a false alarm, and counting it would only flatter FPIR.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from keyhole.errors import DataError, DivergenceError, SettingError, ShapeError
from keyhole.faces.metrics.intervals import Statistic, exact_ends, independent, mean_statistic
from keyhole.faces.metrics.verification import FEWEST_EVENTS, accepted_at_rate, rate_threshold
from keyhole.faces.protocols.samples import Views

# Scores worked on at a time: 64 MiB in single precision.
_BLOCK_ELEMENTS = 2**24

_Array = np.ndarray


@dataclass(frozen=True)
class Searches:
    """What every search gave, as far as figures need it; made by :func:`search`.

    Attributes:
        mate: Score of the mate; -infinity where there is none or it is lost.
        other: Best score of all other people; -infinity where there is none or the probe is lost.
        rank: Place of the mate, from 1; ``people`` + 1 where it is lost, 0 where the person is not enrolled.
        found: Whether a face was found in the probe.
        subjects: Who each probe shows.
        people: How many people are enrolled, with or without a face in their pictures.
        lost_people: Those none of whose gallery pictures shows a face.
    """

    mate: Float64[_Array, " p"]
    other: Float64[_Array, " p"]
    rank: Int64[_Array, " p"]
    found: Bool[_Array, " p"]
    subjects: _Array
    people: int
    lost_people: tuple[str, ...] = ()

    @property
    def mated(self) -> Bool[_Array, " p"]:
        """Whether the person of each probe is enrolled."""
        return np.asarray(self.rank > 0, bool)

    @property
    def alarms(self) -> Bool[_Array, " p"]:
        """Which probes are non-mated searches: of a person not enrolled, with a face."""
        return np.asarray(~self.mated & self.found, bool)

    def subset(self, where: Bool[_Array, " p"] | Int64[_Array, " m"]) -> Searches:
        """Return some of the searches, by flags or positions, such as those of one camera; the gallery stays."""
        kept = {name: getattr(self, name)[where] for name in ("mate", "other", "rank", "found", "subjects")}
        return replace(self, **kept)


@dataclass(frozen=True)
class TooFewSearches:
    """Why a threshold is not backed by the searches that there are.

    Attributes:
        wanted: The FPIR asked for.
        searches: Non-mated searches that there are.
        needed: How many of different people are needed at least: 3 / wanted, rounded up; 0 where no number would do
            (wanted 0).
        bound: What FPIR may truly be with that threshold, at 95 percent.
        people: Whom the searches are of.
    """

    wanted: float
    searches: int
    needed: int
    bound: float
    people: int

    def __str__(self) -> str:
        """Return the warning as one sentence, in percent."""
        needed = f"at least {self.needed:,} are needed" if self.needed else "no number of searches shows a rate of 0"
        of = f" of {self.people:,} people" if self.people < self.searches else ""
        needed += ", each of someone else" * bool(of and self.needed)
        return (
            f"FPIR {100 * self.wanted:g} % cannot be shown by {self.searches:,} non-mated searches{of} ({needed}); "
            f"with this threshold it may be up to {100 * self.bound:.2g} %."
        )


@dataclass(frozen=True)
class FpirThreshold:
    """A threshold for a wanted FPIR, and what stands behind it.

    Attributes:
        threshold: Midway between two scores that occurred; above all of them the next single-precision number.
        wanted: The FPIR asked for.
        measured: The FPIR at the threshold on the same searches, at most ``wanted``.
        searches: Non-mated searches with a face, the denominator of ``measured``.
        false_positives: How many of them return somebody.
        bound: What FPIR may truly be: the exact upper end at 95 percent (one-sided) for as many searches as
            :func:`keyhole.faces.metrics.intervals.independent` counts, as photos of one person raise alarms together.
        warning: Set where ``wanted`` is below 3 / that number; None where it is not.
    """

    threshold: float
    wanted: float
    measured: float
    searches: int
    false_positives: int
    bound: float
    warning: TooFewSearches | None = field(default=None)


@dataclass(frozen=True)
class OpenSetCurve:
    """What an open-set search misses and what it raises as the threshold falls.

    Attributes:
        thresholds: From infinity (nobody is returned) down through every best score of a non-mated search.
        fpir: Share of non-mated searches that return somebody, rising from 0 to 1.
        fnir: Share of mated searches whose mate is not first with a score at or above the threshold.
    """

    thresholds: Float64[_Array, " t"]
    fpir: Float64[_Array, " t"]
    fnir: Float64[_Array, " t"]


def search(
    scores: Float[_Array, "p g"] | Iterable[Float[_Array, "b g"]],
    *,
    gallery: Sequence[str],
    probes: Sequence[str],
    found: Bool[_Array, " p"] | None = None,
    enrolled: Bool[_Array, " g"] | None = None,
    views: Views = "best",
) -> Searches:
    """Return what every search gave: score and place of the mate, and the best score of anyone else.

    Work and memory are linear in the scores; a matrix is worked through in blocks of 64 MiB, and a stream of blocks
    is never held as a whole. Rows of lost probes and columns of lost gallery pictures may hold anything.

    Args:
        scores: Similarity of each probe to each gallery picture, or blocks of its next rows.
        gallery: Who each gallery picture shows.
        probes: Who each probe shows.
        found: Whether a face was found in each probe; None: in all.
        enrolled: Whether a face was found in each gallery picture; None: in all.
        views: How several pictures of one person become one score: the best, or the mean.

    Raises:
        ShapeError: Scores, identities and flags do not fit together.
        DivergenceError: A score is NaN or infinite.
        DataError: The gallery is empty or shows no face at all.
        SettingError: Another setting of views.

    Example:
        >>> scores = np.array([[0.9, 0.2], [0.5, 0.5]])
        >>> search(scores, gallery=["ann", "bob"], probes=["ann", "bob"]).rank.tolist()
        [1, 2]
    """
    if views not in ("best", "mean"):
        raise SettingError(f"views is {views!r}, expected 'best' or 'mean'.")
    present = np.ones(len(gallery), bool) if enrolled is None else np.asarray(enrolled, bool)
    faces = np.ones(len(probes), bool) if found is None else np.asarray(found, bool)
    if present.shape != (len(gallery),) or faces.shape != (len(probes),):
        raise ShapeError(
            f"{present.size} flags for {len(gallery)} gallery pictures, {faces.size} for {len(probes)} probes; "
            f"give one each."
        )
    people = sorted(set(gallery))
    if not present.any():
        raise DataError(f"None of {len(gallery)} gallery pictures shows a face, expected at least one. Check them.")
    columns = _Columns.of(np.asarray(gallery), present, views)
    codes = _codes(probes, columns.people)
    parts = list(_parts(scores, columns, faces=faces, codes=codes))
    mate, other, rank = (np.concatenate([part[i] for part in parts]) for i in range(3))
    known = np.isin(np.asarray(probes), people)
    rank = np.where(known & (rank == 0), len(people) + 1, rank)
    lost = tuple(sorted(set(people) - set(columns.people.tolist())))
    return Searches(mate, other, rank, faces, np.asarray(probes), len(people), lost)


def hits(searches: Searches, k: int = 1) -> Bool[_Array, " p"]:
    """Return for every search whether its mate is among the first k; never for lost or non-mated ones."""
    if not 1 <= k <= searches.people:
        raise SettingError(f"Rank {k} in a gallery of {searches.people} people, expected 1 to {searches.people}.")
    return searches.mated & (searches.rank <= k)


def rank_k(searches: Searches, k: int = 1) -> float:
    """Return the share of mated searches whose mate is among the first k, from 0 to 1; misses count.

    Args:
        searches: From :func:`search`.
        k: From 1 to the number of people enrolled.

    Raises:
        SettingError: k lies outside of that.
        DataError: No search is mated.

    Example:
        >>> found = search(np.array([[0.9, 0.2], [0.5, 0.5]]), gallery=["ann", "bob"], probes=["ann", "bob"])
        >>> rank_k(found), rank_k(found, 2)
        (0.5, 1.0)
    """
    return rank_statistic(searches, k).value()


def cmc(searches: Searches) -> Float64[_Array, " k"]:
    """Return the share of mated searches whose mate is among the first k, for k = 1 up to the people enrolled.

    It rises to 1 unless mates are lost.

    Raises:
        DataError: No search is mated.
    """
    _check_mated(searches)
    places = np.bincount(searches.rank[searches.mated], minlength=searches.people + 2)
    curve: Float64[_Array, " k"] = np.cumsum(places[1 : searches.people + 1]) / int(searches.mated.sum())
    return curve


def cmc_area(searches: Searches) -> float:
    """Return the area under the CMC, from 0 to 1: its mean over all k.

    All mates first give 1. Chance gives (n + 1) / 2n with n people, and all scores equal 1 / n, as ties never help.

    Raises:
        DataError: No search is mated.
    """
    return cmc_area_statistic(searches).value()


def fnir(searches: Searches, threshold: float, *, rank: int = 1) -> float:
    """Return the share of mated searches whose mate is not among the first ``rank`` with a score >= threshold.

    FNIR(N, R, T), from 0 to 1, with N the people enrolled; misses of the detector count, in probe and gallery.

    Args:
        searches: From :func:`search`.
        threshold: T; -infinity leaves the rank alone.
        rank: R.

    Raises:
        SettingError: The rank lies outside of the gallery.
        DataError: No search is mated.

    Reference:
        Grother, Ngan, Hanaoka (2019), "Face Recognition Vendor Test Part 2: Identification", NISTIR 8271.
    """
    return fnir_statistic(searches, threshold, rank=rank).value()


def detection_identification_rate(searches: Searches, threshold: float, *, rank: int = 1) -> float:
    """Return DIR = 1 - FNIR, from 0 to 1; args and errors are those of :func:`fnir`."""
    return 1 - fnir(searches, threshold, rank=rank)


def fpir(searches: Searches, threshold: float) -> float:
    """Return the share of non-mated searches that return somebody with a score >= threshold, from 0 to 1.

    Args:
        searches: From :func:`search`.
        threshold: Any number.

    Raises:
        DataError: No search with a face is non-mated.
    """
    return fpir_statistic(searches, threshold).value()


def threshold_for_fpir(searches: Searches, wanted: float) -> FpirThreshold:
    """Return the lowest useful threshold at which at most the share ``wanted`` of non-mated searches returns somebody.

    Searches are counted, not comparisons. Below 3 / n the rate cannot be shown by so few; n is the number of non-mated
    searches where each is of someone else, and less where people have several (see
    :func:`keyhole.faces.metrics.intervals.independent`). The threshold is then still given, with a warning and the
    bound up to which FPIR may truly be.

    Args:
        searches: From :func:`search`; those that are mated do not matter.
        wanted: From 0 to below 1.

    Raises:
        SettingError: ``wanted`` lies outside of that.
        DataError: No search with a face is non-mated.
    """
    if not 0 <= wanted < 1:
        raise SettingError(f"A wanted FPIR of {wanted}, expected from 0 to below 1, such as 0.01.")
    alarms = _check_alarms(searches)
    best = searches.other[alarms]
    threshold = rate_threshold(best, best, wanted)
    positives, count, alone = int((best >= threshold).sum()), len(best), independent(searches.subjects[alarms])
    # both tails of 5 percent: the upper one alone is 95
    bound = exact_ends(alone * (positives / count), alone, level=0.90)[1]
    warning = None
    if wanted * alone < FEWEST_EVENTS - 1e-9:
        needed = int(np.ceil(FEWEST_EVENTS / wanted - 1e-9)) if wanted else 0
        warning = TooFewSearches(wanted, count, needed, bound, len(set(searches.subjects[alarms])))
    return FpirThreshold(threshold, wanted, positives / count, count, positives, bound, warning)


def open_set_curve(searches: Searches) -> OpenSetCurve:
    """Return FNIR over FPIR at every threshold that matters.

    Raises:
        DataError: No search is mated, or no search with a face is non-mated.
    """
    _check_mated(searches)
    best = np.sort(searches.other[_check_alarms(searches)])
    thresholds = np.append(np.inf, np.unique(best)[::-1])
    mates = np.sort(searches.mate[hits(searches)])
    returned = len(best) - np.searchsorted(best, thresholds, side="left")
    identified = len(mates) - np.searchsorted(mates, thresholds, side="left")
    return OpenSetCurve(thresholds, returned / len(best), 1 - identified / int(searches.mated.sum()))


def fnir_at_fpir(searches: Searches, wanted: float) -> float | None:
    """Return the FNIR (rank 1) with at most the share ``wanted`` of non-mated searches returning somebody, 0 to 1.

    None where fewer than 3 non-mated searches stand behind the rate: ``wanted`` times their number, as
    :func:`keyhole.faces.metrics.intervals.independent` counts them.

    Args:
        searches: From :func:`search`.
        wanted: From 0 to below 1.

    Raises:
        SettingError: ``wanted`` lies outside of that.
        DataError: No search is mated, or no search with a face is non-mated.
    """
    statistic = fnir_at_fpir_statistic(searches, wanted)
    return None if statistic is None else statistic.value()


def rank_statistic(searches: Searches, k: int = 1) -> Statistic:
    """Return :func:`rank_k` as a statistic for intervals."""
    _check_mated(searches)
    return _mean(hits(searches, k), searches, searches.mated)


def cmc_area_statistic(searches: Searches) -> Statistic:
    """Return :func:`cmc_area` as a statistic for intervals: the mean over searches of (n + 1 - rank) / n."""
    _check_mated(searches)
    return _mean((searches.people + 1 - searches.rank) / searches.people, searches, searches.mated)


def fnir_statistic(searches: Searches, threshold: float, *, rank: int = 1) -> Statistic:
    """Return :func:`fnir` at a threshold that stays, as a statistic for intervals."""
    _check_mated(searches)
    _check_threshold(threshold)
    missed = ~(hits(searches, rank) & (searches.mate >= threshold))
    return _mean(missed, searches, searches.mated)


def fpir_statistic(searches: Searches, threshold: float) -> Statistic:
    """Return :func:`fpir` at a threshold that stays, as a statistic for intervals."""
    alarms = _check_alarms(searches)
    _check_threshold(threshold)
    return _mean(searches.other >= threshold, searches, alarms)


def fnir_at_fpir_statistic(searches: Searches, wanted: float) -> Statistic | None:
    """Return :func:`fnir_at_fpir` as a statistic for intervals; in every draw the threshold is found anew.

    People who are enrolled and people who are not are drawn apart. None where the figure is undefined.
    """
    if not 0 <= wanted < 1:
        raise SettingError(f"A wanted FPIR of {wanted}, expected from 0 to below 1, such as 0.01.")
    _check_mated(searches)
    mated, alarms = searches.mated, _check_alarms(searches)
    if wanted * independent(searches.subjects[alarms]) < FEWEST_EVENTS - 1e-9:
        return None
    mates = np.where(hits(searches), searches.mate, -np.inf)[mated]
    accepted = accepted_at_rate(mates, searches.other[alarms], wanted)

    def of(weights: Float64[_Array, "r n"]) -> Float64[_Array, " r"]:
        return 1 - accepted(weights[:, mated], weights[:, alarms])

    return Statistic(of, searches.subjects, mated, strata=mated)


def _mean(values: _Array, searches: Searches, where: Bool[_Array, " p"]) -> Statistic:
    """Return a mean over some searches; people who are enrolled and people who are not are drawn apart."""
    return replace(mean_statistic(values, searches.subjects, where=where), strata=searches.mated)


@dataclass(frozen=True)
class _Columns:
    """Which columns of the scores are used, sorted by person."""

    order: Int64[_Array, " c"]
    starts: Int64[_Array, " n"]
    people: _Array
    width: int
    views: Views

    @classmethod
    def of(cls, gallery: _Array, present: _Array, views: Views) -> _Columns:
        used = np.flatnonzero(present)
        order = used[np.argsort(gallery[used], kind="stable")]
        people, starts = np.unique(gallery[order], return_index=True)
        return cls(order, starts, people, len(gallery), views)

    def person_scores(self, block: _Array) -> _Array:
        """Return one score a person, in a matrix of its own."""
        own: _Array = block[:, self.order]
        if not np.isfinite(own).all():
            raise DivergenceError("A score is NaN or infinite. Check the model and its input.")
        if len(self.starts) == own.shape[1]:
            return own
        if self.views == "best":
            best: _Array = np.maximum.reduceat(own, self.starts, axis=1)
            return best
        sums: _Array = np.add.reduceat(own.astype(np.float64), self.starts, axis=1)
        return sums / np.diff(np.append(self.starts, own.shape[1]))


def _codes(probes: Sequence[str], people: _Array) -> Int64[_Array, " p"]:
    """Return the position of each probe's person, -1 where there is none."""
    names = np.asarray(probes)
    place = np.minimum(np.searchsorted(people, names), len(people) - 1)
    return np.where(people[place] == names, place, -1)


def _parts(
    scores: _Array | Iterable[_Array], columns: _Columns, *, faces: _Array, codes: _Array
) -> Iterator[tuple[_Array, _Array, _Array]]:
    row = 0
    for block in _blocks(scores, columns.width):
        if block.ndim != 2 or block.shape[1] != columns.width or row + len(block) > len(codes):
            raise ShapeError(
                f"Scores of shape {block.shape} from row {row} for {len(codes)} probes and {columns.width} gallery "
                f"pictures; give a row a probe and a column a picture."
            )
        here = slice(row, row + len(block))
        yield _searched(block, columns, faces=faces[here], codes=codes[here])
        row += len(block)
    if row != len(codes):
        raise ShapeError(f"Scores have {row} rows for {len(codes)} probes; give a row a probe.")


def _blocks(scores: _Array | Iterable[_Array], width: int) -> Iterator[_Array]:
    whole = [scores] if isinstance(scores, np.ndarray) else scores
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    for part in whole:
        block = np.asarray(part)
        for start in range(0, max(1, len(block)), step):
            yield block[start : start + step]


def _searched(block: _Array, columns: _Columns, *, faces: _Array, codes: _Array) -> tuple[_Array, _Array, _Array]:
    """Return mate, best other and rank (0 for none) of the rows of one block."""
    mate, other = np.full((2, len(block)), -np.inf)
    rank = np.zeros(len(block), np.int64)
    rows = np.flatnonzero(faces)
    own = columns.person_scores(block[rows] if len(rows) < len(block) else block)
    known = np.flatnonzero(codes[rows] >= 0)
    theirs = codes[rows[known]]
    mates = own[known, theirs]
    mate[rows[known]] = mates
    # the mate itself is among those at or above its score, and so makes the place count from 1
    bars = np.full((len(rows), 1), np.inf, own.dtype)
    bars[known, 0] = mates
    rank[rows] = (own >= bars).sum(1)
    own[known, theirs] = -np.inf
    other[rows] = own.max(1, initial=-np.inf)
    return mate, other, rank


def _check_mated(searches: Searches) -> None:
    if not searches.mated.any():
        raise DataError(
            f"None of {len(searches.rank)} searches is for one of the {searches.people} people enrolled, expected at "
            f"least one. Check that probes and gallery name people alike."
        )


def _check_alarms(searches: Searches) -> Bool[_Array, " p"]:
    alarms = searches.alarms
    if not alarms.any():
        raise DataError(
            f"None of {len(searches.rank)} searches is for a person who is not enrolled (with a face found), expected "
            f"at least one. Add probes of other people."
        )
    return alarms


def _check_threshold(threshold: float) -> None:
    if np.isnan(threshold):
        raise SettingError("The threshold is NaN, expected a number.")
