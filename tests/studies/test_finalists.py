from __future__ import annotations

from dataclasses import replace

from keyhole.studies.finalists import CENTERS, GUESSES, SEARCHED, Finalist, comparisons_of
from keyhole.studies.plan import Comparison


def finalist(*metrics: str, searched: int = 0, guesses: tuple[str, ...] = ()) -> Finalist:
    kinds = [kind for kind, has in ((SEARCHED, searched), (CENTERS, metrics), (GUESSES, guesses)) if has]
    name = "; ".join([*metrics, *guesses, f"searched {searched}"])
    return Finalist(name, (name,), tuple(kinds), metrics, guesses)


def test_fresh_seeds_are_asked_for_each_metric_by_itself() -> None:
    r2, both, ends = finalist("r2_cca"), finalist("svcca", "consensus"), finalist(guesses=("stage-ends",))
    draws = [finalist(guesses=("random",)), replace(finalist(guesses=("random",)), name="another draw")]
    best = [finalist(searched=place) for place in (1, 2, 3)]
    names, found = [each.name for each in draws], tuple(each.name for each in best)
    asked = {each.name: each for each in comparisons_of([r2, both, ends, *draws, *best])}
    assert list(asked) == [
        "centers by r2_cca against stage-ends", "centers by r2_cca against these 2 random draws",
        "centers by r2_cca against searched", "centers by svcca and consensus against stage-ends",
        "centers by svcca and consensus against these 2 random draws",
        "centers by svcca and consensus against searched",
        "centers against guesses", "centers against searched", "searched against guesses",
    ]  # fmt: skip
    assert (asked["centers by r2_cca against stage-ends"].arms, ends.name) == ((r2.name,), "stage-ends; searched 0")
    assert asked["centers by r2_cca against stage-ends"].against == (ends.name,)
    assert asked["centers by r2_cca against these 2 random draws"].against == tuple(names)
    assert asked["centers by svcca and consensus against searched"].against == found
    assert asked["centers against guesses"].arms == (r2.name, both.name)
    assert asked["centers against guesses"].against == (ends.name, *names)


def test_a_combination_of_both_sides_counts_in_both() -> None:
    r2, other = finalist("r2_cca", searched=1, guesses=("stage-ends",)), finalist("svcca")
    second, draw = finalist(searched=2), finalist(guesses=("random",))
    asked = {each.name: (each.arms, each.against) for each in comparisons_of([r2, other, second, draw])}
    assert asked == {
        # stage ends themselves are not compared with stage ends
        "centers by r2_cca against this random draw": ((r2.name,), (draw.name,)),
        "centers by r2_cca against the rest of searched": ((r2.name,), (second.name,)),
        "centers by svcca against stage-ends": ((other.name,), (r2.name,)),
        "centers by svcca against this random draw": ((other.name,), (draw.name,)),
        "centers by svcca against searched": ((other.name,), (r2.name, second.name)),
        # centers that the search finds as well are not taken from them
        "centers against guesses": ((r2.name, other.name), (r2.name, draw.name)),
        "centers against searched": ((r2.name, other.name), (r2.name, second.name)),
        "searched against guesses": ((r2.name, second.name), (r2.name, draw.name)),
    }
    within = finalist("r2_cca"), finalist("svcca", guesses=("uniform",))
    (asked_last,) = [each for each in comparisons_of(within) if each.name.startswith("centers against")]
    assert asked_last == Comparison(
        "centers against guesses, which are among them", (within[0].name,), (within[1].name,)
    )
