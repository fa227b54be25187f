"""What a report says of a landscape: all combinations of layers, those that rules take, and what a search finds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from keyhole.reports import figures
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    code,
    duration,
    figure,
    join,
    paragraph,
    plural,
    section,
    table,
    words,
)
from keyhole.studies.landscape import Landscape
from keyhole.studies.replay import Match, Pace, Replayed
from keyhole.studies.rules import in_short
from keyhole.studies.standings import Standing
from keyhole.studies.verdict import SURE


def landscape_parts(landscape: Landscape) -> Html:
    """Return the sections of a report on one landscape."""
    return join(
        [
            section(f"All combinations of layers: {landscape.name}", _map(landscape), _numbers(landscape)),
            section("Where choices stand", _standings(landscape)),
            section("What each layer is worth", _effects(landscape)),
            section("What a search would find, and for how much", _searches(landscape)),
        ]
    )


def _map(landscape: Landscape) -> Html:
    ordered = sorted(landscape.combinations, key=lambda each: statistics.fmean(each.top1))
    marks = [
        (_short(standing), standing.layers)
        for standing in landscape.standings
        if standing.layers and _noteworthy(standing)
    ]
    place = {each.layers: i for i, each in enumerate(ordered)}
    drawn = figures.ordered(
        [each.top1 for each in ordered],
        [(name, place[layers]) for name, layers in marks if layers in place],
        "Top-1 of every combination of layers, from the lowest to the highest mean",
    )
    return figure(drawn, "Each combination is one upright line from its lowest to its highest seed, with its mean.")


def _told(standing: Standing) -> tuple[list[str], list[str]]:
    """Return the rules of a standing in short, and its arms, whose names are the user's."""
    rules = [name for name in standing.names if name in standing.rules]
    return in_short(rules), [name for name in standing.names if name not in standing.rules]


def _short(standing: Standing) -> str:
    """Return the names of a standing for a figure: how many metrics each clustering has, not which."""
    of_rules, arms = _told(standing)
    rules = [*(re.sub(r"\((.*?)\)", _counted, rule) for rule in of_rules), *arms]
    plain = [rule for rule in rules if not rule.endswith((", last", "informative"))] or rules  # after centers
    more = f" and {len(plain) - 2} more" if len(plain) > 2 else ""
    return (", ".join(plain[:2]) if more else " and ".join(plain)) + more


def _counted(metrics: re.Match[str]) -> str:
    return f"by {metrics[1].count(',') + 1} metrics"


def _noteworthy(standing: Standing) -> bool:
    return any(not name.startswith("random") and "," not in name for name in standing.rules) or bool(_told(standing)[1])


def _numbers(landscape: Landscape) -> Html:
    spread, there = landscape.spread, len(landscape.combinations)
    seeds = " and ".join(map(str, landscape.seeds))
    rows = [[f"combinations that have come to the end on seed{'' if len(landscape.seeds) == 1 else 's'} {seeds}",
             f"{there} of {there + landscape.left_out}"]]  # fmt: skip
    if not landscape.whole:
        how = (
            "Combinations come to the end in the order of their layers, so a part of them would take what one layer is "
            "worth for what another is. The rest is told when all of them have come to the end with one seed."
        )
        return join([table([Column("", number=False), Column("")], rows), paragraph(how, "soft")])
    if landscape.left_out:
        rows.append(["combinations left out: diverged", str(landscape.left_out)])
    rows.append(["mean top-1, %", f"{landscape.mean:.2f}"])
    if (gap := landscape.over_baseline) is not None:
        ends = "" if gap.low is None or gap.high is None else f" ({gap.low:+.2f} to {gap.high:+.2f})"
        rows.append([f"mean of all minus {gap.against}, points", f"{gap.mean:+.2f}{ends}"])
    if spread is not None:
        rows += [
            [
                "standard deviation between combinations, points",
                f"{spread.between:.2f} ({spread.between_low:.2f} to {spread.between_high:.2f})",
            ],
            ["standard deviation of one run about its combination, points", f"{spread.noise:.2f}"],
            [
                "share of the combination in the variance of single runs",
                f"{100 * spread.share:.0f} % ({100 * spread.share_low:.0f} to {100 * spread.share_high:.0f} %)",
            ],
            ["p of such differences if all combinations were the same", _probability(spread.p)],
        ]
    if landscape.seeds_agree is not None:
        rows.append(["rank correlation between two seeds", f"{landscape.seeds_agree:.2f}"])
    of = "of the same run" if spread is None else "of another seed"
    for epoch, value in landscape.early_tells.items():
        rows.append([f"rank correlation of held-out images after epoch {epoch} and test images {of} after the last",
                     f"{value:.2f}"])  # fmt: skip
    if landscape.held_out_tells is not None:
        rows.append([f"rank correlation of held-out images and test images {of}", f"{landscape.held_out_tells:.2f}"])
    if landscape.additive is not None:
        rows.append(["share of the combinations' variance that a sum over layers explains (adjusted R2)",
                     f"{100 * max(0.0, landscape.additive):.0f} %"])  # fmt: skip
    how = (
        "Parts of the spread come from a two-way analysis of variance, combinations by seeds; a seed that is good for "
        "all of them is taken out. The share is the intraclass correlation ICC(3, 1) of Shrout and Fleiss (1979) with "
        "its interval from the F distribution. The difference to the baseline has the noise of the whole table, as if "
        "a run of the baseline had as much. Intervals are 95 %."
    )
    return join([table([Column("", number=False), Column("")], rows), paragraph(how, "soft")])


def _probability(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _standings(landscape: Landscape) -> Html:
    if not landscape.standings:
        return Html("")
    heads = ("top-1, %", "above the mean of all, points", "p, corrected", "rank", "better than, % of the others")
    rows = [
        [
            "; ".join([*_told(each)[0], *_told(each)[1]]),
            join([code(name) for name in each.layers], " ") if each.layers else "none of the combinations",
            f"{each.top1:.2f}",
            f"{each.gain:+.2f}{_between(each.low, each.high, '+.2f')}",
            _probability(each.p),
            f"{each.rank}",
            f"{100 * each.better_than:.0f}{_between(each.better_low, each.better_high, '.0f', 100)}",
        ]
        for each in landscape.standings
    ]
    columns = [Column("chosen by", number=False), Column("layers", number=False), *(Column(head) for head in heads)]
    how = (
        "The mean of all combinations is what choosing blindly gives. Gains have the interval of Student's t with the "
        "noise of the whole table, probabilities are corrected for their number by Holm's procedure, and the intervals "
        "of places come from draws of what each combination may truly be worth: its mean over the seeds, drawn towards "
        "the mean of all by the part that is noise."
    )
    return join([table(columns, rows), paragraph(how, "soft")])


def _between(low: float | None, high: float | None, form: str, times: float = 1) -> str:
    return "" if low is None or high is None else f" ({low * times:{form}} to {high * times:{form}})"


def _effects(landscape: Landscape) -> Html:
    if not landscape.effects:
        return Html("")
    strongest = max(landscape.effects, key=lambda each: abs(each.mean)).layer
    heads = ("points", "95 % interval", "p, corrected", f"without {strongest}, points")
    rows = [
        [
            code(each.layer),
            f"{each.mean:+.2f}",
            NOTHING if each.low is None or each.high is None else f"{each.low:+.2f} to {each.high:+.2f}",
            _probability(each.p),
            NOTHING if each.apart is None else f"{each.apart:+.2f}{_between(each.apart_low, each.apart_high, '+.2f')}",
        ]
        for each in landscape.effects
    ]
    drawn = figures.intervals(
        [(each.layer, each.mean, each.low, each.high) for each in landscape.effects],
        "Mean of the combinations with a layer minus those without it",
    )
    caption = "Mean of the combinations with a layer minus mean of those without it" + (
        ", with its 95 % interval. " if landscape.spread is not None else ". "
    )
    if landscape.spread is not None:
        sure = [each for each in landscape.effects if each.p is not None and each.p < SURE]
        caption += (
            f"{len(sure)} of {plural(len(landscape.effects), 'layer')} differ from the average of the others beyond "
            "chance (Holm-corrected). "
        )
    own = " with its own 95 % interval," if landscape.spread is not None else ""
    how = (
        "All combinations have as many layers, so a layer is told against the average of the others, and one that is "
        f"far from them moves them all the other way. Each is told as well{own} among the combinations without "
        f"{strongest}, the strongest. Where a layer is learnt in the student depends on those it comes with, so what "
        "it is worth does as well."
    )
    columns = [Column("with the layer", number=False), *(Column(head) for head in heads)]
    return join([table(columns, rows), figure(drawn, caption.strip()), paragraph(how, "soft")])


def _searches(landscape: Landscape) -> Html:
    winner = landscape.winner
    if winner is None:
        return Html("")
    best = (
        f"Best on the held-out images: {', '.join(winner.layers)}, {winner.top1:.2f} % on the test images of the seeds "
        "that chose it, which flatters it"
    )
    if winner.low is None or winner.high is None:
        text = f"{best}; a second seed would tell by how much."
    else:
        text = (
            f"{best}. Chosen on the other seeds and judged on the seed left out, a search of everything reaches "
            f"{winner.fair:.2f} %: {winner.gain:+.2f} points from the mean of all (95 % interval {winner.low:+.2f} to "
            f"{winner.high:+.2f} of the {plural(len(set(winner.chosen)), 'combination')} chosen so; that a search on "
            "other seeds may choose others is not in it). The highest mean on the test images is "
            f"{winner.highest:.2f} %, which nobody could have known."
        )
    drawn = [_curve(landscape), _replays(landscape)] if landscape.replays else []
    return join([paragraph(text), *_at_equal_seconds(landscape), *drawn])


def _at_equal_seconds(landscape: Landscape) -> list[Html]:
    """Return what centers are worth beside searches that take as long."""
    pace = _pace(landscape)
    if landscape.look_s is None or pace is None:
        return []
    alone, looks = pace.alone_s, landscape.centers_s.values()
    if looks:
        text = f"a look for the centers of one metric takes {_from_to(min(looks), max(looks))}"
    else:
        text = f"a look for all rules together takes {duration(landscape.look_s)} (for one metric it was not timed)"
    longest = max(looks, default=landscape.look_s)
    parts = [
        paragraph(
            f"At equal seconds: {text}, at most {100 * longest / alone:.1f} % of the {duration(alone)} that one "
            "student takes alone to the end, with the teacher's passes."
        )
    ]
    if landscape.matches:
        heads = (
            "centers by",
            "time",
            "centers, points",
            "search",
            "combinations",
            "finds, points",
            "centers minus that",
        )
        columns = [Column(head, number=head not in ("centers by", "search")) for head in heads]
        rows = [
            _matched(match, before)
            for before, match in zip((None, *landscape.matches), landscape.matches, strict=False)
        ]
        parts += [table(columns, rows), paragraph(_HOW_MATCHED, "soft"), paragraph(_looks(landscape), "soft")]
    return parts


def _looks(landscape: Landscape) -> str:
    """Return when each search looks, and what a look tells."""
    looks = {each.method: each.looks for each in landscape.replays if len(each.looks) > 1}
    if not looks:
        return "In so few epochs halving looks after the last one alone, as random search does."
    told = "; ".join(f"{method} looks after epochs {words(list(map(str, at)))}" for method, at in looks.items())
    return (
        f"{told[:1].upper()}{told[1:]}. Random search trains all that it draws to the end. What a look is worth to a "
        "search is the rank correlation above: where it is near 0 or below, a search that looks there does not keep "
        "the better ones."
    )


_HOW_MATCHED = (
    "Time runs until there is a student trained to the end: of centers, their look and that student; of a search, all "
    "that it trains, as many combinations as the time allows (it begins with so many; a single one is "
    "taken blindly, which gains 0). Centers gain no more with more time. Points are above the mean of all "
    "combinations, of searches on the seeds that they did not see. Differences have 95 % intervals by Student's t with "
    "the noise of the whole table, each for itself, and of the combinations that searches chose here. The time of "
    "cohorts is parted between the teacher and its students by multiply-accumulates and by the speeds of either that "
    "were measured once, on one processor, so searches that share passes less are timed less surely."
)


def _matched(match: Match, before: Match | None) -> list[str]:
    """Return a row; what the row above says as well is left out."""
    choice = None if before is None else before.choice
    seconds = None if before is None or choice != match.choice else before.seconds
    return [
        "" if choice == match.choice else ", ".join(match.choice),
        "" if seconds == match.seconds else duration(match.seconds),
        "" if seconds == match.seconds else f"{match.choice_gain:+.2f}",
        match.method,
        str(match.combinations),
        f"{match.search_gain:+.2f}",
        f"{match.difference:+.2f}{_between(match.low, match.high, '+.2f')}",
    ]


def _from_to(low: float, high: float) -> str:
    first, last = duration(low), duration(high)
    return first if first == last else f"{first} to {last}"


def _curve(landscape: Landscape) -> Html:
    pace = _pace(landscape)

    def cost(search: Replayed) -> float:
        return search.cells if pace is None else pace.seconds(search.cost) / pace.alone_s

    lines = [
        (method, [(cost(each), each.gain, each.low, each.high) for each in landscape.replays if each.method == method])
        for method in dict.fromkeys(each.method for each in landscape.replays)
    ]
    marks = [(_short(each), each.gain) for each in landscape.standings if each.layers and _noteworthy(each)]
    drawn = figures.costs(lines, _thinned(marks), "What a search finds against what it costs")
    unit = (
        "Costs are student epochs, without the teacher's passes. "
        if pace is None
        else f"Costs are seconds, the teacher's passes among them, in units of the {duration(pace.alone_s)} that one "
        "student takes alone. "
    )
    judges = "the same seed, which flatters it" if landscape.spread is None else "the seeds that it did not see"
    caption = (
        "Searches replayed over the held-out accuracies logged here; what each finds is judged on the test images of "
        f"{judges}. {unit}Bands hold four of five of what they find. Level "
        "lines are choices that train no student to choose: they cost one look at some images, and their student."
    )
    return figure(drawn, caption)


def _pace(landscape: Landscape) -> Pace | None:
    if not landscape.replays or landscape.seconds_a_cell is None or landscape.seconds_a_pass is None:
        return None
    first = landscape.replays[0]
    return Pace(landscape.seconds_a_cell, landscape.seconds_a_pass, round(first.cost.student_epochs / first.cells))


def _thinned(marks: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return marks without those that would stand on another's line."""
    found: list[tuple[str, float]] = []
    for name, value in sorted(marks, key=lambda mark: -mark[1]):
        if not found or abs(found[-1][1] - value) > 0.03:
            found.append((name, value))
    return found[:8]


def _replays(landscape: Landscape) -> Html:
    replays = landscape.replays
    heads = ["combinations", "students to the end", "teacher passes", "time here", "gain, points", "four of five"]
    rows = [
        [
            each.method,
            str(each.combinations),
            f"{each.cells:.1f}",
            str(each.cost.passes),
            _time(each, landscape),
            f"{each.gain:+.2f}",
            f"{each.low:+.2f} to {each.high:+.2f}",
        ]
        for each in replays
    ]
    return table([Column("search", number=False), *(Column(head) for head in heads)], rows)


def _time(search: Replayed, landscape: Landscape) -> str:
    """Return what a search takes here: the steps of its students, and the passes of the teacher that it needs."""
    pace = _pace(landscape)
    return NOTHING if pace is None else duration(pace.seconds(search.cost))
