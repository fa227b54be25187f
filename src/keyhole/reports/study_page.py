"""The report of a study: the verdict in a sentence, the table, the differences, the cost, what others published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from keyhole.reports import figures
from keyhole.reports.landscape_parts import landscape_parts
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    amount,
    bullets,
    figure,
    join,
    page,
    paragraph,
    plural,
    section,
    table,
    words,
)
from keyhole.studies.published import PUBLISHED
from keyhole.studies.verdict import Gap, Row, Verdict


def study_page(verdict: Verdict, setting: Mapping[str, Any]) -> str:
    """Return the report of a study, as one HTML file.

    Args:
        verdict: What was found.
        setting: ``teacher``, ``teacher_top1`` (percent, or None), ``data``, ``students``, ``epochs``, ``batch_size``,
            ``holdout`` and ``seeds`` of the study; perhaps ``train``, how its students were trained, ``arms``, what
            each learns by, ``comparisons``, what is compared in each, and ``mixed``, in what its cells differ beside
            arm and seed.

    Example:
        >>> from keyhole.studies.verdict import judge
        >>> setting = {"teacher": "resnet56", "teacher_top1": 72.63, "data": "cifar100", "students": ["resnet20"],
        ...            "epochs": 10, "batch_size": 64, "holdout": 5000, "seeds": [0]}
        >>> study_page(judge([None], ["kd"]), setting)[:15]
        '<!DOCTYPE html>'
    """
    students = ", ".join(setting["students"])
    tried = {arm for landscape in verdict.landscapes for arm in landscape.arms}
    rest = replace(
        verdict,
        rows=tuple(row for row in verdict.rows if row.arm not in tried),
        gaps=tuple(gap for gap in verdict.gaps if gap.arm not in tried),
    )
    return page(
        f"{setting['teacher']} teaches {students}",
        "Keyhole: study",
        *_lead(verdict.findings),
        paragraph(_how(setting)),
        *(paragraph(_mixture(each)) for each in setting.get("mixed", ())),
        *(landscape_parts(landscape) for landscape in verdict.landscapes),
        _reached(rest, setting, "What the other students reach" if tried else "What the students reach"),
        _differences(rest),
        _asked(verdict, setting.get("comparisons", ())),
        _cost(rest.rows),
        _arms(setting, [row.arm for row in rest.rows]),
        _published(setting),
    )


def _lead(findings: Sequence[str]) -> list[Html]:
    """Return the answer, and below it what it rests on, a point each; few sentences stand together."""
    if len(findings) <= 3:
        return [paragraph(" ".join(findings), "lead")]
    return [paragraph(findings[0], "lead"), bullets(findings[1:])]


def studies_page(found: Mapping[str, tuple[str, str]]) -> str:
    """Return the page that leads to the reports of several studies, as one HTML file.

    Args:
        found: By the name of each study, the folder of its report and its sentence.

    Example:
        >>> studies_page({"epochs 10": ("epochs-10", "kd is highest.")})[:15]
        '<!DOCTYPE html>'
    """
    parts = [
        section(name, paragraph(text, "lead"), Html(f'<p><a href="{quote(folder)}/report.html">Its report</a></p>'))
        for name, (folder, text) in found.items()
    ]
    return page(f"{len(found)} studies", "Keyhole: studies of one file", *parts)


def _reached(verdict: Verdict, setting: Mapping[str, Any], title: str) -> Html:
    return section(title, _table(verdict), _dots(verdict, setting)) if verdict.rows else Html("")


def _how(setting: Mapping[str, Any]) -> str:
    held_out = f"{setting['holdout']:,} training images" if setting["holdout"] else "no images"
    best = (
        "the best epoch was chosen on the held-out images"
        if setting["holdout"]
        else "as nothing was held out, the best epoch is the last one"
    )
    return (
        f"{plural(setting['epochs'], 'epoch')} on {setting['data']}, batch {setting['batch_size']}, "
        f"{held_out} held out for choosing, {plural(len(setting['seeds']), 'seed')}. "
        f"{_trained(setting['train']) if 'train' in setting else ''}"
        "Students of one seed saw the same batches in the same order. The test images were used after their training "
        f"alone, on the networks of the last and of the best epoch (and once to measure the teacher); {best}."
    )


def _trained(train: Mapping[str, Any]) -> str:
    """Return how students were trained, in a sentence."""
    if train["schedule"] == "cosine":
        falls = "falling by a cosine"
    elif train["milestones"]:
        falls = f"a tenth of it each after {words([f'{100 * part:g} %' for part in train['milestones']])} of the epochs"
    else:
        falls = "constant"
    warm_up = train["warmup_epochs"]
    parts = [
        f"{train['optimizer']}{' (Nesterov)' if train['nesterov'] else ''}, learning rate {train['lr']:g}",
        falls,
        *([f"rising for {warm_up:g} epoch{'' if warm_up == 1 else 's'} first"] if warm_up else []),
        f"momentum {train['momentum']:g}",
        f"weight decay {train['weight_decay']:g}",
        "padded, cropped and flipped images" if train["augment"] else "images as they are",
        str(train["precision"]),
    ]
    return f"Training: {', '.join(parts)}. "


def _mixture(mixed: Mapping[str, Any]) -> str:
    """Return that cells differ in something beside the recipe, how many there are of each, and what that touches."""
    kinds = words([f"{count} of {of}" for of, count in mixed["cells"].items()])
    text = f"The cells of this study differ in {mixed['what']}: {kinds}."
    if not mixed["seeds"]:
        return f"{text} Those of one seed are alike, so differences of arms are safe; the spread over seeds mixes them."
    seeds = f"seed{'' if len(mixed['seeds']) == 1 else 's'} {words([str(seed) for seed in mixed['seeds']])}"
    return f"{text} Even those of one seed differ, of {seeds}, so differences of arms may come from that."


def _table(verdict: Verdict) -> Html:
    heads = ["last epoch, %: mean", "standard deviation", "best epoch, %: mean", "standard deviation"]
    held_out = any(row.held_out for row in verdict.rows)
    if held_out:
        heads += ["held out, %: mean", "held out minus test"]
    diverged = any(row.diverged for row in verdict.rows)
    heads += ["seeds", *(["diverged"] if diverged else []), "parameters", "MACs"]
    rows = [
        [
            row.arm,
            *_mean_and_spread(row.last),
            *_mean_and_spread(row.best),
            *([_mean_and_spread(row.held_out)[0], _above_test(row)] if held_out else []),
            str(len(row.seeds)),
            *([str(len(row.diverged)) if row.diverged else NOTHING] if diverged else []),
            amount(row.parameters) if row.parameters is not None else NOTHING,
            amount(row.macs) if row.macs is not None else NOTHING,
        ]
        for row in verdict.rows
    ]
    base = [i for i, row in enumerate(verdict.rows) if row.arm == verdict.baseline]
    drawn = table([Column("", number=False), *(Column(head) for head in heads)], rows, strong=base)
    notes = [_FLATTERED] if held_out else []
    if twins := _twins(verdict.rows):
        notes.append(f"One and the same student: {'; '.join(twins)}. Where probabilities are corrected it counts once.")
    return join([drawn, *map(paragraph, notes)])


def _twins(rows: Sequence[Row]) -> list[str]:
    """Return the names of the arms that learn the very same, joined, one text for each such student."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.same_as is not None:
            found.setdefault(row.same_as, [row.same_as]).append(row.arm)
    return [" = ".join(names) for names in found.values()]


_FLATTERED = (
    "A teacher that was trained on the held-out images, as published ones were, knows more of them than of new ones, "
    "and so does a student that follows it closely: held-out accuracies flatter such arms, by as much as held out "
    "minus test is larger for them than for others."
)


def _above_test(row: Row) -> str:
    if not row.held_out:
        return NOTHING
    return f"{statistics.fmean(row.held_out) - statistics.fmean(row.last):+.2f}"


def _mean_and_spread(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return NOTHING, NOTHING
    return f"{statistics.fmean(values):.2f}", f"{statistics.stdev(values):.2f}" if len(values) > 1 else NOTHING


def _dots(verdict: Verdict, setting: Mapping[str, Any]) -> Html:
    rows = [(row.arm, row.last) for row in verdict.rows if row.last]
    if not rows:
        return Html("")
    top1 = setting["teacher_top1"]
    line = None if top1 is None else (str(setting["teacher"]), float(top1))
    drawn = figures.dots(rows, line, "Top-1 of each arm after the last epoch, one dot a seed")
    return figure(drawn, "One dot a seed; the upright bar is their mean.")


def _differences(verdict: Verdict) -> Html:
    if not verdict.gaps:
        return Html("")
    heads = ("mean, points", "95 % interval", "p", "p, corrected", "seeds")
    columns = [Column(f"minus {verdict.baseline}, seed by seed", number=False), *(Column(head) for head in heads)]
    drawn = figures.intervals(
        [(gap.arm, gap.mean, gap.low, gap.high) for gap in verdict.gaps],
        f"Differences to {verdict.baseline} with their intervals",
    )
    caption = (
        "Each student is compared with the one of the same seed; intervals are Student's, each for its difference "
        "alone, and probabilities are corrected for the number of different students by Holm's procedure. A difference "
        "is beyond chance where the corrected p is below 0.05; where it is not, this study cannot tell."
    )
    return section("Differences", table(columns, [_gap_row(gap) for gap in verdict.gaps]), figure(drawn, caption))


def _asked(verdict: Verdict, compared: Sequence[Mapping[str, Any]]) -> Html:
    if not verdict.comparisons:
        return Html("")  # what has no answer yet stands in the sentence
    heads = ("mean, points", "95 % interval", "p", "p, corrected", "seeds")
    columns = [Column("", number=False), *(Column(head) for head in heads)]
    drawn = figures.intervals(
        [(gap.arm, gap.mean, gap.low, gap.high) for gap in verdict.comparisons], "The comparisons that were asked for"
    )
    caption = (
        "Where several arms stand on a side, the mean of each seed counts. These comparisons were laid down in the "
        "study file; intervals are each for its comparison alone, probabilities are corrected for their number."
    )
    rows = [_gap_row(gap) for gap in verdict.comparisons]
    answered = {gap.arm for gap in verdict.comparisons}
    sides = [
        f"{each['name']}: {'; '.join(each['arms'])}. Against: {'; '.join(each['against'])}."
        for each in compared
        if each["name"] in answered and each["name"] != _by_names(each)
    ]
    told = [bullets(sides)] if sides else []
    return section("What the study was made to compare", table(columns, rows), figure(drawn, caption), *told)


def _by_names(compared: Mapping[str, Any]) -> str:
    """Return what a comparison is called by itself; then its name says which arms are compared."""
    return f"{' and '.join(compared['arms'])} against {' and '.join(compared['against'])}"


def _arms(setting: Mapping[str, Any], names: Sequence[str]) -> Html:
    """Return what each arm learns by: its loss with all weights, and which layer of the teacher teaches which."""
    shown = [arm for arm in setting.get("arms", ()) if arm["name"] in names]
    if not shown:
        return Html("")
    heads = ["", "student", "loss", "teacher's layer -> student's"]
    rows = [[arm["name"], _student(arm), _loss(arm), _pairs(arm)] for arm in shown]
    if len({row[1] for row in rows}) == 1:
        heads, rows = heads[:1] + heads[2:], [row[:1] + row[2:] for row in rows]
    drawn = table([Column(head, number=False) for head in heads], rows)
    return section("What the students learn by", drawn)


def _student(arm: Mapping[str, Any]) -> str:
    return arm["student"] if arm["student_size"] is None else f"{arm['student']} at {arm['student_size']} px"


def _loss(arm: Mapping[str, Any]) -> str:
    parts = [arm["loss"].replace(",", ", ")]
    if arm["temperature"] is not None:
        parts.append(f"temperature {arm['temperature']:g}")
    if arm["balance"] != "weights":
        parts.append(f"balanced by {arm['balance']}")
    return "; ".join(parts)


def _pairs(arm: Mapping[str, Any]) -> str:
    """Return the pairs of layers once a cell has them, before that what was asked for."""
    if arm["pairs"] is None:
        asked = arm["hints"]
        return NOTHING if asked is None else asked if isinstance(asked, str) else ", ".join(asked)
    texts = []
    for pair in arm["pairs"]:
        times = "" if pair["weight"] == 1 else f" times {pair['weight']:g}"
        texts.append(f"{pair['teacher']} -> {pair['student']}{times}".replace(" ", "\u00a0"))  # no line ends within
    return ", ".join(texts) or NOTHING


def _gap_row(gap: Gap) -> list[str]:
    ends = f"{gap.low:+.2f} to {gap.high:+.2f}" if gap.low is not None and gap.high is not None else NOTHING
    return [gap.arm, f"{gap.mean:+.2f}", ends, _probability(gap.p), _probability(gap.corrected), str(gap.seeds)]


def _probability(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _cost(rows: Sequence[Row]) -> Html:
    """Return accuracy against size and work; nothing where all students are of one size."""
    complete = [row for row in rows if row.last and row.parameters is not None and row.macs is not None]
    if len({(row.parameters, row.macs) for row in complete}) < 2:
        return Html("")
    drawn = [
        figures.frontier(
            [(row.arm, float(value), statistics.fmean(row.last)) for row in complete for value in [getattr(row, key)]],
            label,
            f"Top-1 against {label}",
        )
        for key, label in (("parameters", "parameters"), ("macs", "multiply-accumulates an image"))
    ]
    caption = "The line joins the students that no other beats with less; of one size, the highest."
    return section("What accuracy costs", *(figure(each, caption) for each in drawn))


def _published(setting: Mapping[str, Any]) -> Html:
    found = [
        (student, result)
        for student in setting["students"]
        for result in PUBLISHED.get((setting["teacher"], student), ())
    ]
    if not found or setting["data"] != "cifar100":
        return Html("")
    rows = [[student, each.method, f"{each.top1:.2f}", each.protocol, each.source] for student, each in found]
    columns = [Column(head, number=head == "top-1, %") for head in ("student", "method", "top-1, %", "epoch", "source")]
    note = (
        "Published results after 240 epochs, with other teachers' weights and other machines. They stand here for "
        "orientation: a difference to the table above is not a difference between methods. 'best' means that the code "
        "of the source reports the best epoch on the test images."
    )
    return section("What others published", paragraph(note), table(columns, rows))
