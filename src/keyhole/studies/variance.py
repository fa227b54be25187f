"""How much of a spread is due to what was tried, and how much to the seed: a two-way analysis of variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from keyhole.errors import ShapeError

LEVEL = 0.95  # of all intervals
_DRAWS = 4000


@dataclass(frozen=True)
class Spread:
    """Parts of the spread of a table with one row a combination and one column a seed, in the unit of its values.

    The model is value = mean + row + column + noise. Columns are taken out: a seed that is good for all rows is no
    noise here, as rows are compared within a seed.

    Attributes:
        rows: Combinations.
        seeds: Seeds.
        between: Standard deviation of the true values of the rows, 0 where the rows differ less than noise explains.
        between_low: Lower end of its 95 % interval.
        between_high: Its upper end.
        noise: Standard deviation of one value about the true value of its row, seeds taken out.
        share: Intraclass share of the rows in the variance of single runs, 0 to 1.
        share_low: Lower end of its 95 % interval.
        share_high: Its upper end.
        p: Probability of rows so different if all were the same; None where there is no noise at all.
    """

    rows: int
    seeds: int
    between: float
    between_low: float
    between_high: float
    noise: float
    share: float
    share_low: float
    share_high: float
    p: float | None

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the noise."""
        return (self.rows - 1) * (self.seeds - 1)

    def half_width(self, factor: float) -> float:
        """Return half the 95 % interval of a sum of values whose variance is ``factor`` times that of the noise."""
        from scipy.stats import t

        return float(t.ppf((1 + LEVEL) / 2, self.freedom)) * self.noise * math.sqrt(factor)

    def probability(self, value: float, factor: float) -> float | None:
        """Return the two-sided probability of such a sum if its true value were 0; None where there is no noise."""
        from scipy.stats import t

        error = self.noise * math.sqrt(factor)
        return float(2 * t.sf(abs(value) / error, self.freedom)) if error > 0 else None


def spread_of(values: Float[np.ndarray, "rows seeds"]) -> Spread | None:
    """Return the parts of the spread of a table; None with fewer than two rows or seeds, which tell of no noise.

    Noise and the part of the rows are the mean squares of the two-way layout without repetition; the share is the
    intraclass correlation of single values for consistency, and its interval that of the F distribution. Estimates
    below 0 are given as 0.

    Args:
        values: One row a combination, one column a seed; nothing missing.

    Raises:
        ShapeError: It is no table.

    Reference:
        Shrout and Fleiss (1979), Intraclass correlations: uses in assessing rater reliability, Psychological
        Bulletin 86: ICC(3, 1) and its interval.

    Example:
        >>> found = spread_of(np.array([[60.0, 61.0], [62.0, 63.0], [64.0, 65.2]]))
        >>> round(found.between, 2), round(found.noise, 2), round(found.share, 3)
        (2.05, 0.08, 0.998)
    """
    from scipy.stats import f

    if values.ndim != 2:
        raise ShapeError(f"The values have {values.ndim} dimensions; expected rows and seeds.")
    rows, seeds = values.shape
    if rows < 2 or seeds < 2:
        return None
    by_row, by_seed = values.mean(axis=1), values.mean(axis=0)
    residual = values - by_row[:, None] - by_seed[None, :] + values.mean()
    within = float((residual**2).sum()) / ((rows - 1) * (seeds - 1))
    across = seeds * float(by_row.var(ddof=1))
    if within <= 1e-12 * max(across, 1e-300):
        between, share = math.sqrt(across / seeds), float(across > 0)
        return Spread(rows, seeds, between, between, between, 0.0, share, share, share, None)
    ratio, freedom = across / within, (rows - 1, (rows - 1) * (seeds - 1))
    low = ratio / float(f.ppf((1 + LEVEL) / 2, *freedom))
    high = ratio * float(f.ppf((1 + LEVEL) / 2, *freedom[::-1]))

    def deviation(times: float) -> float:
        return float(math.sqrt(within * max(0.0, times - 1) / seeds))

    def part(times: float) -> float:
        return float(max(0.0, (times - 1) / (times + seeds - 1)))

    return Spread(
        rows, seeds, deviation(ratio), deviation(low), deviation(high), math.sqrt(within),
        part(ratio), part(low), part(high), float(f.sf(ratio, *freedom)),
    )  # fmt: skip


def draw_true_values(
    means: Float[np.ndarray, " rows"], spread: Spread, *, seed: int = 0
) -> Float[np.ndarray, "d rows"]:
    """Return draws of what the rows may truly be worth, given their means over the seeds.

    Each mean is drawn towards the mean of all rows by the part of it that is noise, and varies about that by what noise
    leaves open. Ranks of such draws tell how sure a rank is; a rank of the means alone looks surer than it is.

    Args:
        means: Mean of each row over the seeds.
        spread: Of the same table.
        seed: Of the draws.

    Reference:
        Goldstein and Spiegelhalter (1996), League tables and their limitations, Journal of the Royal Statistical
        Society A 159.
    """
    noise = spread.noise**2 / spread.seeds
    total = spread.between**2 + noise
    kept = spread.between**2 / total if total > 0 else 1.0
    center = float(means.mean())
    random = np.random.default_rng([seed, 7])
    drawn = random.standard_normal((_DRAWS, len(means)))
    open_part = max(math.sqrt(kept * noise), 1e-9 * math.sqrt(noise))  # where all are alike, any order is as likely
    return np.asarray(center + kept * (means - center) + open_part * drawn)


def rank_correlation(a: Float[np.ndarray, " rows"], b: Float[np.ndarray, " rows"]) -> float | None:
    """Return Spearman's rank correlation, -1 to 1; None with fewer than two rows, or where all of one are the same.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([5.0, 6.0, 7.0]))
        1.0
    """
    from scipy.stats import rankdata

    ranks = [rankdata(each) for each in (a, b)]
    if len(a) < 2 or any(np.ptp(each) == 0 for each in ranks):
        return None
    return round(float(np.corrcoef(*ranks)[0, 1]), 12)
