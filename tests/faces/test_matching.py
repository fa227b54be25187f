"""Matching probes of few pixels with a sharp gallery."""

from __future__ import annotations

import dataclasses
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.linalg import lstsq

from keyhole.errors import DataError, SettingError, ShapeError, UnknownNameError
from keyhole.faces.matching import (
    GALLERY_PX,
    LADDER_PX,
    MODES,
    RIDGE,
    Matcher,
    check_modes,
    digest,
    fit_matcher,
    load_matcher,
    matched_scores,
    save_matcher,
)
from keyhole.files import write_tensors

WIDTH = 12


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def blurred(faces: np.ndarray, px: float) -> np.ndarray:
    """What a model makes of small faces: turned, and drawn to one common direction."""
    random = np.random.default_rng(1)
    turn, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
    common = random.normal(size=WIDTH)
    share = min(px / 32, 1.0)
    return unit(share * faces + (1 - share) * (faces @ turn) + (1 - share) * common)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(300, WIDTH))).astype(np.float32)


@pytest.fixture(scope="module")
def matcher(faces: np.ndarray) -> Matcher:
    return fit_matcher(
        faces, lambda px: blurred(faces, px), fingerprint="f", sizes_px=(8.0, 16.0, 32.0), people=["ann", "bob"] * 150
    )


def views(gallery: np.ndarray) -> Callable[[float | None], np.ndarray]:
    return lambda px: gallery if px is None else blurred(gallery, px)


def test_the_map_is_that_of_a_ridge_regression(faces: np.ndarray, matcher: Matcher) -> None:
    small = blurred(faces, 8.0)
    x, y = small - small.mean(0), faces - faces.mean(0)
    # the same as least squares with rows appended that pull each weight to zero
    pulled = np.vstack((x, np.sqrt(RIDGE * len(x)) * np.eye(WIDTH)))
    slow = np.stack([lstsq(pulled, np.append(y[:, k], np.zeros(WIDTH)), rcond=None)[0] for k in range(WIDTH)], axis=1)
    np.testing.assert_allclose(matcher.maps[0], slow, atol=1e-4)


def test_what_the_map_cannot_restore_is_left_to_alike_images(faces: np.ndarray, matcher: Matcher) -> None:
    small = blurred(faces, 8.0)
    rest, last = list(range(240)), list(range(240, 300))
    part = fit_matcher(faces[rest], lambda _px: small[rest], fingerprint="f", sizes_px=(8.0,))
    cosines = [float(part.restore(small[k][None], 0)[0] @ faces[k]) for k in last]
    assert matcher.alike_shares[0] == pytest.approx(1 - np.mean(cosines), abs=1e-4)
    assert matcher.alike_shares[2] < 0.05  # at 32 px, small faces here are as the sharp ones


def test_what_it_restores_is_measured_on_people_who_had_no_part_in_it() -> None:
    """Photos of one person are alike, so on others of them a map seems to restore more than it does."""
    random = np.random.default_rng(3)
    of_whom = np.repeat(np.arange(60), 5)
    wide = unit(np.repeat(random.normal(size=(60, 80)), 5, axis=0) + 0.2 * random.normal(size=(300, 80)))
    small = unit(wide @ random.normal(size=(80, 80)) + random.normal(size=(60, 80))[of_whom])
    people = [f"p{k:02}" for k in of_whom]

    def share(last: np.ndarray) -> float:
        centers = small[~last].mean(axis=0), wide[~last].mean(axis=0)
        x, y = small[~last] - centers[0], wide[~last] - centers[1]
        padded = np.vstack([x, np.sqrt(RIDGE * len(x)) * np.eye(80)]), np.vstack([y, np.zeros((80, 80))])
        restored = unit((small[last] - centers[0]) @ lstsq(*padded, rcond=None)[0] + centers[1])
        return 1 - float((restored * wide[last]).sum(axis=1).mean())

    found = fit_matcher(wide, lambda _: small, fingerprint="f", sizes_px=(8.0,), people=people)
    assert found.alike_shares[0] == pytest.approx(share(of_whom % 5 == 4), abs=1e-5)
    assert found.alike_shares[0] > share(np.arange(300) % 5 == 4) + 0.1
    alone = fit_matcher(wide, lambda _: small, fingerprint="f", sizes_px=(8.0,))
    assert alone.alike_shares[0] == pytest.approx(share(np.arange(300) >= 240), abs=1e-5)
    with pytest.raises(ShapeError, match="300 faces of 3 people; expected one for each face"):
        fit_matcher(wide, lambda _: small, fingerprint="f", people=["a", "b", "c"])


def test_a_fitted_score_is_a_mean_of_two_cosines(faces: np.ndarray, matcher: Matcher) -> None:
    others = unit(np.random.default_rng(2).normal(size=(5, WIDTH)))
    probes = blurred(others[:3], 8.0)
    found = matched_scores(probes, np.full(3, 8.2), views(others), mode="fitted", matcher=matcher)
    mean, sharp_mean = blurred(faces, 8.0).mean(0), faces.mean(0)
    for i, probe in enumerate(probes):
        for k, other in enumerate(others):
            alike = unit(np.stack((probe - mean, blurred(others, 8.0)[k] - mean)))
            restored = unit(((probe - mean) @ matcher.maps[0] + sharp_mean)[None])[0]
            share = matcher.alike_shares[0]
            expected = share * (alike[0] @ alike[1]) + (1 - share) * (restored @ other)
            assert found[i, k] == pytest.approx(expected, abs=1e-5)


def test_it_finds_people_that_a_plain_comparison_does_not(matcher: Matcher) -> None:
    others = unit(np.random.default_rng(3).normal(size=(60, WIDTH)))
    noise = 0.02 * np.random.default_rng(4).normal(size=others.shape)
    probes = unit(blurred(others, 8.0) + noise)
    sizes = np.full(60, 8.0)

    def rank1(mode: str) -> float:
        scores = matched_scores(probes, sizes, views(others), mode=mode, matcher=matcher)
        return float((scores.argmax(1) == np.arange(60)).mean())

    assert rank1("none") < 0.5
    assert rank1("fitted") == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_sharp_probes_are_compared_as_they_are(mode: str, matcher: Matcher) -> None:
    others = unit(np.random.default_rng(3).normal(size=(4, WIDTH)))
    found = matched_scores(others, np.array([48.0, 60, 112, 300]), views(others), mode=mode, matcher=matcher)
    assert np.array_equal(found, others @ others.T)


def test_by_resolution_the_gallery_is_shown_with_as_many_pixels_as_the_probe() -> None:
    asked: list[float | None] = []

    def view(px: float | None) -> np.ndarray:
        asked.append(px)
        return np.eye(3)

    matched_scores(np.eye(3), np.array([11.6, 12.4, 20.0]), view, mode="resolution")
    assert asked == [None, 12.0, 20.0]
    asked.clear()
    many = np.linspace(1, 47.9, 200)
    matched_scores(np.ones((200, 3)), many, view, mode="resolution")
    assert asked == [None, *GALLERY_PX]
    assert set(LADDER_PX) <= set(GALLERY_PX)  # fitted comparisons ask for no others


@pytest.mark.parametrize("mode", ["none", "resolution", "fitted"])
def test_pairs_are_the_same_cells_of_the_whole_table(mode: str, matcher: Matcher) -> None:
    others = unit(np.random.default_rng(5).normal(size=(6, WIDTH)))
    probes, sizes = blurred(others[:4], 10.0), np.array([8.0, 10, 30, 90])
    whole = matched_scores(probes, sizes, views(others), mode=mode, matcher=matcher)
    mates = np.array([5, 0, 2, 2])
    pairs = matched_scores(probes, sizes, views(others), mode=mode, matcher=matcher, mates=mates)
    np.testing.assert_allclose(pairs, whole[np.arange(4), mates], atol=1e-12)


def test_the_nearest_size_is_by_ratio(matcher: Matcher) -> None:
    assert matcher.nearest(np.array([0.0, 7.0, 11.0, 12.0, 22.0, 23.0, 100.0])).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_file_gives_it_back_and_only_its_owner_can_read_it(matcher: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_matcher(path, matcher)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_matcher(path)
    np.testing.assert_allclose(found.maps, matcher.maps, atol=2e-3)
    same = dataclasses.replace(found, maps=matcher.maps)
    for name in ("fingerprint", "sizes_px", "alike_shares", "sharp_px", "people", "about"):
        assert getattr(same, name) == getattr(matcher, name)
    assert np.array_equal(found.small_means, matcher.small_means)


def test_no_name_is_kept(matcher: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_matcher(path, matcher)
    assert matcher.people == {digest("ann"), digest("bob")}
    assert b"ann" not in path.read_bytes()
    assert digest("e\u0301") == digest("\u00e9")  # one name in two Unicode forms


def test_it_refuses_another_model_and_its_own_people(matcher: Matcher) -> None:
    matcher.check("f", ["cid"], margin=None)
    with pytest.raises(SettingError, match="fitted for another model"):
        matcher.check("g", [], margin=None)
    with pytest.raises(SettingError, match="fitted on 1 of the people that it is to be tested on"):
        matcher.check("f", ["cid", "ann"], margin=None)
    other = dataclasses.replace(matcher, about={"margin": 0.3})
    other.check("f", [], margin=0.3)
    with pytest.raises(SettingError, match=r"fitted with a margin of 0\.3, and this is None"):
        other.check("f", [], margin=None)


def test_too_few_faces_and_sizes_in_disorder_are_refused(faces: np.ndarray) -> None:
    with pytest.raises(DataError, match="There are 99 faces to fit a matcher on; expected at least 100"):
        fit_matcher(faces[:99], lambda _px: faces[:99], fingerprint="f")
    for sizes in ((), (8.0, 8.0), (16.0, 8.0), (0.0, 8.0)):
        with pytest.raises(SettingError, match="expected positive ones that rise"):
            fit_matcher(faces, lambda _px: faces, fingerprint="f", sizes_px=sizes)


def test_wrong_settings_are_told(faces: np.ndarray) -> None:
    with pytest.raises(UnknownNameError, match="Unknown way of matching 'fited'; nearest known: fitted"):
        check_modes(("fited",))
    for modes in ((), ("none", "none")):
        with pytest.raises(SettingError, match="expected each once"):
            check_modes(modes)
    with pytest.raises(SettingError, match="needs a matcher"):
        matched_scores(faces, np.full(300, 8.0), lambda _px: faces, mode="fitted")
    with pytest.raises(ShapeError, match="There are 300 probes and 2 sizes"):
        matched_scores(faces, np.ones(2), lambda _px: faces)


@pytest.mark.parametrize(
    "spoil",
    [
        {"kind": "something else"},
        {"sizes_px": [16.0, 8.0, 4.0]},
        {"sizes_px": [8.0, 16.0]},
        {"sizes_px": "8"},
        {"sharp_px": "sharp"},
        {"people": 3},
        {"about": 3},
        {"alike_shares": [0.5]},
        {"alike_shares": [0.5, 0.5, 1.5]},
        {"fingerprint": None, "sizes_px": None},
    ],
    ids=str,
)
def test_a_file_of_another_kind_is_refused_in_one_line(
    spoil: dict[str, object], matcher: Matcher, tmp_path: Path
) -> None:
    from keyhole.files import read_tensors

    path = tmp_path / "m.safetensors"
    save_matcher(path, matcher)
    tensors, values = read_tensors(path)
    write_tensors(path, tensors, {**values, **spoil})
    with pytest.raises(DataError, match=re.escape(f"{path} is no matcher of 'keyhole faces fit'.")):
        load_matcher(path)


def test_a_map_that_is_not_finite_is_refused(matcher: Matcher, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_matcher(path, dataclasses.replace(matcher, maps=np.full_like(matcher.maps, np.nan)))
    with pytest.raises(DataError, match="is no matcher"):
        load_matcher(path)


def test_the_ladder_rises_in_steps_of_at_most_a_third() -> None:
    steps = np.diff(np.log(LADDER_PX))
    assert (steps > 0).all()
    assert steps.max() < np.log(4 / 3) + 1e-9
