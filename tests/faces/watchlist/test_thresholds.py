"""Thresholds by size: what is told, and what a file must hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from keyhole.errors import DataError, SettingError
from keyhole.faces.metrics.identification import Searches
from keyhole.faces.watchlist.gallery import Hit
from keyhole.faces.watchlist.thresholds import (
    TOO_LITTLE,
    UNKNOWN,
    Threshold,
    Thresholds,
    answer,
    level,
    load_thresholds,
    save_thresholds,
)

FOUND = Thresholds("f", "none", 0.01, 5, 8.0, (Threshold(8.0, 0.6, 300, 0.02), Threshold(16.0, 0.5, 300, 0.02, 0.1)))
HITS = [Hit("ann", "a.jpg", 0.58), Hit("bob", "b.jpg", 0.55), Hit("cid", "c.jpg", 0.2)]


def strangers(scores: np.ndarray) -> Searches:
    count = len(scores)
    return Searches(
        np.full(count, -np.inf),
        scores,
        np.zeros(count, np.int64),
        np.ones(count, bool),
        np.arange(count).astype(str),
        5,
    )


def test_the_nearest_size_decides() -> None:
    assert answer(HITS, 8.0, FOUND).verdict == UNKNOWN
    assert answer(HITS, 11.2, FOUND).threshold == 0.6
    assert answer(HITS, 11.4, FOUND).threshold == 0.5  # the middle by ratio is 11.3
    assert [hit.person for hit in answer(HITS, 200.0, FOUND).hits] == ["ann", "bob"]


def test_at_the_threshold_a_name_is_told_and_below_it_none() -> None:
    at = answer([Hit("ann", "a.jpg", 0.5)], 16.0, FOUND)
    assert (at.verdict, at.hits[0].person) == ("candidate", "ann")
    below = answer([Hit("ann", "a.jpg", 0.4999)], 16.0, FOUND)
    assert (below.verdict, below.hits, below.best) == (UNKNOWN, (), 0.4999)
    assert "ann" not in json.dumps(below.to_json())
    assert "ann" not in below.text()
    assert answer([], 16.0, FOUND).verdict == UNKNOWN
    little = answer(HITS, 7.9, FOUND)
    assert (little.verdict, little.hits, little.best, little.threshold) == (TOO_LITTLE, (), None, None)
    assert little.text() == "too little to tell (8 px)"


def test_a_level_lets_a_wanted_share_of_strangers_through() -> None:
    scores = np.linspace(0, 0.99, 100)
    found = level(12, strangers(scores), fpir=0.05)
    assert (scores >= found.score).sum() == 5
    assert found.strangers == 100
    assert 0.05 < found.fpir_bound < 0.12
    assert found.fnir is None


def test_misses_are_of_the_enrolled_below_it_or_not_first() -> None:
    mates = Searches(
        np.array([0.99, 0.5, -np.inf]), np.array([-np.inf, -np.inf, 0.9]), np.array([1, 1, 2]), np.ones(3, bool),
        np.array(["a", "b", "c"]), 5,
    )  # fmt: skip
    found = level(12, strangers(np.linspace(0, 0.8, 100)), mates, fpir=0.05)
    assert found.fnir == pytest.approx(2 / 3)


def test_without_strangers_there_is_no_threshold() -> None:
    with pytest.raises(DataError, match="is for a person who is not enrolled"):
        level(12, strangers(np.zeros(0)), fpir=0.05)


def test_a_file_gives_them_back(tmp_path: Path) -> None:
    save_thresholds(tmp_path / "t.json", FOUND)
    assert load_thresholds(tmp_path / "t.json", fingerprint="f", mode="none") == FOUND
    with pytest.raises(SettingError, match="calibrated for another model"):
        load_thresholds(tmp_path / "t.json", fingerprint="g")
    with pytest.raises(SettingError, match="calibrated with --match none, and this is fitted-estimated"):
        load_thresholds(tmp_path / "t.json", mode="fitted-estimated")


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    save_thresholds(path, replace(FOUND, photos=7, gallery="g"))
    value = json.loads(path.read_text())
    del value["photos"], value["gallery"], value["levels"][0]["too_little"], value["levels"][1]["too_little"]
    path.write_text(json.dumps(value))
    assert load_thresholds(path) == FOUND


@pytest.mark.parametrize(
    "spoil",
    [
        {"kind": "x"}, {"levels": []}, {"levels": [{}]}, {"levels": 3}, {"fpir": 0}, {"fpir": True}, {"fpir": "0.1"},
        {"fpir": 1e999}, {"mode": 3}, {"enrolled": None}, {"least_px": [8]}, {"photos": "7"}, {"gallery": 3},
    ],
    ids=str,
)  # fmt: skip
def test_other_files_are_refused_in_one_line(spoil: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    save_thresholds(path, FOUND)
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoil}))
    with pytest.raises(DataError, match=re.escape(f"{path} holds no thresholds of 'keyhole faces calibrate'")):
        load_thresholds(path)


def test_levels_in_disorder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    save_thresholds(path, FOUND)
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "levels": value["levels"][::-1]}))
    with pytest.raises(DataError, match="holds no thresholds"):
        load_thresholds(path)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="holds no thresholds"):
        load_thresholds(path)
