"""What of a landscape is worth fresh seeds, and which comparisons those are for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from keyhole.studies.landscape import Landscape
from keyhole.studies.plan import Comparison
from keyhole.studies.rules import metrics_of

CENTERS, GUESSES, SEARCHED = "centers", "guesses", "searched"
_GUESSES = ("stage-ends", "uniform", "random")


@dataclass(frozen=True)
class Finalist:
    """A combination that is worth fresh seeds.

    Attributes:
        name: Of all that choose it.
        layers: What it is.
        kinds: Of those: :data:`CENTERS` of k-means clusters, :data:`GUESSES` without a look at similarities, or
            :data:`SEARCHED`.
        metrics: Whose centers it is.
        guesses: The rules that guess it, without what tells their draws apart.
    """

    name: str
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()


def finalists(landscape: Landscape, *, searched: int = 3) -> tuple[Finalist, ...]:
    """Return what is worth fresh seeds: the centers of each metric, the guesses, and the best that the search found.

    Args:
        landscape: The landscape.
        searched: How many of the combinations with the highest held-out means.
    """
    ranked = [each for each in landscape.combinations if each.held_out]
    ranked.sort(key=lambda each: -statistics.fmean(each.held_out))
    places = {each.layers: place for place, each in enumerate(ranked[:searched], start=1)}
    takers = {each.layers: each.rules for each in landscape.standings if each.layers}
    found = []
    for layers in dict.fromkeys([*places, *takers]):
        rules = takers.get(layers, ())
        metrics = metrics_of(rules)
        guesses = [rule for rule in rules if rule.partition(",")[0] in _GUESSES]
        parts = {
            SEARCHED: f"searched {places[layers]}" if layers in places else "",
            CENTERS: f"centers by {' and '.join(metrics)}" if metrics else "",
            GUESSES: " and ".join(guesses),
        }
        if any(parts.values()):
            reasons = {kind: part for kind, part in parts.items() if part}
            guessed = tuple(dict.fromkeys(rule.partition(",")[0] for rule in guesses))
            found.append(Finalist("; ".join(reasons.values()), layers, tuple(reasons), metrics, guessed))
    return tuple(found)


def comparisons_of(found: Sequence[Finalist]) -> tuple[Comparison, ...]:
    """Return the comparisons that fresh seeds are for: centers metric by metric, and then of each kind the mean.

    Metrics with the same centers are one comparison, and two comparisons of the same arms are one, so that no more
    stand together for correction than differ. A combination that is of both sides counts in both, or a rule would lose
    just what it has in common with its rival. Where one side lies within the other, it is compared with the rest of
    that, which is the same question. The random rule stands there with its draws, whose luck no interval holds: what
    choosing at random is worth is the mean of all combinations.

    Args:
        found: What is worth fresh seeds.

    Example:
        >>> found = (
        ...     Finalist("centers by r2_cca", ("a",), (CENTERS,), ("r2_cca",)),
        ...     Finalist("searched 1", ("b",), (SEARCHED,)),
        ...     Finalist("searched 2; stage-ends", ("c",), (SEARCHED, GUESSES), (), ("stage-ends",)),
        ... )
        >>> for each in comparisons_of(found):
        ...     each.name, each.arms, each.against
        ('centers by r2_cca against stage-ends', ('centers by r2_cca',), ('searched 2; stage-ends',))
        ('centers by r2_cca against searched', ('centers by r2_cca',), ('searched 1', 'searched 2; stage-ends'))
        ('searched against guesses, which are among them', ('searched 1',), ('searched 2; stage-ends',))
    """
    kinds = {kind: tuple(each.name for each in found if kind in each.kinds) for kind in (CENTERS, GUESSES, SEARCHED)}
    ends, drawn = (tuple(each.name for each in found if rule in each.guesses) for rule in ("stage-ends", "random"))
    draws = f"these {len(drawn)} random draws" if len(drawn) > 1 else "this random draw"
    rivals = {"stage-ends": ends, draws: drawn, SEARCHED: kinds[SEARCHED]}
    asked = [
        _contrast(f"centers by {' and '.join(each.metrics)}", (each.name,), rival, names)
        for each in found
        if each.metrics
        for rival, names in rivals.items()
    ]
    asked += [
        _contrast(first, kinds[first], second, kinds[second])
        for first, second in ((CENTERS, GUESSES), (CENTERS, SEARCHED), (SEARCHED, GUESSES))
    ]
    once: dict[frozenset[tuple[str, ...]], Comparison] = {}
    for each in asked:
        if each is not None:
            once.setdefault(frozenset((each.arms, each.against)), each)
    return tuple(once.values())


def _contrast(first: str, arms: tuple[str, ...], second: str, against: tuple[str, ...]) -> Comparison | None:
    """Return a comparison of two sides, of which none lies within the other; None where nothing is left to compare."""
    own, other = (tuple(name for name in side if name not in rest) for side, rest in ((arms, against), (against, arms)))
    name = f"{first} against {second}"
    if own and other:
        return Comparison(name, arms, against)
    if own and against:
        return Comparison(f"{name}, which are among them", own, against)
    if other and arms:
        return Comparison(f"{first} against the rest of {second}", arms, other)
    return None
