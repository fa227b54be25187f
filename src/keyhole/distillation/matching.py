"""Which layer of the student learns from which hint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from keyhole.distillation.kinds import HintPair
from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.models.layers import Layer, stage_ends

MATCHES = ("order", "size", "similarity", "name")


def match_hints(
    hints: Sequence[str],
    teacher: Sequence[Layer],
    student: Sequence[Layer],
    *,
    how: str = "order",
    similarities: Float[np.ndarray, "l m"] | None = None,
) -> tuple[HintPair, ...]:
    """Return the student layer for each hint.

    Args:
        hints: The chosen layers of the teacher, in the order in which they shall be given.
        teacher: All candidate layers of the teacher, in the order of depth.
        student: All candidate layers of the student, in the order of depth.
        how: ``order``: hint i goes to the end of the student's stage i when there are as many hints as stages,
            whatever their sizes; else hints go to student layers of about the same relative depth, never crossing,
            each to another layer while there are enough. ``size``: each hint goes to the layer whose height and width
            are nearest to its own, and among those to the one nearest in relative depth. ``similarity``: hints go to
            the student layers that are most alike to them in total, deeper hints never to earlier layers, each to
            another layer while there are enough; the order given plays no part. ``name``: each hint goes to the
            student's layer of the same name, for a student that is its teacher's own network, smaller or not.
        similarities: Of each layer of the teacher with each layer of the student, for ``similarity``.

    Raises:
        SettingError: There is no hint, the student has no layer, or none of a hint's name; or there are no
            similarities.
        ShapeError: The similarities do not fit the layers.
        UnknownNameError: A hint is no layer of the teacher.

    Example:
        >>> from keyhole.models.layers import layers
        >>> from keyhole.models.zoo import build
        >>> teacher, student = layers(build("resnet56", classes=10)), layers(build("resnet8", classes=10))
        >>> [pair.student for pair in match_hints(["layer1.4", "layer2.4", "layer3.4"], teacher, student)]
        ['layer1.0', 'layer2.0', 'layer3.0']
    """
    if how not in MATCHES:
        raise unknown_name("match", how, MATCHES)
    if not hints or not student:
        raise SettingError(
            f"There are {len(hints)} hints and {len(student)} student layers; expected at least one each."
        )
    position = {layer.name: i for i, layer in enumerate(teacher)}
    for name in hints:
        if name not in position:
            raise unknown_name("hint layer", name, position, see="'keyhole layers' lists the candidates.")
    depths = [(position[name] + 1) / len(teacher) for name in hints]
    if how == "size":
        targets = [
            _nearest_size(teacher[position[name]], depth, student) for name, depth in zip(hints, depths, strict=True)
        ]
    elif how == "name":
        targets = [_same_name(name, student) for name in hints]
    elif how == "similarity":
        if similarities is None:
            raise SettingError("Matching by similarity needs that of the layers of both; measure it first.")
        if similarities.shape != (len(teacher), len(student)):
            raise ShapeError(
                f"Similarities have the shape {similarities.shape}; expected {(len(teacher), len(student))}, one for "
                "each layer of the teacher and of the student."
            )
        rows = [position[name] for name in hints]
        targets = [student[i] for i in _in_order_of_depth(rows, 1 - similarities[rows])]
    else:
        ends = stage_ends(student)
        in_order = len(hints) == len(ends)
        targets = list(ends) if in_order else [student[i] for i in _by_depth(depths, len(student))]
    return tuple(HintPair(hint, target.name) for hint, target in zip(hints, targets, strict=True))


def _same_name(hint: str, student: Sequence[Layer]) -> Layer:
    found = next((layer for layer in student if layer.name == hint), None)
    if found is None:
        raise SettingError(
            f"The student has no layer {hint}; expected a student with its teacher's names of layers. "
            "Match by order, or choose hints among the layers of both."
        )
    return found


def _nearest_size(hint: Layer, depth: float, student: Sequence[Layer]) -> Layer:
    def off(item: tuple[int, Layer]) -> tuple[float, float]:
        index, layer = item
        steps = sum(abs(math.log2(a / b)) for a, b in zip(layer.size, hint.size, strict=True))
        return round(steps, 6), abs((index + 1) / len(student) - depth)

    return min(enumerate(student), key=off)[1]


def _by_depth(depths: Sequence[float], layers: int) -> list[int]:
    """Return layer positions in the order of the depths with the smallest total difference."""
    own = (np.arange(layers) + 1) / layers
    found = _in_order_of_depth(depths, np.abs(own - np.array(depths)[:, None]))
    if list(depths) != sorted(depths):  # hints given deepest first stay in the order given
        found = sorted(found)
    return found


def _in_order_of_depth(depths: Sequence[float], costs: Float[np.ndarray, "h m"]) -> list[int]:
    """Return a student layer for each hint so that none cross, with the smallest total cost: dynamic programming.

    Each hint gets another layer while there are enough.

    Args:
        depths: Of the hints.
        costs: Of each hint at each student layer.
    """
    order = np.argsort(depths, kind="stable")
    layers = costs.shape[1]
    step = 1 if len(depths) <= layers else 0
    best = costs[order[0]]
    cuts: list[np.ndarray] = []
    for hint in order[1:]:
        running = np.minimum.accumulate(best)
        first = np.array([int(np.argmin(best[: i + 1])) for i in range(layers)])
        before = np.full(layers, np.inf)
        before[step:] = running[: layers - step]
        cuts.append(np.concatenate([np.zeros(step, int), first[: layers - step]]))
        best = before + costs[hint]
    place = int(np.argmin(best))
    places = [place]
    for cut in reversed(cuts):
        place = int(cut[place])
        places.append(place)
    found = [0] * len(depths)
    for hint, at in zip(order, reversed(places), strict=True):
        found[int(hint)] = at
    return found
