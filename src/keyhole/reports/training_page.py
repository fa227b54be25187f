"""The report of a training or a cohort: what each student reached, and how it came there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keyhole.reports import explained, figures
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    amount,
    code,
    duration,
    figure,
    grid,
    join,
    legend,
    named,
    page,
    paragraph,
    plural,
    section,
    table,
    times,
)

_NO_TERMS = ("arm", "epoch", "rate", "loss", "held_out_top1", "scales")


def training_page(result: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """Return the report about trained students, as one HTML file.

    Args:
        result: What :meth:`keyhole.distillation.experiment.Result.to_json` gives; accuracies in percent.
        log: One record per arm and epoch; its ``held_out_top1`` from 0 to 1.
    """
    arms: Sequence[Mapping[str, Any]] = result["arms"]
    names = [arm["name"] for arm in arms]
    terms = list(dict.fromkeys(key for record in log for key in record if key not in _NO_TERMS))
    many = legend(names) if len(arms) > 1 else ""
    return page(
        _training_title(result),
        "Keyhole: training",
        paragraph(_summary(result), "lead"),
        paragraph(_how_trained(result), "soft"),
        _result_table(result),
        section("What learns, and from what", _size_table(result)),
        _held_out_section(names, log, many),
        _loss_section(arms, log, terms, many),
        _terms_section(arms, names, log, terms, many),
        _rate_section(names, log, many),
        _hints_section(arms, bool(result["teacher"])),
    )


def _training_title(result: Mapping[str, Any]) -> str:
    arms, teacher = result["arms"], result["teacher"]
    best = _best(arms)
    right = f"{best['top1']['last']:.2f} % of the test images of {result['data']} right"
    if len(arms) > 1:
        chosen = "Best of" if _held_out(arms) else "Highest on the test images of"
        return f"{chosen} {len(arms)}: {best['name']}, {right}"
    if teacher and any(term["name"] != "ce" for term in best["terms"]):
        return f"{best['student']}, taught by {teacher['name']}: {right}"
    return f"{best['student']}, trained without a teacher: {right}"


def _held_out(arms: Sequence[Mapping[str, Any]]) -> bool:
    return all(arm["held_out_top1"] for arm in arms)


def _best(arms: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the arm that the held-out images choose; without any, the one that is highest on the test images."""
    return max(arms, key=_deciding(arms))


def _deciding(arms: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], float]:
    """Return what arms are ranked by, the best as well as the lowest."""
    key = "held_out_top1" if _held_out(arms) else "top1"
    return lambda arm: float(arm[key]["last"])


def _summary(result: Mapping[str, Any]) -> str:
    teacher = result["teacher"]
    best = _best(result["arms"])
    text = f"After {plural(result['epochs'], 'epoch')} it recognizes {best['top1']['last']:.2f} % of "
    text += f"{plural(result['images']['test'], 'test image')}"
    if teacher:
        gap = best["top1"]["last"] - teacher["top1"]
        more = "more" if gap > 0 else "less"
        side = "as many as" if abs(gap) < 0.005 else f"{abs(gap):.2f} percentage points {more} than"
        text += f", {side} the teacher {teacher['name']} ({teacher['top1']:.2f} %)"
    if best["compression"]:
        ratio = best["compression"]["parameters"]
        text += f", with {ratio:.2f} times fewer" if ratio > 1 else f", with {1 / ratio:.2f} times as many"
        text += " parameters"
    if len(result["arms"]) > 1:
        worst = min(result["arms"], key=_deciding(result["arms"]))
        reached = f"{worst['name']}, {worst['top1']['last']:.2f} %"
        text += f"; lowest of the {len(result['arms'])}: {reached}"
        if _held_out(result["arms"]):
            text += f". That {best['name']} is the best of them and {worst['name']} the lowest say the held-out images"
    if lost := result.get("diverged"):
        text += f". Diverged, and left out: {', '.join(lost)}"
    return f"{text}."


def _how_trained(result: Mapping[str, Any]) -> str:
    images = result["images"]
    text = f"Trained on {plural(images['train'], 'image')} in {duration(result['seconds'])}, seed {result['seed']}. "
    if images["held_out"]:
        seen = plural(images["held_out"], "held-out image")
        text += f"The best epoch of each is that with the highest accuracy on {seen}. "
    else:
        text += "No images were held out, so the best epoch is the last one. "
    return text + "How much another seed would change these figures cannot be told from this run."


def _result_table(result: Mapping[str, Any]) -> Html:
    teacher, arms = result["teacher"], result["arms"]
    held_out = any(arm["held_out_top1"] for arm in arms)
    heads = ["top-1, %: last", "best", "top-5, %: last", "best"]
    heads += ["held out, %: last", "best"] if held_out else []
    columns = [Column("", number=False), *(Column(head) for head in (*heads, "best epoch"))]
    rows = []
    if teacher:
        top5 = f"{teacher['top5']:.2f}" if teacher.get("top5") is not None else NOTHING
        none = [NOTHING] * (len(heads) - 3)
        rows.append([f"{teacher['name']} (teacher)", f"{teacher['top1']:.2f}", NOTHING, top5, *none, NOTHING])
    for number, arm in enumerate(arms):
        kinds = ("top1", "top5", "held_out_top1") if held_out else ("top1", "top5")
        scores = [f"{arm[top][when]:.2f}" if arm[top] else NOTHING for top in kinds for when in ("last", "best")]
        rows.append([named(number, arm["name"]), *scores, str(arm["best_epoch"])])
    return table(columns, rows, strong=[0] if teacher else [])


def _size_table(result: Mapping[str, Any]) -> Html:
    teacher = result["teacher"]
    heads = ["parameters", "MACs", *(["parameters fewer by", "MACs fewer by"] if teacher else [])]
    columns = [Column(head, number=False) for head in ("", "network", "learns from")] + [Column(head) for head in heads]
    rows = []
    if teacher:
        sizes = [amount(teacher["parameters"]), amount(teacher["macs"]), NOTHING, NOTHING]
        rows.append([f"{teacher['name']} (teacher)", code(teacher["name"]), NOTHING, *sizes])
    for number, arm in enumerate(result["arms"]):
        sizes = [amount(arm["parameters"]), amount(arm["macs"])]
        if teacher:
            saved = arm["compression"]
            sizes += [times(saved["parameters"]), times(saved["macs"])] if saved else [NOTHING, NOTHING]
        rows.append([named(number, arm["name"]), code(arm["student"]), _terms(arm), *sizes])
    return table(columns, rows, strong=[0] if teacher else [])


def _terms(arm: Mapping[str, Any]) -> Html:
    parts = []
    for term in arm["terms"]:
        settings = [f"{knob} {value:g}" for knob, value in term.get("knobs", ())]  # earlier results have none
        settings += [f"temperature {term['temperature']:g}"] if term["temperature"] else []
        scale = arm.get("scales", {}).get(term["name"])
        settings += [] if scale is None else [f"times {scale:.3g}"]
        parts.append(
            join([f"{term['weight']:g} ", code(term["name"]), f" ({', '.join(settings)})" if settings else ""])
        )
    return join([join(parts, " + "), ", balanced by gradients" if _balanced(arm) else ""])


def _balanced(arm: Mapping[str, Any]) -> bool:
    return bool(arm.get("balance", "weights") == "gradients")  # earlier results do not tell


def _by_arm(
    names: Sequence[str], log: Sequence[Mapping[str, Any]], key: str, *, factor: float = 1.0
) -> list[tuple[int, figures.Curve]]:
    found: list[tuple[int, figures.Curve]] = []
    for number, name in enumerate(names):
        records = sorted((r for r in log if r["arm"] == name and r.get(key) is not None), key=lambda r: int(r["epoch"]))
        if any(math.isfinite(record[key]) for record in records):
            found.append((number, ([r["epoch"] for r in records], [factor * r[key] for r in records])))
    return found


def _curves(lines: Sequence[tuple[int, figures.Curve]], alt: str, *, unit: str = "") -> Html:
    return figure(figures.curves(lines, alt, unit=unit))


def _held_out_section(names: Sequence[str], log: Sequence[Mapping[str, Any]], many: str) -> Html:
    lines = _by_arm(names, log, "held_out_top1", factor=100)
    if not lines:
        return Html("")
    drawn = _curves(lines, "Top-1 on the held-out images by epoch", unit="top-1, %")
    return section("Accuracy on the held-out images", many, drawn)


def _loss_section(
    arms: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]], terms: Sequence[str], many: str
) -> Html:
    names = [arm["name"] for arm in arms]
    lines = _by_arm(names, log, "loss")
    if not lines:
        return Html("")
    text = "The weighted sum of the terms, averaged over the epoch."
    if any(map(_balanced, arms)):
        text += " Where they are balanced by gradients, each is scaled first, anew every few steps."
    if len(names) > 1 and len(terms) > 1:
        text += " Arms with other terms or weights have other sums: do not compare their heights."
    return section("Loss", many, _curves(lines, "Loss by epoch", unit="loss"), paragraph(text, "soft"))


def _terms_section(
    arms: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    log: Sequence[Mapping[str, Any]],
    terms: Sequence[str],
    many: str,
) -> Html:
    panels = []
    for term in terms:
        lines = _by_arm(names, log, term)
        if lines:
            title = explained.TERM_NAMES.get(term, term)
            panels.append(figure(figures.curves(lines, f"{title} by epoch", title=title, width_in=4.2)))
    weighted = any(term["weight"] != 1 for arm in arms for term in arm["terms"])
    text = "Before their weights, which stand in the table." if weighted else "All have the weight 1."
    if any(map(_balanced, arms)):
        text = "Before their weights and the scales that balance their gradients; the last ones stand in the table."
    if not panels:
        return Html("")
    return section("Terms of the loss", many, grid(panels, kind="grid two"), paragraph(text, "soft"))


def _rate_section(names: Sequence[str], log: Sequence[Mapping[str, Any]], many: str) -> Html:
    lines = _by_arm(names, log, "rate")
    if not lines:
        return Html("")
    shared = all(line == lines[0][1] for _, line in lines)
    drawn = figures.curves(lines[:1] if shared else lines, "Learning rate by epoch", unit="learning rate", width_in=4.6)
    text = "At the end of each epoch" + (", the same for all." if shared and len(names) > 1 else ".")
    return section("Learning rate", "" if shared else many, figure(drawn, text))


def _hints_section(arms: Sequence[Mapping[str, Any]], taught: bool) -> Html:
    rows = [
        [named(number, arm["name"]), code(pair["student"]), _with_weight(pair)]
        for number, arm in enumerate(arms)
        for pair in arm["hints"]
    ]
    if not rows:
        text = "No layer of a student learns from a layer of the teacher." if taught else ""
        return section("Which layer learns from which", paragraph(text, "soft")) if text else Html("")
    columns = [Column(head, number=False) for head in ("", "layer of the student", "learns from the teacher's")]
    return section("Which layer learns from which", table(columns, rows))


def _with_weight(pair: Mapping[str, Any]) -> Html:
    weight = pair.get("weight", 1)
    return code(pair["teacher"]) if weight == 1 else join([code(pair["teacher"]), Html(f" times {weight:g}")])
