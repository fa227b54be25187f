"""Small networks that recognize from little: hint points by clustering, and students distilled with them.

The names below are the whole public interface; each is imported when it is first used, so that ``import keyhole`` is
instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyhole.data.sources import Data, open_data
    from keyhole.distillation.adapters import HintAdapter
    from keyhole.distillation.cohort import Arm, Cohort, TrainConfig
    from keyhole.distillation.evaluation import Accuracy, evaluate
    from keyhole.distillation.experiment import Result, run_cohort
    from keyhole.distillation.losses import attention_loss, hint_loss, soft_target_loss
    from keyhole.distillation.matching import match_hints
    from keyhole.distillation.terms import HintPair, Term, parse_terms
    from keyhole.distillation.training import fit
    from keyhole.errors import KeyholeError
    from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
    from keyhole.hints.metrics import debiased_cka, linear_cka, procrustes, r2_cca, rbf_cka
    from keyhole.hints.moments import ObserveConfig, observe
    from keyhole.hints.selection import Rule, Selection, select, stability
    from keyhole.hints.similarity import consensus, similarity
    from keyhole.models.frozen import freeze
    from keyhole.models.layers import Layer, Tapped, layers, tap
    from keyhole.models.network import InputSpec, Network, count_macs
    from keyhole.models.zoo import build, load, save
    from keyhole.reports.pages import hints_page, training_page

_HOMES = {
    "data.sources": ("Data", "open_data"),
    "distillation.experiment": ("Result", "run_cohort"),
    "distillation.evaluation": ("Accuracy", "evaluate"),
    "distillation.losses": ("attention_loss", "hint_loss", "soft_target_loss"),
    "distillation.matching": ("match_hints",),
    "distillation.terms": ("HintPair", "Term", "parse_terms"),
    "distillation.adapters": ("HintAdapter",),
    "distillation.cohort": ("Arm", "Cohort", "TrainConfig"),
    "distillation.training": ("fit",),
    "errors": ("KeyholeError",),
    "hints.choice": ("ChoiceConfig", "Hints", "choose_hints"),
    "hints.metrics": ("debiased_cka", "linear_cka", "procrustes", "r2_cca", "rbf_cka"),
    "hints.moments": ("ObserveConfig", "observe"),
    "hints.selection": ("Rule", "Selection", "select", "stability"),
    "hints.similarity": ("consensus", "similarity"),
    "models.frozen": ("freeze",),
    "models.layers": ("Layer", "Tapped", "layers", "tap"),
    "models.network": ("InputSpec", "Network", "count_macs"),
    "models.zoo": ("build", "load", "save"),
    "reports.pages": ("hints_page", "training_page"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Accuracy",
    "Arm",
    "ChoiceConfig",
    "Cohort",
    "Data",
    "HintAdapter",
    "HintPair",
    "Hints",
    "InputSpec",
    "KeyholeError",
    "Layer",
    "Network",
    "ObserveConfig",
    "Result",
    "Rule",
    "Selection",
    "Tapped",
    "Term",
    "TrainConfig",
    "attention_loss",
    "build",
    "choose_hints",
    "consensus",
    "count_macs",
    "debiased_cka",
    "evaluate",
    "fit",
    "freeze",
    "hint_loss",
    "hints_page",
    "layers",
    "linear_cka",
    "load",
    "match_hints",
    "observe",
    "open_data",
    "parse_terms",
    "procrustes",
    "r2_cca",
    "rbf_cka",
    "run_cohort",
    "save",
    "select",
    "similarity",
    "soft_target_loss",
    "stability",
    "tap",
    "training_page",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'keyhole' has no attribute {name!r}")
    return getattr(importlib.import_module(f"keyhole.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
