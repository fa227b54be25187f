"""The whole method on 1,797 small scans that come with scikit-learn: an illustration, with no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keyhole.data.sources import default_input, open_data
from keyhole.distillation.arm import Arm
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.experiment import Result, run_cohort
from keyhole.distillation.matching import match_hints
from keyhole.distillation.notation import parse_terms
from keyhole.errors import DataError, SettingError
from keyhole.files import write_json, write_text
from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
from keyhole.hints.selection import Rule, select
from keyhole.models.layers import layers
from keyhole.models.network import Network
from keyhole.models.zoo import build, save
from keyhole.progress import Progress, silent
from keyhole.reports.demo_page import demo_page
from keyhole.runtime import choose_device
from keyhole.studies.verdict import Row, paired

TEACHER, STUDENT, STUDENT_PX = "resnet32", "resnet8", 4
NOTE = (
    "An illustration on 1,797 small scans, not a benchmark: 500 test images, so one image is 0.2 points, "
    "and differences within the intervals mean nothing."
)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found.

    Attributes:
        summary: Figures in percent, as JSON values.
        text: The same for people.
    """

    summary: dict[str, Any]
    text: str


def run_demo(
    out: Path,
    *,
    seeds: int = 5,
    epochs: int = 30,
    device: str = "auto",
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Train a teacher on 8 x 8 digits, choose its hints, and teach small students that see 4 x 4 pixels.

    Args:
        out: Folder for ``report.html``, ``result.json`` and the networks of the first seed.
        seeds: So many cohorts of students, each with its own initialization, order and random hints.
        epochs: Of teacher and students.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Wraps the long loops.
        note: Told what happens.

    Raises:
        RunError: The folder cannot be written.
    """
    data = open_data("digits")
    spec = default_input("digits")
    if spec is None:
        raise DataError("The digits have no input size.")
    config = TrainConfig(epochs=epochs, precision="fp32", device=device, schedule="cosine", warmup_epochs=1)

    note(f"1/3  {TEACHER} learns {len(data.train)} digits of 8 x 8 pixels")
    alone = Arm("teacher", TEACHER, spec, parse_terms("ce"))
    taught = run_cohort([alone], data, config, progress=progress)
    teacher = taught.scores[0].outcome.last

    note("2/3  its layers are compared and clustered")
    found = choose_hints(
        teacher, data.train, Rule(count=3), config=ChoiceConfig(metrics=("r2_cca",)), device=choose_device(device),
        data="digits", progress=progress,
    )  # fmt: skip
    note(f"     hints: {', '.join(found.hints)}")

    note(f"3/3  {STUDENT} learns from {STUDENT_PX} x {STUDENT_PX} pixels, {seeds} seeds")
    results = [
        run_cohort(_arms(teacher, found, seed), data, replace(config, seed=seed), teacher=teacher, progress=progress)
        for seed in range(seeds)
    ]
    summary = _summary(teacher, taught, results)
    write_text(out / "report.html", demo_page(summary, hints=found))
    save(teacher, out / "teacher.safetensors")
    for score in results[0].scores:
        save(score.outcome.last, out / f"{score.outcome.arm.name.replace(' ', '-')}.safetensors")
    write_json(out / "result.json", {**summary, "hints": found.to_json()})
    return DemoResult(summary, _text(summary, out))


def _arms(teacher: Network, found: Hints, seed: int) -> list[Arm]:
    spec = replace(teacher.input, size_px=(STUDENT_PX, STUDENT_PX))
    student = layers(build(STUDENT, classes=10, input=spec))
    random = select(found.layers, None, Rule("random", count=3, seed=seed)).hints

    def arm(name: str, terms: str, hints: tuple[str, ...] = ()) -> Arm:
        pairs = match_hints(hints, found.layers, student) if hints else ()
        return Arm(name, STUDENT, spec, parse_terms(terms), pairs)

    return [
        arm("plain", "ce"),
        arm("kd", "ce=1,kd=1"),
        arm("kd and chosen hints", "ce,kd,hint=5", found.hints),
        arm("kd and random hints", "ce,kd,hint=5", tuple(found.layers[i].name for i in random)),
    ]


def _summary(teacher: Network, taught: Result, results: list[Result]) -> dict[str, Any]:
    tables = [result.to_json() for result in results]
    first = tables[0]["arms"]
    arms = [
        {
            "name": arm["name"],
            "parameters": arm["parameters"],
            "compression": arm["compression"],
            "top1": [table["arms"][k]["top1"]["last"] for table in tables],
        }
        for k, arm in enumerate(first)
    ]
    return {
        "title": f"{TEACHER} at 8 pixels teaches {STUDENT} at {STUDENT_PX} pixels: handwritten digits",
        "note": NOTE,
        "teacher": tables[0]["teacher"],
        "seconds": taught.seconds + sum(result.seconds for result in results),
        "arms": arms,
        "paired": [
            _paired(arms[2], arms[0]),
            _paired(arms[2], arms[1]),
            _paired(arms[2], arms[3]),
        ],
    }


def _paired(arm: dict[str, Any], against: dict[str, Any]) -> dict[str, Any]:
    """Return the mean difference over seeds with its 95 % interval."""
    one, other = (
        Row(each["name"], tuple(range(len(each["top1"]))), tuple(each["top1"]), (), (), None, None)
        for each in (arm, against)
    )
    gap = paired(one, other)
    if gap is None:
        raise SettingError("There is no seed to compare; expected at least one.")
    ends = {"low": gap.low, "high": gap.high}
    rounded = {key: None if value is None else round(value, 3) for key, value in ends.items()}
    return {"name": gap.arm, "against": gap.against, "mean": round(gap.mean, 3), **rounded}


def _text(summary: dict[str, Any], out: Path) -> str:
    teacher = summary["teacher"]
    width = max(len(arm["name"]) for arm in summary["arms"])
    lines = [
        summary["title"],
        f"{'teacher, 8 px':<{width}}  top-1 {teacher['top1']:6.2f} %           {teacher['parameters']:>8,} parameters",
    ]
    for arm in summary["arms"]:
        spread = f"+- {np.std(arm['top1'], ddof=1):4.2f}" if len(arm["top1"]) > 1 else " " * 7
        lines.append(
            f"{arm['name']:<{width}}  top-1 {np.mean(arm['top1']):6.2f} % {spread}   {arm['parameters']:>8,} parameters"
        )
    for pair in summary["paired"]:
        interval = "" if pair["low"] is None else f" [{pair['low']:+.2f}, {pair['high']:+.2f}]"
        lines.append(f"{pair['name']} - {pair['against']}: {pair['mean']:+.2f} points{interval}")
    return "\n".join([*lines, summary["note"], f"{summary['seconds']:.0f} s; report: {out / 'report.html'}"])
