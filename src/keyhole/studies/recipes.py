"""What decides the result of a cell, so that a folder is not gone on with by another study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keyhole.arms import begun_with
from keyhole.data.sources import Data
from keyhole.models.network import Network, fingerprint
from keyhole.runtime import choose_device, choose_precision
from keyhole.studies.board import Board, Keep
from keyhole.studies.plan import Study

Recipes = Mapping[str, tuple[str, Mapping[str, Any]]]  # name and recipe of each cell, by its id


def recipes_of(
    study: Study, teacher: Network, data: Data, *, code: bool = True
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name and recipe of each cell by its id; the teacher counts by its weights, wherever they came from."""
    files = data.fingerprint()
    own = {"teacher_sha256": fingerprint(teacher), **({"data_sha256": files} if files else {})}
    kinds = {(plan.student, plan.terms): plan for plan in study.arms}
    begun = {kind: begun_with(study.teacher, plan, code=code) for kind, plan in kinds.items()}
    return {
        cell.id: (cell.name, study.recipe(cell) | own | begun[cell.plan.student, cell.plan.terms])
        for cell in study.cells
    }


def check_cells(study: Study, teacher: Network, data: Data, board: Board, *, code: bool = True) -> None:
    """Check that what is finished in a folder is of this study.

    Args:
        study: The study, its combinations written out.
        teacher: Its teacher, with weights.
        data: Its data.
        board: Its folder.
        code: Whether code of the user's must be what it was, for which it is imported.

    Raises:
        RunError: The folder holds a cell of another recipe.
    """
    board.check_recipes(recipes_of(settled(study, board, keep=board.peek), teacher, data, code=code))


def settled(study: Study, board: Board, *, keep: Keep | None = None) -> Study:
    """Return the study with ``precision = "auto"`` replaced by what the first process of its folder took.

    Args:
        study: The study.
        board: Its folder.
        keep: :meth:`Board.settle`, which is meant where nothing is given, or :meth:`Board.peek`, which keeps nothing.
    """
    if study.config.precision != "auto":
        return study
    chosen = (keep or board.settle)("precision", lambda: choose_precision("auto", choose_device(study.config.device)))
    return replace(study, config=replace(study.config, precision=chosen))
