"""Whole pages: self-contained, escaped, with the figures of the data in their tables, and right for odd input."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from keyhole.data.sources import default_input, open_data
from keyhole.distillation.kinds import TERMS
from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
from keyhole.hints.selection import CONTROLS, Rule
from keyhole.hints.similarity import METRICS
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build
from keyhole.reports import explained
from keyhole.reports.demo_page import demo_page
from keyhole.reports.hints_page import hints_page
from keyhole.reports.training_page import training_page

EVIL = '<b>&"x"'
VOID = {"meta", "br", "image", "use", "path", "line", "img", "input", "hr", "link"}


class Parsed(HTMLParser):
    """What a browser would make of a page: tags, attributes, texts, and tables as rows of cells."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        self.texts.append((inside, data.replace("\u00a0", " ")))
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def text(self, *tags: str) -> str:
        return " ".join(data for tag, data in self.texts if not tags or tag in tags)


def read(page: str) -> Parsed:
    """Return a page, after all that must hold for every one of them."""
    parsed = Parsed(page)
    assert not parsed.open
    assert not {"script", "link", "iframe", "object", "embed", "b", "foreignobject"} & set(parsed.tags)
    for _, name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith(("#", "data:image/png;base64,"))
        assert not re.search(r"url\((?!#)", value)
    style = parsed.text("style")
    assert "@import" not in style
    assert "url(" not in style
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = [value[1:] for _, name, value in parsed.attributes if name.endswith("href") and value.startswith("#")]
    pointed += re.findall(r"url\(#([^)]*)\)", " ".join(value for _, _, value in parsed.attributes))
    assert set(pointed) <= set(ids)
    seen = parsed.text("h1", "h2", "p", "td", "th", "text", "figcaption", "code", "li", "dd")
    assert not re.search(r"\b(nan|inf|None)\b", seen)
    return parsed


def hint_rows(parsed: Parsed) -> list[list[str]]:
    return parsed.tables[0][1:]


@pytest.fixture(scope="module")
def teacher() -> Network:
    torch.manual_seed(0)
    return build("resnet14", classes=10, input=default_input("digits"))


def choose(network: Network, rule: Rule, **settings: Any) -> Hints:
    config = ChoiceConfig(**{"samples": 120, "draws": 8, **settings})
    return choose_hints(network, open_data("digits").train, rule, config=config, data="digits")


@pytest.fixture(scope="module")
def single(teacher: Network) -> Hints:
    return choose(teacher, Rule(count=2))


@pytest.fixture(scope="module")
def several(teacher: Network) -> Hints:
    return choose(teacher, Rule(count=None), metrics=("r2_cca", "linear_cka"))


def test_table_of_hints_holds_the_numbers_of_the_data(single: Hints) -> None:
    parsed = read(hints_page(single))
    rows = hint_rows(parsed)
    assert [row[1] for row in rows] == list(single.hints)
    layers = {layer.name: layer for layer in single.layers}
    choice = single.choices[single.metric]
    for order, row in enumerate(rows, 1):
        layer = layers[row[1]]
        assert row[0] == str(order)
        assert row[2] == str(layer.channels)
        assert row[3] == f"{layer.size[0]} × {layer.size[1]}"  # noqa: RUF001
        cluster = next(members for members in choice.clusters if layer.name in members)
        assert f"({len(cluster)} layer" in row[4]
        assert cluster[0] in row[4]
        assert cluster[-1] in row[4]
        assert row[5] == f"{100 * choice.stability[layer.name]:.0f}"
    drawn = parsed.text("text")
    assert all(layer.name in drawn for layer in single.layers)
    lead = parsed.text("p")
    assert "120 images of digits" in lead
    assert "R2-CCA" in lead


def test_the_same_hints_give_the_same_page(single: Hints) -> None:
    assert hints_page(single) == hints_page(single)


def test_time_is_told_in_forward_passes_where_one_was_timed(single: Hints) -> None:
    seconds = {**single.seconds, "bare_forward": 2.0, "total": 5.0, "stability": 1.0}
    parsed = read(hints_page(replace(single, seconds=seconds)))
    assert "2.50 times as long" in parsed.text("p")
    assert next(row for row in parsed.tables[-1] if row[0] == "total")[-1] == "2.50"

    parsed = read(hints_page(replace(single, seconds={**seconds, "bare_forward": None})))
    assert "times as long" not in parsed.text("p")
    assert next(row for row in parsed.tables[-1] if row[0] == "total")[1] == "5.00 s"


def test_several_metrics_each_show_what_they_would_choose(several: Hints) -> None:
    parsed = read(hints_page(several))
    assert "consensus of R2-CCA and linear CKA" in parsed.text("p")
    rows = next(table for table in parsed.tables if table[0][0] == "metric")[1:]
    assert [row[1] for row in rows] == [", ".join(choice.hints) for choice in several.choices.values()]
    assert sum("decides" in row[0] for row in rows) == 1
    named = parsed.text("figcaption")
    assert all(name in named for name in ("R2-CCA", "linear CKA", "debiased CKA", "RBF CKA", "Procrustes", "consensus"))
    assert "highest silhouette" in parsed.text("p")


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_have_a_page_that_says_so(teacher: Network, name: str) -> None:
    found = choose(teacher, Rule(name, count=2))
    parsed = read(hints_page(found))
    assert parsed.text("h1").startswith("A control:")
    assert [row[1] for row in hint_rows(parsed)] == list(found.hints)
    headings = parsed.text("h2")
    assert ("How stable the choice is" in headings) == (name == "reverse")
    assert ("How many clusters" in headings) == (name == "reverse")
    assert "Other metrics" in headings


def test_one_layer_one_cluster_and_all_metrics() -> None:
    small = build("resnet8", classes=10, input=default_input("digits"))
    one = choose(small, Rule(count=1), layers="layer2.0")
    parsed = read(hints_page(one))
    assert parsed.text("h1") == "Layer layer2.0 of resnet8 should teach"
    assert [row[1] for row in hint_rows(parsed)] == ["layer2.0"]

    parsed = read(hints_page(choose(small, Rule(count=1), draws=0, bare=False, metrics=METRICS)))
    assert "was not measured" in parsed.text("p")
    assert "How stable the choice is" not in parsed.text("h2")
    assert len(hint_rows(parsed)) == 1


def test_names_of_users_are_text_and_nothing_else() -> None:
    blocks = [(f"{EVIL}$_{i}^{{$", nn.Sequential(nn.Conv2d(1 if i == 0 else 4, 4, 3), nn.ReLU())) for i in range(3)]
    layers: list[tuple[str, nn.Module]] = [*blocks, ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())]
    module = nn.Sequential(OrderedDict([*layers, ("out", nn.Linear(4, 10))]))
    network = Network(f"{EVIL}$net", module.eval(), InputSpec((8, 8), (0.3,), (0.4,)), 10)
    found = choose_hints(
        network,
        open_data("digits").train,
        Rule(count=2),
        config=ChoiceConfig(samples=60, draws=4, layers="<b>*{$"),
        data=f"{EVIL} data",
    )
    page = hints_page(found)
    parsed = read(page)
    assert "<b>" not in page
    assert f"{EVIL}$net" in parsed.text("h1")
    assert f"{EVIL} data" in parsed.text("p")
    assert [row[1] for row in hint_rows(parsed)] == list(found.hints)
    assert all(name in parsed.text("text") for name in found.hints)


def test_layers_with_long_names_and_other_scripts(single: Hints) -> None:
    new = {layer.name: f"модуль.层.{'very_long_' * 8}{layer.name}" for layer in single.layers}
    choices = {
        metric: replace(
            choice,
            hints=tuple(new[name] for name in choice.hints),
            clusters=tuple(tuple(new[name] for name in members) for members in choice.clusters),
            stability={new[name]: value for name, value in choice.stability.items()},
        )
        for metric, choice in single.choices.items()
    }
    layers = tuple(replace(layer, name=new[layer.name]) for layer in single.layers)
    parsed = read(hints_page(replace(single, layers=layers, choices=choices)))
    assert [row[1] for row in hint_rows(parsed)] == [new[name] for name in single.hints]


def result(arms: int = 2, epochs: int = 3, *, held_out: bool = True, taught: bool = True) -> dict[str, Any]:
    """Return a result in the form of ``Result.to_json``."""
    made = [
        {
            "name": f"arm {EVIL} {k}",
            "student": f"student{EVIL}{k}",
            "terms": [
                {"name": "ce", "weight": 0.5, "temperature": None},
                {"name": "kd", "weight": 0.9, "temperature": 3.0},
                {"name": "dkd", "weight": 1.0, "temperature": 4.0, "knobs": [["alpha", 1.0], ["beta", 2.0]]},
            ],
            "hints": [{"teacher": f"layer1.{k}{EVIL}", "student": "layer2.0"}] if k else [],
            "top1": {"last": 61.234 + k, "best": 62.345 + k},
            "top5": {"last": 81.5 + k, "best": 82.5 + k},
            "best_epoch": max(epochs - 1, 1),
            "held_out_top1": {"last": 60.125 + k, "best": 63.5 + k} if held_out else None,
            "parameters": 278_324,
            "macs": 40_818_688,
            "compression": {"parameters": 3.096, "macs": 3.083} if taught else None,
        }
        for k in range(arms)
    ]
    teacher = {"name": f"net{EVIL}", "top1": 72.63, "top5": 91.94, "parameters": 861_620, "macs": 125_000_000}
    images = {"train": 45_000, "held_out": 5_000 if held_out else 0, "test": 10_000}
    common = {"data": f"data{EVIL}", "epochs": epochs, "seed": 4, "images": images, "seconds": 75.0}
    return {"teacher": teacher if taught else None, **common, "arms": made}


def log(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = []
    for epoch in range(1, value["epochs"] + 1):
        for arm in value["arms"]:
            record = {
                "arm": arm["name"],
                "epoch": epoch,
                "rate": 0.05,
                "loss": 3.0 / epoch,
                "ce": 2.0 / epoch,
                "kd": 1.0,
            }
            records.append(record | ({"held_out_top1": 0.2 * epoch} if arm["held_out_top1"] else {}))
    return records


def test_training_table_holds_the_numbers_of_the_result() -> None:
    value = result()
    page = training_page(value, log(value))
    parsed = read(page)
    assert "<b>" not in page
    head, teacher, *rows = parsed.tables[0]
    assert head == ["", "top-1, %: last", "best", "top-5, %: last", "best", "held out, %: last", "best", "best epoch"]
    assert teacher == [f"net{EVIL} (teacher)", "72.63", "–", "91.94", "–", "–", "–", "–"]  # noqa: RUF001
    assert [row[1:] for row in rows] == [
        ["61.23", "62.34", "81.50", "82.50", "60.12", "63.50", "2"],
        ["62.23", "63.34", "82.50", "83.50", "61.12", "64.50", "2"],
    ]
    sizes = parsed.tables[1]
    assert sizes[1][3:] == ["862 k", "125 M", "–", "–"]  # noqa: RUF001
    assert sizes[2][1:] == [
        f"student{EVIL}0", "0.5 ce + 0.9 kd (temperature 3) + 1 dkd (alpha 1, beta 2, temperature 4)",
        "278 k", "40.8 M", "3.10 ×", "3.08 ×",  # noqa: RUF001
    ]  # fmt: skip
    assert parsed.tables[-1][1][1:] == ["layer2.0", f"layer1.1{EVIL}"]
    assert "10.40 percentage points less than the teacher" in parsed.text("p")
    assert "3.10 times fewer parameters" in parsed.text("p")


def test_the_best_arm_is_chosen_by_held_out_images() -> None:
    value = result()
    first, second = value["arms"]
    first["held_out_top1"]["last"], second["held_out_top1"]["last"] = 61.0, 60.0  # and the second is higher on the test
    parsed = read(training_page(value, log(value)))
    assert f"Best of 2: {first['name']}, 61.23 % of the test images" in parsed.text("h1")
    assert f"lowest of the 2: {second['name']}, " in parsed.text("p")
    told = f"That {first['name']} is the best of them and {second['name']} the lowest say the held-out images"
    assert told in parsed.text("p")
    bare = result(held_out=False)
    parsed = read(training_page(bare, log(bare)))
    assert f"Highest on the test images of 2: {second['name']}, 62.23 %" in parsed.text("h1")
    assert "held-out images" not in parsed.text("p")


def test_a_balance_stands_in_the_table_and_below_the_curves() -> None:
    value = result()
    value["arms"][0] |= {"balance": "gradients", "scales": {"ce": 1.0, "kd": 2.345, "dkd": 0.5}}
    value["arms"][1] |= {"balance": "weights", "scales": {}}
    records = [record | ({"scales": {"ce": 1.0}} if record["arm"].endswith("0") else {}) for record in log(value)]
    parsed = read(training_page(value, records))
    rows = parsed.tables[1][2:]
    assert rows[0][2] == (
        "0.5 ce (times 1) + 0.9 kd (temperature 3, times 2.35) + 1 dkd (alpha 1, beta 2, temperature 4, times 0.5), "
        "balanced by gradients"
    )
    assert "times" not in rows[1][2]
    assert "Where they are balanced by gradients, each is scaled first" in parsed.text("p")
    assert "the scales that balance their gradients; the last ones stand in the table" in parsed.text("p")


def test_curves_have_the_color_that_the_table_has() -> None:
    value = result(arms=3)
    page = training_page(value, log(value))
    for color in ("#0072B2", "#D55E00", "#009E73"):
        assert f'stroke="{color}"' in page
        assert len(re.findall(f"stroke: {color}", page, flags=re.IGNORECASE)) >= 4
    headings = read(page).text("h2")
    for heading in ("Accuracy on the held-out images", "Loss", "Terms of the loss", "Learning rate"):
        assert heading in headings


@pytest.mark.parametrize("arms", [1, 9])
def test_training_without_teacher_held_out_images_or_second_epoch(arms: int) -> None:
    value = result(arms=arms, epochs=1, held_out=False, taught=False)
    parsed = read(training_page(value, log(value)))
    assert ("trained without a teacher" in parsed.text("h1")) == (arms == 1)
    assert "Accuracy on the held-out images" not in parsed.text("h2")
    assert len(parsed.tables[0]) == arms + 1
    assert parsed.tables[0][0] == ["", "top-1, %: last", "best", "top-5, %: last", "best", "best epoch"]
    assert "After 1 epoch it" in parsed.text("p")


def test_training_page_with_an_empty_log_or_broken_values() -> None:
    value = result()
    parsed = read(training_page(value, []))
    assert "Loss" not in parsed.text("h2")
    records = log(value)
    records[0]["loss"] = float("nan")
    read(training_page(value, records))


def demo(seeds: int = 3, *, taught: bool = True) -> dict[str, Any]:
    tops = [[90.2, 91.0, 90.6], [92.0, 93.0, 94.0]]
    names = [f"plain {EVIL}", "kd $x^{$"]
    known = seeds > 1
    return {
        "title": f"A title {EVIL}",
        "note": "An illustration on 1,797 small scans.",
        "teacher": result()["teacher"] if taught else None,
        "arms": [
            {"name": name, "parameters": 78_042, "compression": {"parameters": 5.95, "macs": 22.4}, "top1": top[:seeds]}
            for name, top in zip(names, tops, strict=True)
        ],
        "paired": [
            {
                "name": names[1],
                "against": names[0],
                "mean": 2.4,
                "low": -0.1 if known else None,
                "high": 4.9 if known else None,
            }
        ],
    }


def test_demo_page_holds_means_spreads_intervals_and_the_note(single: Hints) -> None:
    page = demo_page(demo(), hints=single)
    parsed = read(page)
    assert "<b>" not in page
    assert '<p class="note">An illustration on 1,797 small scans.</p>' in page
    rows = parsed.tables[0][2:]
    assert [cell.strip() for cell in rows[0]] == [
        f"plain {EVIL}", "90.60", "0.40", "90.20", "91.00", "3", "78 k", "5.95 ×", "22.40 ×"  # noqa: RUF001
    ]  # fmt: skip
    assert rows[1][1:3] == ["93.00", "1.00"]
    assert parsed.tables[1][1] == [f"kd $x^{{$ minus plain {EVIL}", "+2.40", "-0.10 to +4.90", "yes"]
    assert all(name in parsed.text("code") for name in single.hints)


def test_demo_page_of_one_seed_without_teacher() -> None:
    value = copy.deepcopy(demo(1, taught=False))
    parsed = read(demo_page(value))
    assert parsed.tables[0][1][1:3] == ["90.20", "–"]  # noqa: RUF001
    assert parsed.tables[1][1][1:] == ["+2.40", "–", "–"]  # noqa: RUF001
    assert "One seed gives no interval" in parsed.text("p", "figcaption")


def test_every_term_has_a_name_for_people() -> None:
    assert explained.TERM_NAMES.keys() == TERMS.keys()
    assert all(name.endswith(f"({term})") for term, name in explained.TERM_NAMES.items())
