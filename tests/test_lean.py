"""The package works with what it declares: nothing of the extras, and nothing that only the extras bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# hides every top-level module of the list on standard input, then runs the command line
HIDDEN = """
import json, sys

hidden = set(json.load(sys.stdin))

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
from keyhole.cli import main
main()
"""


def declared() -> set[str]:
    """Return keyhole and all that it needs without an extra, by the packages' own metadata."""
    found: set[str] = set()
    waiting = ["keyhole"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        wanted = [Requirement(text) for text in needs]
        waiting += [each.name for each in wanted if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def others() -> list[str]:
    kept = declared()
    modules = metadata.packages_distributions()
    return sorted(name for name, owners in modules.items() if not kept & {canonicalize_name(owner) for owner in owners})


def run(others: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDDEN, *options]
    return subprocess.run(command, input=json.dumps(others), capture_output=True, text=True, timeout=300)


def test_the_extras_are_really_hidden(others: list[str]) -> None:
    assert {"pytest", "beartype", "timm", "torchvision"} <= set(others)
    assert not {"torch", "numpy", "sklearn", "rich", "typer", "keyhole", "matplotlib"} & set(others)
    done = run(others, "layers", "--model", "timm:resnet18")
    assert done.returncode == 1
    assert "Install it: pip install timm torchvision" in done.stderr


def test_help_needs_no_extra(others: list[str]) -> None:
    done = run(others, "--help")
    assert done.returncode == 0, done.stderr
    assert "distill" in done.stdout


def test_from_training_to_a_report_no_extra_is_needed(others: list[str], tmp_path: Path) -> None:
    digits = ("--data", "digits", "--precision", "fp32")
    done = run(others, "train", "--model", "resnet8", *digits, "--epochs", "1", "--out", str(tmp_path / "t"))
    assert done.returncode == 0, done.stderr
    teacher = ("--teacher", str(tmp_path / "t" / "student.safetensors"))
    hints = ("hints", *teacher, *digits, "--samples", "200", "--stability", "3", "--count", "2")
    for options in (
        (*hints, "--out", str(tmp_path / "h")),
        ("distill", *teacher, *digits, "--student", "resnet8", "--hints", "uniform", "--holdout", "200",
         "--epochs", "1", "--out", str(tmp_path / "s")),
    ):  # fmt: skip
        done = run(others, *options)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "h" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "s" / "report.html").stat().st_size > 10_000
