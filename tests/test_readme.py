"""The README's Python blocks run one after the other, as a reader would type them; its commands and names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pattern_faces

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 10)  # type: ignore[attr-defined]


def test_blocks_of_the_page_on_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pattern_faces.write_manifest(tmp_path / "DIR", enrolled=3)
    names: dict[str, object] = {}
    found = blocks("python", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert len(found) == 6
    for block in found:
        exec(compile(block, "python.md", "exec"), names)
    assert names["logits"].shape == (2, 10)  # type: ignore[attr-defined]
    assert len(names["found"].rows) == 4 * 2  # type: ignore[attr-defined]


def test_commands_of_the_guides_exist() -> None:
    from keyhole.cli import app

    for page in sorted((ROOT / "docs").glob("*.md")):
        text = "\n".join(blocks("sh", page.read_text(encoding="utf-8"))).replace("\\\n", " ")
        for line in (line.split() for line in text.splitlines() if "keyhole " in line):
            line = line[line.index("keyhole") :]
            command = line[1:3] if line[1] == "faces" else line[1:2]
            shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
            assert "Usage" in shown, (page.name, line)
            for option in (word for word in line if word.startswith("--")):
                assert option in shown, (page.name, line, option)


def test_commands_and_their_options_exist() -> None:
    from keyhole.cli import app

    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line.startswith("keyhole ")]
    assert {line[1] for line in lines} == {"hints", "distill", "evaluate", "export", "study", "search", "faces"}
    for line in lines:
        command = line[1:3] if line[1] == "faces" else line[1:2]
        shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
        for option in (word for word in line if word.startswith("--")):
            assert option in shown, (line[1], option)


def test_its_study_and_its_cohort_are_read(tmp_path: Path) -> None:
    from keyhole.plans import ArmPlan, read_cohort
    from keyhole.studies.plan import read_study

    study, cohort = blocks("toml")
    (tmp_path / "study.toml").write_text(study)
    (tmp_path / "cohort.toml").write_text(cohort)
    assert len(read_study(tmp_path / "study.toml").cells) == 3 * 9
    assert [plan.name for plan in read_cohort(tmp_path / "cohort.toml", ArmPlan())] == ["kd", "kd + cluster centers"]


def test_studies_of_the_documentation_are_read() -> None:
    from keyhole.studies.plan import read_study, with_combinations

    cells = {}
    for name in ("brute-force", "reference"):
        path = ROOT / "docs" / "results" / "studies" / f"{name}.toml"
        study = with_combinations(read_study(path), lambda _glob: [f"block{k}" for k in range(9)])
        assert study.holdout == 5000
        assert (study.config.epochs, study.config.batch_size) == (10, 64)  # the short protocol, never shorter
        cells[path.stem] = len(study.cells)
    assert cells == {"brute-force": 2 * 87, "reference": 3 * 13}


def test_files_that_it_links_to_are_there() -> None:
    targets = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r'<img src="([^"]+)"', README)
    assert "docs/pictures/layers.svg" in targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.M) if anchor else []
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("command", ["hints", "search", "train", "distill", "study", "evaluate", "layers", "demo"])
def test_help_of_each_command_has_an_example(command: str) -> None:
    from keyhole.cli import app

    shown = CliRunner().invoke(app, [command, "--help"]).output
    assert f"Example: keyhole {command}" in shown
