"""The report of a study: the sentence on top, the figures in the tables, nothing that is not known."""

from __future__ import annotations

import re
from typing import Any

import pytest

from keyhole.reports.study_page import study_page
from keyhole.studies.plan import Comparison
from keyhole.studies.published import PUBLISHED
from keyhole.studies.verdict import judge

SETTING: dict[str, Any] = {
    "teacher": "resnet110",
    "teacher_top1": 71.23,
    "data": "cifar100",
    "students": ["resnet20"],
    "epochs": 10,
    "batch_size": 64,
    "holdout": 5000,
    "seeds": [0, 1, 2],
}


def cells(sizes: dict[str, int] | None = None, **values: list[float | None]) -> list[dict[str, Any]]:
    out = []
    for arm, tops in values.items():
        size = (sizes or {}).get(arm, 278_324)
        for seed, top1 in enumerate(tops):
            cell: dict[str, Any] = {"arm": arm, "seed": seed, "diverged": "loss is nan" if top1 is None else None}
            if top1 is not None:
                cell |= {"top1": {"last": top1, "best": top1 + 0.1}, "parameters": size, "macs": 100 * size}
            out.append(cell)
    return out


def test_the_sentence_and_the_figures_stand_on_the_page() -> None:
    found = judge(
        cells(kd=[60.0, 61.0, 62.0], hints=[62.0, 63.1, 63.9], wild=[None, None, 50.0]), ["kd", "hints", "wild"]
    )
    page = study_page(found, SETTING)
    assert page.index("hints is highest with 63.00") < page.index("<table")
    for told in ("resnet110 teaches resnet20", "10 epochs on cifar100, batch 64", "5,000 training images held out",
                 "63.00", "0.95", "63.10", "+2.00", "278 k", "3 seeds"):  # fmt: skip
        assert told in page, told
    assert page.count("<svg") >= 2


def test_how_the_students_were_trained_and_what_each_learns_by_stands_on_the_page() -> None:
    train = {
        "lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "schedule": "step",
        "milestones": [0.5, 0.75], "warmup_epochs": 0.5, "augment": True, "precision": "bf16", "optimizer": "sgd",
    }  # fmt: skip
    common = {"student": "resnet20", "student_size": None, "temperature": None, "balance": "weights"}
    pairs = [
        {"teacher": "layer1.4", "student": "layer1.0", "weight": 1.0},
        {"teacher": "layer3.9", "student": "layer3.2", "weight": 0.5},
    ]
    arms = [
        {**common, "name": "kd", "loss": "ce=0.1,kd=0.9", "hints": None, "pairs": []},
        {**common, "name": "hints", "loss": "ce=1,hint=100", "hints": "auto", "pairs": pairs, "balance": "gradients"},
        {**common, "name": "open", "loss": "ce=1,hint=100", "hints": ("layer1.4", "layer2.4"), "pairs": None,
         "temperature": 4.0, "student_size": 24},
    ]  # fmt: skip
    asked = [Comparison("hints against none", ("hints",), ("kd",)), Comparison("later", ("open",), ("kd",))]
    asked.append(Comparison("hints against kd", ("hints",), ("kd",)))  # whose name tells its sides
    names = ["kd", "hints", "open"]
    found = judge(cells(kd=[60.0, 61.0, 62.0], hints=[62.0, 63.1, 63.9], open=[]), names, comparisons=asked)
    told = [{"name": each.name, "arms": list(each.arms), "against": list(each.against)} for each in asked]
    page = (
        study_page(found, {**SETTING, "train": train, "arms": arms, "comparisons": told})
        .replace("&nbsp;", " ")
        .replace("\u00a0", " ")
    )
    for text in (
        "Training: sgd, learning rate 0.05, a tenth of it each after 50 % and 75 % of the epochs, rising for 0.5 "
        "epochs first, momentum 0.9, weight decay 0.0005, padded, cropped and flipped images, bf16.",
        "ce=0.1, kd=0.9",
        "ce=1, hint=100; balanced by gradients",
        "ce=1, hint=100; temperature 4",
        "resnet20 at 24 px",
        "layer1.4 -&gt; layer1.0, layer3.9 -&gt; layer3.2 times 0.5",
        "layer1.4, layer2.4",
        "hints against none: hints. Against: kd.",
    ):
        assert text in page, text
    assert "hints against kd: hints" not in page
    assert "later:" not in page.split("What the study was made to compare")[1]
    still = {**train, "milestones": [], "warmup_epochs": 1.0}
    assert "learning rate 0.05, constant, rising for 1 epoch first" in study_page(found, {**SETTING, "train": still})
    assert "by a cosine" in study_page(found, {**SETTING, "train": {**train, "schedule": "cosine"}}).replace(
        "&nbsp;", " "
    )


def test_nothing_is_said_of_held_out_images_where_there_are_none() -> None:
    page = study_page(judge(cells(kd=[60.0, 61.0], hints=[62.0, 63.1]), ["kd", "hints"]), SETTING | {"holdout": 0})
    assert "no images held out for choosing" in page
    assert "as nothing was held out, the best epoch is the last one" in page


def test_published_figures_stand_with_their_protocol_and_only_where_they_belong() -> None:
    found = judge(cells(kd=[60.0]), ["kd"])
    page = study_page(found, SETTING)
    assert "What others published" in page
    assert "72.20" in page
    assert "a difference to the table above is not a difference between methods" in page
    for other in ({"data": "digits"}, {"teacher": "resnet44"}, {"students": ["resnet8"]}):
        assert "What others published" not in study_page(found, {**SETTING, **other})


@pytest.mark.parametrize("pair", PUBLISHED)
def test_published_figures_are_in_range_and_told_once(pair: tuple[str, str]) -> None:
    methods = [each.method for each in PUBLISHED[pair]]
    assert len(set(methods)) == len(methods)
    assert all(60 < each.top1 < 80 and each.source.startswith("https://") for each in PUBLISHED[pair])
    assert {each.protocol for each in PUBLISHED[pair]} <= {
        "last",
        "best",
        "not told; the code keeps the last epoch and logs the best",
    }


def test_what_accuracy_costs_is_shown_where_sizes_differ() -> None:
    same = judge(cells(a=[60.0], b=[61.0]), ["a", "b"])
    assert "What accuracy costs" not in study_page(same, SETTING)
    other = judge(cells({"b": 83_000}, a=[60.0], b=[61.0]), ["a", "b"])
    assert "What accuracy costs" in study_page(other, SETTING)


def test_names_are_escaped_and_an_empty_study_has_a_page() -> None:
    evil = "<script>alert(1)</script>"
    page = study_page(judge(cells(**{evil: [60.0, 61.0], "kd": [59.0, 60.1]}), ["kd", evil]), SETTING)
    assert evil not in page
    empty = study_page(judge([None, None], ["kd", "hints"]), {**SETTING, "teacher_top1": None})
    assert "Nothing has come to the end yet" in empty


def heads(page: str) -> list[str]:
    table = page[page.index("<table") : page.index("</table>")]
    return [re.sub("<[^>]*>", "", head) for head in re.findall("<th[^>]*>.*?</th>", table)]


def test_the_last_and_the_best_epoch_have_a_mean_and_a_spread() -> None:
    found = cells(kd=[60.0, 61.0, 62.0])
    for cell, best in zip(found, (61.0, 63.0, 65.0), strict=True):
        cell["top1"]["best"] = best
    page = study_page(judge(found, ["kd"]), SETTING)
    assert heads(page)[1:5] == [
        "last epoch, %: mean", "standard deviation", "best epoch, %: mean", "standard deviation"
    ]  # fmt: skip
    assert re.findall("<td[^>]*>([0-9.]+)</td>", page)[:5] == ["61.00", "1.00", "63.00", "2.00", "3"]


def test_how_far_held_out_accuracies_stand_above_those_on_test_images() -> None:
    found = cells(kd=[60.0, 61.0], hints=[62.0, 63.0], wild=[None, None])
    flat = study_page(judge(found, ["kd", "hints", "wild"]), SETTING)
    assert "held out minus test" not in flat
    for cell, more in zip(found, (-0.3, -0.1, 3.0, 3.5, 0, 0), strict=True):
        if cell["diverged"] is None:
            cell["held_out_top1"] = {"last": cell["top1"]["last"] + more}
    page = study_page(judge(found, ["kd", "hints", "wild"]), SETTING)
    assert heads(page)[5:7] == ["held out, %: mean", "held out minus test"]
    assert "-0.20</td>" in page
    assert "+3.25</td>" in page
    assert "held-out accuracies flatter such arms" in page
    assert "held-out accuracies flatter such arms" not in flat


def test_it_is_told_where_cells_were_made_by_several_versions_or_machines() -> None:
    verdict = judge(cells(kd=[60.0, 61.0]), ["kd"])
    assert "differ in" not in study_page(verdict, {**SETTING, "mixed": []})
    mixed = [
        {"what": "source", "cells": {"96bb335b": 13, "d492073c": 12, "d083bcb1": 1}, "seeds": []},
        {"what": "precision", "cells": {"bf16": 25, "fp32": 1}, "seeds": [2]},
    ]
    page = study_page(verdict, {**SETTING, "mixed": mixed})
    assert "differ in source: 13 of 96bb335b, 12 of d492073c and 1 of d083bcb1. Those of one seed are alike" in page
    assert "differ in precision: 25 of bf16 and 1 of fp32. Even those of one seed differ, of seed 2" in page


def test_one_student_under_several_names_is_told() -> None:
    tops: dict[str, list[float | None]] = {"kd": [60.0, 61.0], "cka": [62.0, 63.1]}
    known = [each | {"history": [{"loss": i / 7}]} for i, each in enumerate(cells(**tops))]
    twins = [each | {"arm": arm} for arm in ("svcca", "pwcca") for each in known if each["arm"] == "cka"]
    page = study_page(judge(known + twins, ["kd", "cka", "svcca", "pwcca"]), SETTING)
    assert "One and the same student: cka = svcca = pwcca." in page
    assert "the same student" not in study_page(judge(known, ["kd", "cka"]), SETTING)
