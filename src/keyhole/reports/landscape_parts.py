"""What a report says of a landscape: all combinations of layers, those that rules take, and what a search finds."""

from __future__ import annotations

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
)
from keyhole.studies.landscape import Landscape
from keyhole.studies.replay import Replayed
from keyhole.studies.standings import Standing


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
        (_short(standing.names), standing.layers)
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


def _short(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _noteworthy(standing: Standing) -> bool:
    return any(not name.startswith("random") and "," not in name for name in standing.names)


def _numbers(landscape: Landscape) -> Html:
    spread = landscape.spread
    rows = [["combinations", str(len(landscape.combinations))], ["mean top-1, %", f"{landscape.mean:.2f}"]]
    if landscape.left_out:
        rows.append(["combinations left out: not finished on these seeds, or diverged", str(landscape.left_out)])
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
    if landscape.held_out_tells is not None:
        rows.append(["rank correlation of held-out and test images", f"{landscape.held_out_tells:.2f}"])
    how = (
        "Parts of the spread come from a two-way analysis of variance, combinations by seeds; a seed that is good for "
        "all of them is taken out. The share is the intraclass correlation ICC(3, 1) of Shrout and Fleiss (1979) with "
        "its interval from the F distribution. Intervals are 95 %."
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
            ", ".join(each.names),
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
    heads = ("points", "95 % interval", "p, corrected")
    rows = [
        [
            code(each.layer),
            f"{each.mean:+.2f}",
            NOTHING if each.low is None or each.high is None else f"{each.low:+.2f} to {each.high:+.2f}",
            _probability(each.p),
        ]
        for each in landscape.effects
    ]
    drawn = figures.intervals(
        [(each.layer, each.mean, each.low, each.high) for each in landscape.effects],
        "Mean of the combinations with a layer minus those without it",
    )
    sure = [each for each in landscape.effects if each.p is not None and each.p < 0.05]
    told = (
        f"Mean of the combinations with a layer minus mean of those without it, with its 95 % interval. "
        f"{len(sure)} of {plural(len(landscape.effects), 'layer')} differ from none beyond chance (Holm-corrected)."
    )
    columns = [Column("with the layer", number=False), *(Column(head) for head in heads)]
    return join([table(columns, rows), figure(drawn, told)])


def _searches(landscape: Landscape) -> Html:
    winner = landscape.winner
    if winner is None:
        return Html("")
    best = (
        f"Best on the held-out images: {', '.join(winner.layers)}, {winner.top1:.2f} % on the test images of the seeds "
        "that chose it, which flatters it"
    )
    if winner.low is None or winner.high is None:
        told = f"{best}; a second seed would tell by how much."
    else:
        told = (
            f"{best}. Chosen on the other seeds and judged on the seed left out, a search of everything reaches "
            f"{winner.fair:.2f} %: {winner.gain:+.2f} points from the mean of all (95 % interval {winner.low:+.2f} to "
            f"{winner.high:+.2f}). The highest mean on the test images is {winner.highest:.2f} %, which nobody could "
            "have known."
        )
    drawn = [_curve(landscape), _replays(landscape)] if landscape.replays else []
    return join([paragraph(told), *_at_equal_seconds(landscape), *drawn])


def _at_equal_seconds(landscape: Landscape) -> list[Html]:
    """Return what a search has for the seconds of the look that tells the centers."""
    if landscape.look_s is None or not landscape.seconds_a_cell or landscape.seconds_a_pass is None:
        return []
    alone = landscape.seconds_a_pass + landscape.seconds_a_cell
    if landscape.look_s >= alone:
        have = f"{(landscape.look_s - landscape.seconds_a_pass) / landscape.seconds_a_cell:.1f} students to the end"
    else:
        have = f"{100 * landscape.look_s / alone:.0f} % of one student, so a search cannot have begun to compare"
    told = (
        f"At equal seconds: the one look that told what every rule takes took {duration(landscape.look_s)}; for that, "
        f"training here reaches {have}."
    )
    return [paragraph(told)]


def _curve(landscape: Landscape) -> Html:
    lines = [
        (method, [(each.cells, each.gain, each.low, each.high) for each in landscape.replays if each.method == method])
        for method in dict.fromkeys(each.method for each in landscape.replays)
    ]
    marks = [(_short(each.names), each.gain) for each in landscape.standings if each.layers and _noteworthy(each)]
    drawn = figures.costs(lines, _thinned(marks), "What a search finds against what it costs")
    told = (
        "Searches replayed over the held-out accuracies logged here, many times from other draws; what each found is "
        "judged on the test images of the seeds that it did not see. Bands hold four of five repetitions. Level lines "
        "are choices that train no student: they cost one look at some images."
    )
    return figure(drawn, told)


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
    if landscape.seconds_a_cell is None or landscape.seconds_a_pass is None:
        return NOTHING
    epochs = search.cost.student_epochs / search.cells
    return duration(search.cells * landscape.seconds_a_cell + search.cost.passes / epochs * landscape.seconds_a_pass)
