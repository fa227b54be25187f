"""Where choices stand among all combinations of layers, what a layer is worth, and what trying them all finds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from keyhole.studies.variance import Spread, draw_true_values
from keyhole.studies.verdict import SAME, holm


@dataclass(frozen=True)
class Combination:
    """One combination over the seeds of a landscape.

    Attributes:
        layers: Its layers, in the order of depth.
        top1: On the test images after the last epoch, percent, one a seed.
        held_out: The same on the held-out images; empty where none were held out.
    """

    layers: tuple[str, ...]
    top1: tuple[float, ...]
    held_out: tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """Where one choice stands among all combinations.

    Attributes:
        names: The rules that choose it, or the arm that it is.
        layers: Its layers; empty for an arm that is none of the combinations.
        top1: Mean over the seeds, percent.
        gain: Points above the mean of all combinations on the same seeds: what it is worth to choose so, not blindly.
        low: Lower end of its 95 % interval; None with one seed, as for the next two.
        high: Its upper end.
        p: Probability of such a gain if it were none, corrected for the number of standings.
        rank: 1 for the best of all combinations by the mean; of an arm beside them, where it would come in.
        better_than: Share of the other combinations that are worse, 0 to 1; equals count half.
        better_low: Lower end of its 95 % interval, from draws of what each may truly be worth.
        better_high: Its upper end.
        rules: The rules among ``names``, and of an arm that it is the rule that chose it: what arms are called is the
            user's to say, and may be the name of a rule.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    top1: float
    gain: float
    low: float | None
    high: float | None
    p: float | None
    rank: int
    better_than: float
    better_low: float | None
    better_high: float | None
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Effect:
    """What one layer is worth: combinations with it minus combinations without it.

    Effects of all layers sum to nothing, as all combinations have as many: what one layer is worth is told against the
    average of the others, and one that is far below it lifts all others. So each is told without the strongest as well.

    Attributes:
        layer: The layer.
        by_seed: Difference of the two means, points, one a seed.
        mean: Their mean.
        low: Lower end of its 95 % interval; None with one seed, as for the next two.
        high: Its upper end.
        p: Probability of such a mean if it were none, corrected for the number of layers.
        apart: The same as ``mean`` among the combinations without the strongest layer; None for that one itself, and
            where nothing is left to compare.
        apart_low: Lower end of the 95 % interval of that; None with one seed.
        apart_high: Its upper end.
    """

    layer: str
    by_seed: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    apart: float | None = None
    apart_low: float | None = None
    apart_high: float | None = None


@dataclass(frozen=True)
class Winner:
    """What trying every combination finds, chosen on held-out images and judged on test images.

    Attributes:
        layers: The combination with the highest held-out mean over all seeds.
        top1: Its mean on the test images, percent. It was chosen by runs of these seeds, so this flatters it.
        fair: Mean test top-1 of the combinations chosen on the other seeds, each on the seed left out. With one seed
            the same as ``top1``.
        gain: ``fair`` above the mean of all combinations on the same seeds.
        low: Lower end of the 95 % interval of what the ``chosen`` ones are truly worth; that a search on other seeds
            may choose others is not in it. None with one seed, as for the next.
        high: Its upper end.
        highest: The highest mean on the test images, which nobody could have known.
        chosen: The combination chosen without each seed.
    """

    layers: tuple[str, ...]
    top1: float
    fair: float
    gain: float
    low: float | None
    high: float | None
    highest: float
    chosen: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mark:
    """What gets a standing.

    Attributes:
        names: The rules that choose it, or the arm that it is.
        layers: Its layers; empty for an arm that is none of the combinations.
        gaps: Of such an arm: points above the mean of all combinations, one a seed.
        top1: Of such an arm: mean over the seeds, percent.
        rules: As in :class:`Standing`.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    gaps: tuple[float, ...] = ()
    top1: float = 0.0
    rules: tuple[str, ...] = ()


def standings_of(
    combinations: Sequence[Combination], spread: Spread | None, marks: Sequence[Mark]
) -> tuple[Standing, ...]:
    """Return the standing of each mark, the best first; marks of other combinations are left out.

    Gains have the interval of Student's t with the noise of the whole table, which knows it far better than the few
    seeds of one row; places have that of :func:`keyhole.studies.variance.draw_true_values`.

    Args:
        combinations: The combinations.
        spread: Of their table; None with one seed.
        marks: What gets a standing.
    """
    means = np.array([statistics.fmean(each.top1) for each in combinations])
    place = {each.layers: i for i, each in enumerate(combinations)}
    drawn = None if spread is None else draw_true_values(means, spread)
    found = [
        _standing_of(mark, place.get(mark.layers), means, spread, drawn)
        for mark in marks
        if not mark.layers or mark.layers in place
    ]
    corrected = holm([each.p for each in found])
    ordered = [replace(each, p=p) for each, p in zip(found, corrected, strict=True)]
    return tuple(sorted(ordered, key=lambda each: (each.rank, each.names)))


def _standing_of(
    mark: Mark,
    row: int | None,
    means: Float[np.ndarray, " rows"],
    spread: Spread | None,
    drawn: Float[np.ndarray, "d rows"] | None,
) -> Standing:
    """Return the standing of one of the combinations, or of an arm beside them where ``row`` is None."""
    level = float(means.mean())
    gain = float(means[row]) - level if row is not None else statistics.fmean(mark.gaps)
    others = np.delete(means, row) if row is not None else means
    low = high = p = better_low = better_high = None
    if spread is not None and drawn is not None:
        count = len(means)
        factor = (1 - 1 / count) / spread.seeds if row is not None else (1 + 1 / count) / len(mark.gaps)
        half = spread.half_width(factor)
        low, high, p = gain - half, gain + half, spread.probability(gain, factor)
        if row is not None:
            own, rest = drawn[:, row], np.delete(drawn, row, axis=1)
        else:
            noise = spread.noise / np.sqrt(len(mark.gaps))
            own = level + gain + noise * np.random.default_rng([0, 8]).standard_normal(len(drawn))
            rest = drawn
        worse = (rest < own[:, None]).mean(axis=1) + (rest == own[:, None]).mean(axis=1) / 2
        better_low, better_high = (float(end) for end in np.quantile(worse, (0.025, 0.975)))
    above = others - (level + gain)
    equal = np.abs(above) < SAME
    return Standing(
        names=mark.names,
        layers=mark.layers,
        top1=float(means[row]) if row is not None else mark.top1,
        gain=gain,
        low=low,
        high=high,
        p=p,
        rank=1 + int((~equal & (above > 0)).sum()),
        better_than=float((~equal & (above < 0)).mean() + equal.mean() / 2),
        better_low=better_low,
        better_high=better_high,
        rules=mark.rules,
    )


def effects_of(
    layers: Sequence[tuple[str, ...]], top1: Float[np.ndarray, "rows seeds"], spread: Spread | None
) -> tuple[Effect, ...]:
    """Return what each layer is worth, in the order of depth; a layer that is in all of them or in none has no effect.

    Where all combinations are tried, every layer stands beside the others as often, and the noise of an effect is that
    of single runs alone. Of a part, in which some layers come together more often, the differences tell nothing.

    Args:
        layers: The combinations; all that there are, but for those that diverged.
        top1: Percent, one row a combination.
        spread: Of that table; None with one seed.
    """
    names = sorted({name for combo in layers for name in combo}, key=lambda name: _depth(name, layers))
    inside = {name: np.array([name in combo for combo in layers]) for name in names}
    found = []
    for name, with_it in inside.items():
        if (seen := _with_and_without(top1, with_it, ~with_it, spread)) is not None:
            by_seed, factor = seen
            mean = float(by_seed.mean())
            low, high = _ends(mean, factor, spread)
            p = None if spread is None else spread.probability(mean, factor)
            found.append(Effect(name, tuple(by_seed.tolist()), mean, low, high, p))
    corrected = holm([each.p for each in found])
    effects = [replace(each, p=p) for each, p in zip(found, corrected, strict=True)]
    strongest = max(effects, key=lambda each: abs(each.mean)).layer if effects else ""
    for k, each in enumerate(effects):
        if each.layer != strongest:
            others = ~inside[strongest]
            seen = _with_and_without(top1, others & inside[each.layer], others & ~inside[each.layer], spread)
            if seen is not None:
                apart = float(seen[0].mean())
                low, high = _ends(apart, seen[1], spread)
                effects[k] = replace(each, apart=apart, apart_low=low, apart_high=high)
    return tuple(effects)


def _with_and_without(
    top1: Float[np.ndarray, "rows seeds"],
    first: Bool[np.ndarray, " rows"],
    second: Bool[np.ndarray, " rows"],
    spread: Spread | None,
) -> tuple[Float[np.ndarray, " seeds"], float] | None:
    """Return the difference of the means of some rows and of others on each seed, and how many times the noise it has.

    None where either side is empty.
    """
    if not first.any() or not second.any():
        return None
    factor = float(1 / first.sum() + 1 / second.sum()) / (1 if spread is None else spread.seeds)
    return top1[first].mean(axis=0) - top1[second].mean(axis=0), factor


def _ends(value: float, factor: float, spread: Spread | None) -> tuple[float | None, float | None]:
    """Return the ends of the 95 % interval of a sum of values; None with one seed."""
    if spread is None:
        return None, None
    half = spread.half_width(factor)
    return value - half, value + half


def additive_share(layers: Sequence[tuple[str, ...]], means: Float[np.ndarray, " rows"]) -> float | None:
    """Return how much of the variance of combinations a sum over their layers explains; the rest is company, or noise.

    It is adjusted for the number of layers (adjusted R2), so that values by chance give 0 in the mean.

    Args:
        layers: The combinations.
        means: Of each over the seeds; the noise that is left in them counts as unexplained.

    Returns:
        At most 1; below 0 where a sum explains less than chance would. None where all are the same, or where there are
        no more combinations than layers, which a sum then fits whatever they are.

    Example:
        >>> layers = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
        >>> round(additive_share(layers, np.array([3.0, 5.0, 9.0, 6.0, 10.0, 12.0])), 6)
        1.0
    """
    names = sorted({name for combo in layers for name in combo})
    design = np.array([[1.0, *(name in combo for name in names)] for combo in layers])
    about = means - means.mean()
    fitted, _, rank, _ = np.linalg.lstsq(design, about, rcond=None)
    total, free = float((about**2).sum()), len(layers) - int(rank)
    if not total > 0 or free < 1:
        return None
    left = float(((about - design @ fitted) ** 2).sum())
    return 1 - left / total * (len(layers) - 1) / free


def _depth(name: str, layers: Sequence[tuple[str, ...]]) -> tuple[int, int]:
    """Return a key that sorts layers by depth: how often one stands behind another in a combination, and in front."""
    behind = len({other for combo in layers if name in combo for other in combo[: combo.index(name)]})
    before = len({other for combo in layers if name in combo for other in combo[combo.index(name) + 1 :]})
    first = next(i for i, combo in enumerate(layers) if name in combo)
    return behind - before, first


def winner_of(
    layers: Sequence[tuple[str, ...]],
    top1: Float[np.ndarray, "rows seeds"],
    held_out: Float[np.ndarray, "rows seeds"],
    spread: Spread | None,
) -> Winner:
    """Return what trying all of them finds; with several seeds each choice is judged on the seed it has not seen.

    The interval is that of the combinations chosen here, on new seeds.

    Args:
        layers: The combinations.
        top1: On the test images, percent, one row a combination.
        held_out: The same on held-out images, which choose.
        spread: Of ``top1``; None with one seed.
    """
    rows, seeds = top1.shape
    best = int(held_out.mean(axis=1).argmax())
    chosen = [
        int(np.delete(held_out, seed, axis=1).mean(axis=1).argmax()) if seeds > 1 else best for seed in range(seeds)
    ]
    fair = float(np.mean([top1[row, seed] for seed, row in enumerate(chosen)]))
    gain = fair - float(top1.mean())
    half = None if spread is None else spread.half_width((1 - 1 / rows) / seeds)
    return Winner(
        layers=layers[best],
        top1=float(top1[best].mean()),
        fair=fair,
        gain=gain,
        low=None if half is None else gain - half,
        high=None if half is None else gain + half,
        highest=float(top1.mean(axis=1).max()),
        chosen=tuple(layers[row] for row in chosen),
    )
