"""Cohorts made anew from the members of others, in the middle of their training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from keyhole.errors import RunError
from keyhole.files import read_tensors, write_tensors


def regroup(sources: Sequence[Path], names: Sequence[str], target: Path) -> None:
    """Write the checkpoint of a cohort whose members were in other cohorts of the same seed until this epoch.

    What a member learns does not depend on who shares its teacher's pass, so it goes on as if nothing had happened: bit
    by bit with as many threads a worker, which a machine of many cores gives fewer members more of, else to rounding.

    Args:
        sources: Checkpoints at the end of the same epoch, made under the same settings.
        names: The arms that go on, in the order of the new cohort.
        target: The new checkpoint; read by :func:`keyhole.distillation.training.fit`.

    Raises:
        RunError: An arm is in none of them, or they are not of one epoch and one setting.
    """
    place = {name: i for i, name in enumerate(names)}
    tensors: dict[str, Tensor] = {}
    losses: list[Any] = [None] * len(names)
    learners: list[Any] = [None] * len(names)
    common: dict[str, Any] = {}
    for source in sources:
        found, values = read_tensors(source)
        state = {key: values.get(key) for key in ("epoch", "step", "config")}
        if state["step"] != 0 or (common and common != state):
            raise RunError(f"{source} is not at the end of the same epoch as the others. Remove it to start anew.")
        common = state
        tensors |= {name: tensor for name, tensor in found.items() if name.startswith("rng")}
        for i, name in enumerate(values["arms"]):
            if name in place:
                own, prefix = place[name], f"{i}."
                tensors |= {
                    f"{own}.{key.removeprefix(prefix)}": tensor
                    for key, tensor in found.items()
                    if key.startswith(prefix)
                }
                losses[own], learners[own] = values["losses"][i], values["learners"][i]
    if missing := [name for name in names if learners[place[name]] is None]:
        raise RunError(f"There is no state of {missing[0]} in {', '.join(map(str, sources))}. Start anew.")
    write_tensors(
        target,
        tensors,
        {**common, "arms": list(names), "losses": losses, "learners": learners, "dropped": {}, "seconds": 0.0},
    )
