"""What a student's loss is made of: named terms with weights, and the adapters that hints need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from keyhole.errors import SettingError, unknown_name
from keyhole.models.layers import as_map


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        name: ``ce`` cross entropy, ``kd`` softened logits, ``hint`` FitNet hints, ``at`` attention transfer.
        weight: What it is multiplied with.
        temperature: Of ``kd``.
    """

    name: str
    weight: float
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Check name and ranges."""
        if self.name not in TERM_WEIGHTS:
            raise unknown_name("term", self.name, TERM_WEIGHTS)
        if not 0 <= self.weight < float("inf") or not 0 < self.temperature < float("inf"):
            raise SettingError(f"Term {self.name} has weight {self.weight} and temperature {self.temperature}; "
                               "expected a weight >= 0 and a temperature > 0.")  # fmt: skip

    @property
    def needs_hints(self) -> bool:
        """Whether the term compares features of hint layers."""
        return self.name in ("hint", "at")

    @property
    def needs_teacher(self) -> bool:
        """Whether the term needs a teacher at all."""
        return self.name != "ce"


# Weights of the published comparisons: FitNet 100 and attention transfer 1000, from https://github.com/HobbitLong/RepDistiller
TERM_WEIGHTS = {"ce": 1.0, "kd": 1.0, "hint": 100.0, "at": 1000.0}


def parse_terms(text: str, *, temperature: float = 4.0) -> tuple[Term, ...]:
    """Return the terms of ``"ce,kd,hint"`` or ``"ce=0.5,kd=0.5,hint=50"``.

    Without weights, ``ce,kd`` alone takes the published 0.1 and 0.9; otherwise each term has its default weight.

    Raises:
        UnknownNameError: No such term.
        SettingError: A term stands twice, or a weight is no number.

    Example:
        >>> [(term.name, term.weight) for term in parse_terms("ce,kd")]
        [('ce', 0.1), ('kd', 0.9)]
        >>> [(term.name, term.weight) for term in parse_terms("ce,kd,hint=50")]
        [('ce', 1.0), ('kd', 1.0), ('hint', 50.0)]
    """
    parts = [[side.strip() for side in part.partition("=")] for part in text.split(",") if part.strip()]
    names = [name for name, _, _ in parts]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"Terms {text!r} must name each term once, such as ce,kd,hint.")
    published = set(names) == {"ce", "kd"} and not any(weight for _, _, weight in parts)
    defaults = {**TERM_WEIGHTS, "ce": 0.1, "kd": 0.9} if published else TERM_WEIGHTS
    terms = []
    for name, _, weight in parts:
        try:
            value = float(weight) if weight else defaults.get(name, 1.0)
        except ValueError as error:
            raise SettingError(f"Weight {weight!r} of term {name} is no number; write {name}=50.") from error
        terms.append(Term(name, value, temperature))
    return tuple(terms)


class HintAdapter(nn.Module):
    """Bring a student's feature to the teacher's channels: a 1x1 convolution with batch norm.

    It is trained with the student and thrown away afterwards. Height and width stay; the loss averages the larger of
    the two features down.

    Example:
        >>> import torch
        >>> HintAdapter(16, 64)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher_channels)

    def forward(self, feature: Tensor) -> Float[Tensor, "n c h w"]:
        """Return the adapted feature as a map."""
        adapted: Tensor = self.norm(self.conv(as_map(feature)))
        return adapted


def check_terms(terms: Sequence[Term], *, teacher: bool, hints: bool) -> None:
    """Check that the terms have what they need.

    Raises:
        SettingError: A term needs a teacher or hints that are not there, or hints serve no term.
    """
    for term in terms:
        if term.needs_teacher and not teacher:
            raise SettingError(f"Term {term.name} needs a teacher; give --teacher or leave the term out.")
        if term.needs_hints and not hints:
            raise SettingError(f"Term {term.name} needs hints; give --hints auto or a hints.json, or leave it out.")
    if hints and not any(term.needs_hints for term in terms):
        named = ",".join(term.name for term in terms)
        raise SettingError(f"Hints serve none of the terms {named}; add hint or at, or leave the hints out.")
