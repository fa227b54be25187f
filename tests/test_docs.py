"""The reference of files that users write names every key that is read, and no other, with its default."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from keyhole.cli.students import FacesOptions, StudentOptions
from keyhole.distillation import own_terms
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import TERMS, HintPair, Setting, View
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.terms import build_term
from keyhole.faces.images.degradation import parse_degradation
from keyhole.faces.images.distributions import DISTRIBUTIONS, parse_distribution
from keyhole.faces.models.description import KEYS, parse_description
from keyhole.faces.protocols.samples import read_manifest
from keyhole.plans import ArmPlan
from keyhole.students.distilling import StudentPlan
from keyhole.studies import plan

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "files.md").read_text(encoding="utf-8")


def table(title: str, number: int = 0) -> dict[str, list[str]]:
    """Return the rows of a table below a heading, by the names in their first cell."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found: list[dict[str, list[str]]] = []
    for line in section.splitlines():
        if line.startswith("| ---"):
            found.append({})
        elif line.startswith("| `") and found:
            first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            found[-1] |= {name: rest for name in re.findall(r"`([^`]+)`", first)}
    return found[number]


def told(cell: str) -> Any:
    """Return the value of a default that is told as TOML in backquotes; None for one in words."""
    held = re.fullmatch(r"`(.+)`", cell)
    value = tomllib.loads(f"x = {held[1]}")["x"] if held else None
    return tuple(value) if isinstance(value, list) else value


def check(rows: dict[str, list[str]], kind: Any, *, hidden: tuple[str, ...] = ()) -> None:
    known = {each.name: each.default for each in fields(kind) if each.name not in hidden}
    assert rows.keys() == known.keys()
    for name, default in known.items():
        in_words = default is MISSING or default in ((), "", None)
        assert told(rows[name][0]) == (None if in_words else default), name


def test_keys_of_a_study(tmp_path: Path) -> None:
    rows = table("Study")
    (tmp_path / "s.toml").write_text(
        'teacher = "resnet20"\n[train]\nepochs = 1\n[[arm]]\nname = "kd"\nterms = "ce,kd"\n'
    )
    study = plan.read_study(tmp_path / "s.toml")
    for name in ("data", "seeds", "holdout", "students_per_pass"):
        assert told(rows[name][0]) == getattr(study, name), name
    assert rows.keys() == set(plan.KEYS)


def test_keys_of_training_comparisons_and_arms() -> None:
    check(table("Study", 1), TrainConfig, hidden=("seed", "device"))
    check(table("Study", 2), plan.Comparison)
    check(table("Arms"), ArmPlan)


def test_what_losses_of_ones_own_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = (own_terms._INPUTS, own_terms._MADE_FOR)
    for number, names in enumerate(own):
        rows = table("Losses of yours", number)
        assert rows.keys() - {"temperature"} == set(names)
    section = PAGE.partition("\n## Losses of yours\n")[2].partition("\n## ")[0]
    [example] = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    [terms] = re.findall(r'`terms = "(.*?)"`', section)
    ce, distance, pooled = parse_terms(terms)
    assert [(term.name, term.weight) for term in (distance, pooled)] == [("mine:distance", 0.5), ("mine:Pooled", 10.0)]
    assert (distance.needs_hints, pooled.needs_hints, ce.needs_labels) == (False, True, True)
    features = torch.rand(2, 4, 3, 3, requires_grad=True), torch.rand(2, 8, 3, 3)
    view = View(
        *(features[0].mean((2, 3)), {"s": features[0]}, torch.zeros(2, 4), {"t": features[1]}),
        labels=torch.tensor([0, 1]),
        indices=torch.tensor([0, 1]),
    )
    near = build_term(distance, Setting())(view).detach()
    assert float(near) == pytest.approx(
        float(view.logits.detach().mean())
    )  # of numbers above 0, to zeros, with power 1
    build_term(pooled, Setting([HintPair("t", "s")], [(4, 8)]))(view).backward()
    assert features[0].grad is not None


def test_terms_with_weights_temperatures_and_settings() -> None:
    rows = table("Terms")
    assert rows.keys() == TERMS.keys()
    for name, kind in TERMS.items():
        _, weight, temperature, settings = rows[name]
        assert float(weight) == kind.weight, name
        assert (float(temperature) if temperature else None) == kind.temperature, name
        assert tuple(re.findall(r"`(\w+)`", settings)) == kind.knobs, name


def test_keys_of_arms_for_faces() -> None:
    rows = table("Arms for faces")
    assert rows.keys() == {each.name for each in fields(StudentPlan)}
    for each in fields(StudentOptions):  # what the command has for an arm that says nothing
        assert told(rows[each.name][0]) == each.default, each.name


def test_keys_of_a_face_model() -> None:
    assert table("Face model").keys() == set(KEYS)
    example = re.search(r"```toml\n(.*?)```", PAGE, flags=re.S)
    assert example is not None
    found = parse_description(tomllib.loads(example[1]), where="mine.toml", folder=Path(), name="mine")
    assert found.preparation.size_px == 112
    bare = parse_description(
        {"file": "a.onnx", "size_px": 112, "template": "arcface"}, where="a.toml", folder=Path(), name="a"
    )
    rows = table("Face model")
    assert bare.preparation.color == told(rows["color"][0])
    assert set(bare.preparation.mean) == {told(rows["mean"][0])}
    assert set(bare.preparation.std) == {told(rows["std"][0])}


def test_columns_of_a_manifest(tmp_path: Path) -> None:
    example = re.search(r"```csv\n(.*?)```", PAGE, flags=re.S)
    assert example is not None
    for name in re.findall(r"[\w/]+\.(?:jpg|png)", example[1]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "manifest.csv").write_text(example[1])
    found = read_manifest(tmp_path / "manifest.csv")
    assert [sample.attributes for sample in found.probes] == [{"track": "7"}] * 2
    assert [sample.camera for sample in found.probes] == ["door"] * 2
    full = ",".join(table("Pictures of faces"))
    (tmp_path / "manifest.csv").write_text(
        f"{full}\ngallery,photos/a.jpg,a,,,,\nprobe,frames/0001.png,a,c,1 2 3 4,{' '.join('1234567890')},yes\n"
    )
    (probe,) = read_manifest(tmp_path / "manifest.csv").probes
    assert not probe.attributes  # every column that the page names is one that means something
    assert probe.aligned
    assert probe.box == (1, 2, 3, 4)


def test_cameras() -> None:
    settings = table("Camera")
    assert settings.keys() == {"blur", "down", "noise", "jpeg", "webp", "up"}
    assert parse_degradation("face_px=12").down == settings["down"][0].strip("`")
    for name in settings:
        parse_degradation(f"face_px=12,{name}={'pil-box' if name in ('down', 'up') else 50}")
    kinds = table("Camera", 1)
    assert {kind.partition(":")[0] for kind in kinds} == set(DISTRIBUTIONS)
    for kind in kinds:
        assert parse_distribution(f"{kind};blur=0.2-1@0.3,methods=pil-bicubic+cv2-area,share=0.85").share == 0.85
    default = {each.name: each.default for each in fields(FacesOptions)}["degrade"]
    assert parse_distribution(str(default)).share == 0.85


def test_pages_link_to_what_is_there() -> None:
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(((?!http)[^)#\s]+)", text):
            assert (page.parent / target).exists(), (page.name, target)
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", PAGE, flags=re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
