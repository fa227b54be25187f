"""What a landscape says on choosing, in plain words, whichever way it falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from keyhole.studies.rules import is_center, metrics_of
from keyhole.studies.standings import Standing, Winner
from keyhole.studies.variance import Spread
from keyhole.studies.verdict import SURE


def what_is_there(count: int, asked: int, seeds: Sequence[int]) -> tuple[str, ...]:
    """Return how much of a landscape is there, of which nothing else can be told yet."""
    on = f"seed{'' if len(seeds) == 1 else 's'} {' and '.join(map(str, seeds))}"
    return (
        f"{count} of {asked} combinations of layers have come to the end on {on}.",
        "What layers are worth, where choices stand and what a search finds can be told when all of them have with one "
        "seed.",
    )


def what_is_found(
    count: int,
    spread: Spread | None,
    standings: Sequence[Standing],
    winner: Winner | None,
    tells: float | None,
    early_tells: Mapping[int, float],
) -> tuple[str, ...]:
    """Return what the figures say on choosing, whichever way they fall: the answer first, then what it rests on."""
    if spread is None:
        parts = [
            f"{count} combinations of layers on one seed: whether choosing matters cannot be told from chance. "
            "It takes a second seed.",
            _do_held_out_images_tell(tells, early_tells, alone=True),
        ]
    else:
        parts = [
            *_does_it_matter(count, spread),
            *_do_centers_pay(standings),
            *_where_controls_stand(standings),
            _does_searching_pay(winner, matters=_matters(spread)),
            _do_held_out_images_tell(tells, early_tells, alone=False),
        ]
    return tuple(part for part in parts if part)


def _does_it_matter(count: int, spread: Spread) -> tuple[str, str]:
    variance = (
        f"Over {count} combinations of layers and {spread.seeds} seeds, the combination accounts for "
        f"{100 * spread.share:.0f} % of the variance of single runs (95 % interval {100 * spread.share_low:.0f} to "
        f"{100 * spread.share_high:.0f} %): a standard deviation of {spread.between:.2f} points against "
        f"{spread.noise:.2f} of single runs about their combination."
    )
    if not _matters(spread):
        answer = (
            "Which layers are taken cannot be told to matter; if it does, then by a standard deviation of at most "
            f"{spread.between_high:.2f} points."
        )
    elif spread.between < spread.noise:
        answer = "Which layers are taken matters, but less than the chance of a single run."
    else:
        answer = "Which layers are taken matters, more than the chance of a single run."
    return answer, variance


def _matters(spread: Spread) -> bool:
    return spread.between > 0 and (spread.p is None or spread.p < SURE)


def _do_centers_pay(standings: Sequence[Standing]) -> list[str]:
    """Return where the centers of the method stand, which clusters by k-means, and those of other clusterings."""
    centers = [each for each in standings if any(is_center(rule) for rule in each.rules)]
    own = [each for each in centers if metrics_of(each.rules)]
    others = [each for each in centers if each not in own]
    return [
        text
        for text in (
            _places("Cluster centers by k-means, the method,", own),
            _places("Those of other clusterings", others),
        )
        if text
    ]


def _places(who: str, centers: Sequence[Standing]) -> str:
    if not centers:
        return ""
    places = [100 * each.better_than for each in centers]
    better = sum(each.p is not None and each.p < SURE and each.gain > 0 for each in centers)
    worse = sum(each.p is not None and each.p < SURE and each.gain < 0 for each in centers)
    between = f"{min(places):.0f} to {max(places):.0f}" if len(centers) > 1 else f"{places[0]:.0f}"
    place = f"{who} are better than {between} % of the other combinations"
    if not better + worse:
        return f"{place}; that cannot be told from the average combination, so choosing them is not shown to pay."
    if len(centers) == 1:
        return f"{place}: {'better' if better else 'worse'} than the average combination beyond chance."
    counts = [f"{n} {'is' if n == 1 else 'are'} {word}" for n, word in ((better, "better"), (worse, "worse")) if n]
    choices = f"of {len(centers)} different choices {' and '.join(counts)}"
    return f"{place}: {choices} than the average combination beyond chance."


def _where_controls_stand(standings: Sequence[Standing]) -> list[str]:
    """Return the places of the rules that look at no similarity."""
    named = {
        "stage-ends": "stage ends",
        "uniform": "uniform layers",
        "all": "all layers",
        "last-only": "the last alone",
    }
    found = [
        f"{taken} {'beats' if rule == 'last-only' else 'beat'} {100 * each.better_than:.0f} %"
        for rule, taken in named.items()
        for each in standings
        if rule in each.rules
    ]
    parts = [f"Of the combinations, {', '.join(found)}."] if found else []
    drawn = [each.gain for each in standings for rule in each.rules if rule.startswith("random, seed")]
    if len(drawn) > 1:
        parts.append(
            f"The {len(drawn)} draws of the random rule lie {min(drawn):+.2f} to {max(drawn):+.2f} points from the "
            f"average combination, {sum(drawn) / len(drawn):+.2f} in the mean. Choosing at random is worth that "
            "average itself, so what is compared with these draws is compared with their luck as well."
        )
    return parts


def _does_searching_pay(winner: Winner | None, *, matters: bool) -> str:
    """Return what searching is worth; of layers that cannot be told to matter nothing is claimed beside that."""
    if winner is None or winner.low is None or winner.high is None:
        return ""
    sure = matters and (winner.low > 0 or winner.high < 0)
    pays = ("pays" if winner.low > 0 else "costs") if sure else "is not shown to pay"
    many = len(set(winner.chosen))
    which = "the combination that was chosen so" if many == 1 else f"the {many} combinations that were chosen so"
    return (
        f"Trying them all {pays}: what is best on held-out images of the other seeds is {winner.gain:+.2f} points "
        f"from the average combination on a seed it has not seen (95 % interval {winner.low:+.2f} to "
        f"{winner.high:+.2f} of {which}; a search on other seeds may choose others)."
    )


def _do_held_out_images_tell(tells: float | None, early: Mapping[int, float], *, alone: bool) -> str:
    if tells is None:
        return ""
    of = "of the same runs" if alone else "of another seed"
    each = [f"{value:.2f} after epoch {look}" for look, value in sorted(early.items())]
    earlier = f" ({' and '.join(each)})" if each else ""
    return (
        f"Held-out images rank the combinations as test images {of} do with a rank correlation of {tells:.2f}{earlier}"
        "; where the teacher was trained on the held-out images too, as published ones were, they may flatter some "
        "more than others."
    )
