"""Small networks that recognize from little: hint points by clustering, and students distilled with them.

The names below are the public interface but for faces, which lies in :mod:`keyhole.faces`; each is imported when it is
first used, so that ``import keyhole`` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyhole.arms import ArmMaker
    from keyhole.data.sources import Data, default_input, open_data
    from keyhole.data.splits import hold_out
    from keyhole.distillation.adapters import HintAdapter, VariationalHead
    from keyhole.distillation.arm import Arm
    from keyhole.distillation.association import Association
    from keyhole.distillation.cohort import Cohort
    from keyhole.distillation.config import TrainConfig
    from keyhole.distillation.contrast import Contrast
    from keyhole.distillation.evaluation import Accuracy, evaluate
    from keyhole.distillation.experiment import Result, run_cohort
    from keyhole.distillation.group import Group, join_group
    from keyhole.distillation.kinds import HintPair
    from keyhole.distillation.losses import (
        attention_loss,
        correlation_loss,
        decoupled_loss,
        hint_loss,
        similarity_preserving_loss,
        soft_target_loss,
        standardize,
        standardized_loss,
        transformed_teacher_loss,
        variational_loss,
    )
    from keyhole.distillation.matching import match_hints
    from keyhole.distillation.notation import parse_terms
    from keyhole.distillation.terms import Term
    from keyhole.distillation.training import Checkpointing, fit
    from keyhole.distillation.warmup import warm_up
    from keyhole.errors import KeyholeError
    from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
    from keyhole.hints.likeness import likeness
    from keyhole.hints.metrics import debiased_cka, linear_cka, procrustes, pwcca, r2_cca, rbf_cka, svcca
    from keyhole.hints.moments import ObserveConfig, observe
    from keyhole.hints.quality import Quality, feature_quality, layer_quality
    from keyhole.hints.selection import Rule, Selection, select, stability
    from keyhole.hints.similarity import consensus, similarity
    from keyhole.hints.weighting import hint_weights
    from keyhole.models.frozen import freeze
    from keyhole.models.layers import Layer, Tapped, layers, tap
    from keyhole.models.network import InputSpec, Network, count_macs
    from keyhole.models.zoo import build, load, read_about, save
    from keyhole.plans import ArmPlan, read_cohort
    from keyhole.reports.hints_page import hints_page
    from keyhole.reports.search_page import search_page
    from keyhole.reports.study_page import study_page
    from keyhole.reports.training_page import training_page
    from keyhole.studies.board import Board
    from keyhole.studies.budget import SearchConfig
    from keyhole.studies.conclusion import Conclusion, conclude
    from keyhole.studies.landscape import Landscape, groups_of, survey
    from keyhole.studies.outlook import look_ahead
    from keyhole.studies.plan import Comparison, Study, read_study, with_combinations
    from keyhole.studies.replay import replay_searches
    from keyhole.studies.rules import choices_of_rules
    from keyhole.studies.search import Found, search_hints
    from keyhole.studies.verdict import Verdict, judge
    from keyhole.studies.work import run_study

_HOMES = {
    "arms": ("ArmMaker",),
    "data.sources": (
        "Data",
        "default_input",
        "open_data",
    ),
    "data.splits": ("hold_out",),
    "distillation.adapters": (
        "HintAdapter",
        "VariationalHead",
    ),
    "distillation.arm": ("Arm",),
    "distillation.association": ("Association",),
    "distillation.cohort": ("Cohort",),
    "distillation.config": ("TrainConfig",),
    "distillation.contrast": ("Contrast",),
    "distillation.evaluation": (
        "Accuracy",
        "evaluate",
    ),
    "distillation.experiment": (
        "Result",
        "run_cohort",
    ),
    "distillation.group": (
        "Group",
        "join_group",
    ),
    "distillation.losses": (
        "attention_loss",
        "correlation_loss",
        "decoupled_loss",
        "hint_loss",
        "similarity_preserving_loss",
        "soft_target_loss",
        "standardize",
        "standardized_loss",
        "transformed_teacher_loss",
        "variational_loss",
    ),
    "distillation.kinds": ("HintPair",),
    "distillation.matching": ("match_hints",),
    "distillation.notation": ("parse_terms",),
    "distillation.terms": ("Term",),
    "distillation.training": (
        "Checkpointing",
        "fit",
    ),
    "distillation.warmup": ("warm_up",),
    "errors": ("KeyholeError",),
    "hints.choice": (
        "ChoiceConfig",
        "Hints",
        "choose_hints",
    ),
    "hints.likeness": ("likeness",),
    "hints.metrics": (
        "debiased_cka",
        "linear_cka",
        "procrustes",
        "pwcca",
        "r2_cca",
        "rbf_cka",
        "svcca",
    ),
    "hints.moments": (
        "ObserveConfig",
        "observe",
    ),
    "hints.quality": (
        "Quality",
        "feature_quality",
        "layer_quality",
    ),
    "hints.selection": (
        "Rule",
        "Selection",
        "select",
        "stability",
    ),
    "hints.similarity": (
        "consensus",
        "similarity",
    ),
    "hints.weighting": ("hint_weights",),
    "models.frozen": ("freeze",),
    "models.layers": (
        "Layer",
        "Tapped",
        "layers",
        "tap",
    ),
    "models.network": (
        "InputSpec",
        "Network",
        "count_macs",
    ),
    "models.zoo": (
        "build",
        "load",
        "read_about",
        "save",
    ),
    "plans": (
        "ArmPlan",
        "read_cohort",
    ),
    "reports.hints_page": ("hints_page",),
    "reports.search_page": ("search_page",),
    "reports.study_page": ("study_page",),
    "reports.training_page": ("training_page",),
    "studies.board": ("Board",),
    "studies.conclusion": (
        "Conclusion",
        "conclude",
    ),
    "studies.budget": ("SearchConfig",),
    "studies.landscape": (
        "Landscape",
        "groups_of",
        "survey",
    ),
    "studies.plan": (
        "Comparison",
        "Study",
        "read_study",
        "with_combinations",
    ),
    "studies.replay": ("replay_searches",),
    "studies.rules": ("choices_of_rules",),
    "studies.search": (
        "Found",
        "search_hints",
    ),
    "studies.verdict": (
        "Verdict",
        "judge",
    ),
    "studies.outlook": ("look_ahead",),
    "studies.work": ("run_study",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accuracy",
    "Arm",
    "ArmMaker",
    "ArmPlan",
    "Association",
    "Board",
    "Checkpointing",
    "ChoiceConfig",
    "Cohort",
    "Comparison",
    "Conclusion",
    "Contrast",
    "Data",
    "Found",
    "Group",
    "HintAdapter",
    "HintPair",
    "Hints",
    "InputSpec",
    "KeyholeError",
    "Landscape",
    "Layer",
    "Network",
    "ObserveConfig",
    "Quality",
    "Result",
    "Rule",
    "SearchConfig",
    "Selection",
    "Study",
    "Tapped",
    "Term",
    "TrainConfig",
    "VariationalHead",
    "Verdict",
    "attention_loss",
    "build",
    "choices_of_rules",
    "choose_hints",
    "conclude",
    "consensus",
    "correlation_loss",
    "count_macs",
    "debiased_cka",
    "decoupled_loss",
    "default_input",
    "evaluate",
    "feature_quality",
    "fit",
    "freeze",
    "groups_of",
    "hint_loss",
    "hint_weights",
    "hints_page",
    "hold_out",
    "join_group",
    "judge",
    "layer_quality",
    "layers",
    "likeness",
    "linear_cka",
    "load",
    "look_ahead",
    "match_hints",
    "observe",
    "open_data",
    "parse_terms",
    "procrustes",
    "pwcca",
    "r2_cca",
    "rbf_cka",
    "read_about",
    "read_cohort",
    "read_study",
    "replay_searches",
    "run_cohort",
    "run_study",
    "save",
    "search_hints",
    "search_page",
    "select",
    "similarity",
    "similarity_preserving_loss",
    "soft_target_loss",
    "stability",
    "standardize",
    "standardized_loss",
    "study_page",
    "survey",
    "svcca",
    "tap",
    "training_page",
    "transformed_teacher_loss",
    "variational_loss",
    "warm_up",
    "with_combinations",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'keyhole' has no attribute {name!r}")
    return getattr(importlib.import_module(f"keyhole.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
