from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyhole.errors import DataError, KeyholeError, SettingError, UnknownNameError
from keyhole.studies.plan import Comparison, expand, matching, read_studies, read_study, with_combinations

START = 'teacher = "resnet20"\n[train]\nepochs = 2\n'


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_study_is_its_grid(tmp_path: Path) -> None:
    study = read_study(
        written(
            tmp_path / "s.toml",
            """
            teacher = "resnet110"
            weights = "w/big.pt"
            root = "data"
            seeds = [3, 1]
            holdout = 100
            students_per_pass = 4
            [train]
            epochs = 10
            milestones = [0.5, 0.9]
            schedule = "cosine"
            [[arm]]
            name = "kd"
            terms = "ce,kd"
            [[arm]]
            terms = ["ce,kd,hint", "ce,kd,at"]
            hints = ["auto", "stage-ends", "uniform"]
            student = "resnet8"
            """,
        )
    )
    assert [plan.name for plan in study.arms] == ["kd"] + [
        f"{terms} {hints}" for terms in ("ce,kd,hint", "ce,kd,at") for hints in ("auto", "stage-ends", "uniform")
    ]
    assert {plan.student for plan in study.arms[1:]} == {"resnet8"}
    assert [(cell.seed, cell.plan.name) for cell in study.cells[:2]] == [(3, "kd"), (3, "ce,kd,hint auto")]
    assert len(study.cells) == 14
    assert len({cell.id for cell in study.cells}) == 14
    assert (study.weights, study.root) == (tmp_path / "w/big.pt", tmp_path / "data")
    assert (study.config.epochs, study.config.milestones, study.config.schedule) == (10, (0.5, 0.9), "cosine")
    assert (study.holdout, study.students_per_pass) == (100, 4)


def test_an_arm_is_called_by_what_varies() -> None:
    def names(**table: Any) -> list[str]:
        return [plan.name for plan in expand(table)]

    assert names(terms="ce,kd") == ["ce,kd"]
    assert names(terms="ce,hint", hints="auto") == ["ce,hint auto"]
    assert names(hints=["auto"], metric=["r2_cca", "linear_cka"]) == ["r2_cca", "linear_cka"]
    assert names(count=[2, 3], hints="auto") == ["2", "3"]
    assert names(name="k{count} {hints}", count=[2, 3], hints="auto") == ["k2 auto", "k3 auto"]
    assert names(student="resnet8") == ["resnet8"]


def test_combinations_are_all_of_them(tmp_path: Path) -> None:
    text = START + '[[arm]]\nname = "x"\nhints = "combinations"\ncount = 2\n[[arm]]\nterms = "ce,kd"\n'
    study = with_combinations(read_study(written(tmp_path / "s.toml", text)), lambda _glob: ["a", "b.0", "c"])
    assert [(plan.name, plan.hints) for plan in study.arms] == [
        ("x a+b.0", ("a", "b.0")),
        ("x a+c", ("a", "c")),
        ("x b.0+c", ("b.0", "c")),
        ("ce,kd", None),
    ]
    with pytest.raises(SettingError, match="wants combinations of 2 layers; the teacher has 1"):
        with_combinations(read_study(tmp_path / "s.toml"), lambda _glob: ["a"])


def test_the_baseline_is_an_arm(tmp_path: Path) -> None:
    text = 'baseline = "ce,kd"\n' + START + '[[arm]]\nterms = ["ce", "ce,kd"]\n'
    assert with_combinations(read_study(written(tmp_path / "s.toml", text)), lambda _glob: ["a"]).baseline == "ce,kd"
    wrong = read_study(written(tmp_path / "s.toml", text.replace('baseline = "ce,kd"', 'baseline = "kd"')))
    with pytest.raises(UnknownNameError, match="Unknown baseline 'kd'"):
        with_combinations(wrong, lambda _glob: ["a"])


def test_the_recipe_of_a_cell_holds_what_decides_it_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path / "big.pt", "one")
    path = written(tmp_path / "s.toml", 'weights = "big.pt"\n' + START + '[[arm]]\nterms = "ce,kd"\n')
    study = read_study(path)
    cell = study.cells[0]
    recipe = study.recipe(cell)
    assert json.loads(json.dumps(recipe)) == recipe
    moved = replace(study, root=tmp_path / "elsewhere", students_per_pass=2, config=replace(study.config, device="cpu"))
    assert moved.recipe(cell) == recipe
    for changed in (
        replace(study, holdout=1),
        replace(study, data="cifar10"),
        replace(study, config=replace(study.config, lr=0.1)),
        replace(study, teacher="resnet32"),
    ):
        assert changed.recipe(cell) != recipe
    assert study.recipe(replace(cell, seed=1)) != recipe


ARM = '[[arm]]\nterms = "ce,kd"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("teacher = ", "is not TOML"),
        (ARM, "has no teacher; expected a text"),
        ("teacher = 3\n" + ARM, "teacher of the study is 3; expected a text"),
        (START, "has no [[arm]] table"),
        ('teacher = "resnet20"\n' + ARM, "has no epochs"),
        ("seed = [1]\n" + START + ARM, "Unknown key of a study 'seed'"),
        ("seeds = [1, 1]\n" + START + ARM, "seeds is [1, 1]; expected different whole numbers"),
        ("seeds = [true]\n" + START + ARM, "seeds is [True]"),
        ("seeds = []\n" + START + ARM, "seeds is []"),
        ("holdout = -1\n" + START + ARM, "holdout of the study is -1; expected at least 0"),
        ("students_per_pass = 0\n" + START + ARM, "expected at least 1"),
        ("holdout = true\n" + START + ARM, "holdout of the study is True"),
        (START + "epoch = 2\n" + ARM, "Unknown key of [train] 'epoch'"),
        (START + "seed = 2\n" + ARM, "Unknown key of [train] 'seed'"),
        (START + 'lr = "fast"\n' + ARM, "lr is 'fast'; expected a number"),
        (START + "lr = -1\n" + ARM, "lr is -1"),
        (START + ARM + 'hinted = "auto"\n', "Unknown key of an [[arm]] 'hinted'"),
        (START + ARM + "count = 2.5\n", "count of arm 'ce,kd' is 2.5"),
        (START + ARM + "count = []\n", "count of an [[arm]] is an empty list"),
        (START + ARM + 'count = "few"\n', "count is 'few'"),
        (START + ARM + ARM, "Two cells are called 'ce,kd'"),
        (START + '[[arm]]\nname = "x"\nterms = ["ce", "ce,kd"]\n', "Two cells are called 'x'"),
        (START + '[[arm]]\nname = "{metrics}"\nterms = "ce,kd"\n', "which is none of its keys"),
        ("arm = [3]\n" + START, "An arm is 3; expected an [[arm]] table"),
        (START + '[[arm]]\nname = "{hints.x}"\nhints = "auto"\n', "which is none of its keys"),
        (START + '[[arm]]\nname = "{count[0]}"\ncount = 3\n', "which is none of its keys"),
        (START + '[[arm]]\nname = ""\nterms = "ce,kd"\n', "comes to nothing; expected a text"),
        (START + '[[arm]]\nname = "{hints}"\nhints = " "\n', "comes to nothing; expected a text"),
        (START + '[[arm]]\nname = ["a", "b"]\nterms = "ce,kd"\n', "name of an [[arm]] is ['a', 'b']; expected a text"),
        (START.replace("2", "2.5") + ARM, "epochs is 2.5; expected a whole number"),
        (START.replace("2", "true") + ARM, "epochs is True; expected a whole number"),
        (START + 'augment = "false"\n' + ARM, "augment is 'false'; expected true or false"),
    ],
)
def test_a_study_file_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(KeyholeError) as caught:
        read_study(written(tmp_path / "s.toml", text))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_study_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not TOML"):
        read_study(tmp_path / "b.toml")


def test_files_of_arms_are_beside_the_study_and_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    written(tmp_path / "there" / "h.json", "{}")
    text = START + '[[arm]]\nterms = "ce,hint"\nhints = "h.json"\n'
    path = written(tmp_path / "there" / "s.toml", text)
    study = read_study(path)
    (cell,) = study.cells
    assert cell.plan.hints == str(tmp_path / "there" / "h.json")
    before = study.recipe(cell)
    assert len(before["arm"]["hints"]) == 64
    written(tmp_path / "there" / "h.json", '{"hints": []}')
    assert study.recipe(cell) != before
    (tmp_path / "there" / "h.json").unlink()
    with pytest.raises(DataError, match=r"h\.json: No such file"):
        study.recipe(cell)


def test_combinations_keep_to_the_layers_of_their_arm(tmp_path: Path) -> None:
    text = START + '[[arm]]\nname = "x"\nhints = "combinations"\ncount = 1\nlayers = "b*"\n'
    layers = {None: ["a", "b"], "b*": ["b"]}
    study = with_combinations(read_study(written(tmp_path / "s.toml", text)), lambda glob: layers[glob])
    assert [plan.hints for plan in study.arms] == [("b",)]


COMPARISON = '[[comparison]]\nname = "centers"\narms = "hint a*"\nagainst = ["kd", "hint uniform"]\n'
ARMS = '[[arm]]\nname = "kd"\nterms = "ce,kd"\n[[arm]]\nname = "hint {hints}"\nhints = ["auto", "uniform"]\n'


@pytest.mark.parametrize(
    ("patterns", "meant"),
    [
        (["dkd[beta=2]"], ["dkd[beta=2]"]),
        (["dkd[*"], ["dkd[beta=2]", "dkd[beta=8]"]),
        (["?d"], []),
        (["h*"], ["h*"]),  # an arm of that very name
        (["*t", "kd"], ["kd", "hint"]),
        (["*\n*"], ["two\nlines"]),
    ],
)
def test_only_an_asterisk_makes_a_pattern(patterns: list[str], meant: list[str]) -> None:
    names = ["kd", "dkd[beta=2]", "dkd[beta=8]", "h*", "hint", "two\nlines"]
    assert matching(patterns, names) == meant


def test_a_study_may_ask_for_comparisons(tmp_path: Path) -> None:
    study = read_study(
        written(tmp_path / "s.toml", START + ARMS + COMPARISON + '[[comparison]]\narms = "kd"\nagainst = "hint *"\n')
    )
    assert study.comparisons == (
        Comparison("centers", ("hint a*",), ("kd", "hint uniform")),
        Comparison("kd against hint *", ("kd",), ("hint *",)),
    )
    assert with_combinations(study, lambda _: []).comparisons == study.comparisons
    bare = read_study(written(tmp_path / "b.toml", START + ARMS))
    assert [study.recipe(cell) for cell in study.cells] == [bare.recipe(cell) for cell in bare.cells]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('arms = "kd"', "against of a \\[\\[comparison\\]\\] is None; expected names of arms"),
        ('arms = []\nagainst = "kd"', "arms of a .* is \\[\\]"),
        ('arms = "kd"\nagainst = [1]', "against of a .* is \\[1\\]"),
        ('arms = "kd"\nagainst = "hint auto"\nname = 3', "A comparison is called 3"),
        ('arms = "kd"\nagainst = "hint auto"\nname = "centers"', "A comparison is called 'centers'"),
        ('arm = "kd"\nagainst = "hint auto"', "Unknown key of a .*nearest known: arms"),
        ('arms = "kd"\nagainst = "hint atuo"', "Unknown arm of the comparison .*nearest known: hint auto"),
        ('arms = "x *"\nagainst = "kd"', "Unknown arm of the comparison"),
    ],
)
def test_a_comparison_that_makes_no_sense(tmp_path: Path, table: str, words: str) -> None:
    path = written(tmp_path / "s.toml", START + ARMS + COMPARISON + f"[[comparison]]\n{table}\n")
    with pytest.raises(KeyholeError, match=words) as caught:
        with_combinations(read_study(path), lambda _: [])
    assert len(str(caught.value).splitlines()) == 1


def test_teachers_and_schedules_are_a_grid_of_studies(tmp_path: Path) -> None:
    text = (
        'teacher = ["resnet56", "resnet110"]\nweights = ["a.pt", "b.pt"]\n[train]\nepochs = [10, 30]\nlr = [0.05]\n'
        + ARMS
    )
    found = read_studies(written(tmp_path / "s.toml", text))
    names = [f"{teacher} epochs {epochs}" for teacher in ("resnet56 a.pt", "resnet110 b.pt") for epochs in (10, 30)]
    assert list(found) == names
    last = found["resnet110 b.pt epochs 30"]
    assert (last.teacher, last.weights, last.config.epochs, last.config.lr) == (
        "resnet110",
        tmp_path / "b.pt",
        30,
        0.05,
    )
    with pytest.raises(SettingError, match="holds 4 studies"):
        read_study(tmp_path / "s.toml")
    schedules = 'teacher = "resnet8"\n[train]\nepochs = 2\nmilestones = [[0.5], [0.6, 0.9]]\n'
    found = read_studies(written(tmp_path / "m.toml", schedules + ARMS))
    assert [each.config.milestones for each in found.values()] == [(0.5,), (0.6, 0.9)]
    assert list(read_studies(written(tmp_path / "one.toml", START + ARMS))) == [""]
    wrong = text.replace(', "b.pt"', "")
    with pytest.raises(SettingError, match="two studies called 'epochs 10'"):
        read_studies(written(tmp_path / "t.toml", START.replace("2", "[10, 10]") + ARMS))
    with pytest.raises(SettingError, match="teacher lists 2 and weights 1"):
        read_studies(written(tmp_path / "w.toml", wrong))


def test_a_name_holds_keys_and_nothing_else() -> None:
    table = {"terms": "ce,kd", "count": [2, 3], "name": "{{count}} {count}"}
    assert [plan.name for plan in expand(table)] == ["{count} 2", "{count} 3"]
    for name in ("{terms:>300000000}", "{terms.__class__}", "{count", "{}", "{nothing}"):
        with pytest.raises(SettingError, match="which is none of its keys"):
            list(expand({**table, "name": name}))
