"""Exact search, against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest

from keyhole.errors import SettingError, ShapeError
from keyhole.faces.watchlist import search as module
from keyhole.faces.watchlist.search import search


def slow(probes: np.ndarray, gallery: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = [], []
    for probe in probes:
        each = [float(np.dot(probe.astype(np.float64), row.astype(np.float64))) for row in gallery]
        order = sorted(range(len(each)), key=lambda k: (-each[k], k))[:count]
        rows.append(order)
        scores.append([each[k] for k in order])
    return np.array(scores), np.array(rows)


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 129, 700])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_it_finds_what_a_sort_finds(size: int, count: int) -> None:
    random = np.random.default_rng(size)
    gallery = random.normal(size=(size, 7)).astype(np.float32)
    probes = random.normal(size=(9, 7)).astype(np.float32)
    found = search(probes, gallery, count=count)
    scores, rows = slow(probes, gallery, count)
    assert np.array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5, atol=1e-5)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    gallery, probes = (random.normal(size=(n, 5)).astype(np.float32) for n in (1000, 70))
    whole = search(probes, gallery, count=4)
    monkeypatch.setattr(module, "_PROBES", 16)
    monkeypatch.setattr(module, "_ROWS", 150)
    parts = search(probes, gallery, count=4)
    assert np.array_equal(whole.rows, parts.rows)
    np.testing.assert_allclose(whole.scores, parts.scores, rtol=1e-6)


def test_copies_of_a_row_share_its_score() -> None:
    gallery = np.tile(np.eye(4, dtype=np.float32), (100, 1))
    found = search(np.eye(4, dtype=np.float32)[2:3], gallery, count=5)
    assert found.scores.tolist() == [[1.0] * 5]
    assert set(found.rows[0] % 4) == {2}
    assert len(set(found.rows[0])) == 5


def test_other_kinds_of_numbers_and_strides_are_taken() -> None:
    gallery = np.asfortranarray(np.eye(3))[::-1]
    assert search(np.eye(3)[:, :], gallery).rows.ravel().tolist() == [2, 1, 0]


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ShapeError, match=r"Probes of shape \(2, 3\) cannot be searched in a gallery of shape \(2, 4\)"):
        search(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ShapeError, match="at least one row"):
        search(np.zeros((2, 3)), np.zeros((0, 3)))
    with pytest.raises(SettingError, match="0 candidates were asked for"):
        search(np.zeros((2, 3)), np.zeros((2, 3)), count=0)


def test_no_probes_give_no_rows() -> None:
    found = search(np.zeros((0, 3)), np.zeros((5, 3)), count=2)
    assert found.rows.shape == found.scores.shape == (0, 2)
