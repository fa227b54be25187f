"""The report on which layers of a teacher should teach: one HTML file that needs no network and no script."""

from __future__ import annotations

from keyhole.hints.choice import Hints
from keyhole.reports import hint_parts
from keyhole.reports.markup import (
    page,
    section,
)


def hints_page(hints: Hints) -> str:
    """Return the report about which layers of a teacher should teach, as one HTML file.

    Args:
        hints: What :func:`keyhole.hints.choice.choose_hints` found.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.hints.choice import ChoiceConfig, choose_hints
        >>> from keyhole.models.zoo import build
        >>> teacher = build("resnet14", classes=10, input=default_input("digits"))
        >>> images = open_data("digits").train
        >>> hints_page(choose_hints(teacher, images, config=ChoiceConfig(samples=100, draws=5)))[:15]
        '<!DOCTYPE html>'
    """
    return page(
        hint_parts.title(hints),
        "Keyhole: hint points",
        hint_parts.lead(hints),
        hint_parts.hint_table(hints),
        section("How alike the layers are", hint_parts.map_figure(hints)),
        hint_parts.silhouette_section(hints),
        hint_parts.stability_section(hints),
        hint_parts.metrics_section(hints),
        hint_parts.other_maps_section(hints),
        hint_parts.time_section(hints),
        hint_parts.limits_section(hints),
    )
