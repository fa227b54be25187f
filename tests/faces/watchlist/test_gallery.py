"""Galleries: files that only their owner reads, and candidates by person."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.faces.matching import Matcher, fit_matcher, matched_scores
from keyhole.faces.pooling import Pooled, frame_quality, frame_weights, grouped, pool
from keyhole.faces.watchlist.gallery import Gallery, candidates, enroll, load_gallery, save_gallery
from keyhole.files import read_tensors, write_tensors


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def matcher() -> Matcher:
    faces = unit(np.random.default_rng(0).normal(size=(200, 6)))
    return fit_matcher(faces, lambda px: unit(faces + 1 / px), fingerprint="f", sizes_px=(8.0, 16.0))


@pytest.fixture
def gallery() -> Gallery:
    sharp = unit(np.random.default_rng(1).normal(size=(7, 6)))
    people = ("ann", "bob", "ann", "cid", "dan", "dan", "eve")
    photos = tuple(f"{k}.jpg" for k in range(7))
    return Gallery("f", people, photos, sharp, {8.0: unit(sharp + 1 / 8), 16.0: unit(sharp + 1 / 16)})


def test_candidates_are_people_by_their_best_photo(gallery: Gallery) -> None:
    probes = unit(np.random.default_rng(2).normal(size=(20, 6)))
    found = candidates(gallery, probes, np.full(20, 112.0), count=3)
    for probe, hits in zip(probes, found, strict=True):
        scores: dict[str, float] = {}
        for person, row in zip(gallery.people, gallery.sharp, strict=True):
            scores[person] = max(scores.get(person, -2.0), float(probe @ row))
        best = sorted(scores, key=lambda person: -scores[person])[:3]
        assert [hit.person for hit in hits] == best
        for hit in hits:
            assert hit.score == pytest.approx(scores[hit.person], abs=1e-6)
            assert gallery.people[int(hit.photo[0])] == hit.person


def test_with_a_matcher_scores_are_those_of_matching(gallery: Gallery, matcher: Matcher) -> None:
    probes = unit(np.random.default_rng(3).normal(size=(12, 6)))
    sizes = np.array([6.0, 8, 11, 12, 20, 47.9, 48, 60, 112, 8, 16, 200])
    whole = matched_scores(probes, sizes, gallery.view, mode="fitted", matcher=matcher)
    for scores, hits in zip(whole, candidates(gallery, probes, sizes, matcher=matcher, count=1), strict=True):
        assert hits[0].score == pytest.approx(scores.max(), abs=1e-6)
        assert hits[0].person == gallery.people[scores.argmax()]


def test_a_file_gives_it_back_and_only_its_owner_can_read_it(gallery: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_gallery(path, gallery)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_gallery(path)
    assert (found.fingerprint, found.people, found.photos) == (gallery.fingerprint, gallery.people, gallery.photos)
    assert np.array_equal(found.sharp, gallery.sharp)
    assert list(found.small) == [8.0, 16.0]
    assert np.array_equal(found.small[8.0], gallery.small[8.0])


def test_another_model_and_a_missing_size_are_refused(gallery: Gallery, matcher: Matcher) -> None:
    with pytest.raises(SettingError, match="made by another model"):
        gallery.check("g", None)
    with pytest.raises(SettingError, match=r"made with a margin of None, and this is 0\.4"):
        gallery.check("f", 0.4)
    with pytest.raises(SettingError, match="no embeddings at 12 px; it was made for 8, 16"):
        gallery.view(12.0)
    plain = Gallery("f", gallery.people, gallery.photos, gallery.sharp, {})
    with pytest.raises(SettingError, match="no embeddings at 8 px; it was made for none"):
        candidates(plain, gallery.sharp[:1], np.array([8.0]), matcher=matcher)
    other = Gallery("g", gallery.people, gallery.photos, gallery.sharp, gallery.small)
    with pytest.raises(SettingError, match="fitted for another model"):
        candidates(other, gallery.sharp[:1], np.array([8.0]), matcher=matcher)


def test_an_empty_gallery_and_missing_sizes_are_told(gallery: Gallery) -> None:
    empty = Gallery("f", (), (), np.zeros((0, 6), np.float32), {})
    with pytest.raises(DataError, match="The gallery is empty"):
        candidates(empty, gallery.sharp, np.full(7, 112.0))
    with pytest.raises(ShapeError, match="There are 7 probes and 1 sizes"):
        candidates(gallery, gallery.sharp, np.array([112.0]))


def test_one_picture_under_two_people_is_told(gallery: Gallery) -> None:
    told: list[str] = []
    sharp = np.vstack((gallery.sharp[:2], gallery.sharp[:1]))
    enroll("f", ["ann", "bob", "eve"], ["a.jpg", "b.jpg", "e.jpg"], lambda _px: sharp, note=told.append)
    assert told == ["Warning: a.jpg and e.jpg are the same picture under two people."]
    told.clear()
    enroll("f", ["ann", "bob", "ann"], ["a.jpg", "b.jpg", "e.jpg"], lambda _px: sharp, note=told.append)
    assert told == []
    with pytest.raises(ShapeError, match="There are 1 people, 3 photos and 3 embeddings"):
        enroll("f", ["ann"], ["a.jpg", "b.jpg", "e.jpg"], lambda _px: sharp)


@pytest.mark.parametrize(
    "spoil", [{"kind": "x"}, {"people": ["ann"]}, {"photos": 3}, {"fingerprint": None, "people": 1}]
)
def test_a_file_of_another_kind_is_refused(spoil: dict[str, object], gallery: Gallery, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    save_gallery(path, gallery)
    tensors, values = read_tensors(path)
    write_tensors(path, tensors, {**values, **spoil})
    with pytest.raises(DataError, match="is no gallery of 'keyhole faces embed'"):
        load_gallery(path)


def test_frames_of_a_track_are_searched_as_one() -> None:
    """Against the plain way: all scores of all frames, then their weighted mean."""
    random = np.random.default_rng(3)

    def rows(count: int) -> np.ndarray:
        return unit(random.normal(size=(count, 6)))

    sizes = (8.0, 16.0)
    maps, means = random.normal(size=(2, 6, 6)).astype(np.float32), rows(2)
    matcher = Matcher("f", sizes, maps, means, rows(1)[0], (0.7, 0.2))
    people = tuple(f"p{k % 9}" for k in range(30))
    some = Gallery("f", people, tuple(f"{k}.jpg" for k in range(30)), rows(30), {px: rows(30) for px in sizes})
    probes, shown = rows(200), random.choice([7.0, 9.0, 15.0, 60.0], 200)
    tracks = grouped(random.integers(0, 70, 200).tolist())  # more than are held at a time
    weights = frame_weights("quality", frame_quality(shown, matcher), tracks)
    every = matched_scores(probes, shown, lambda px: some.view(px), mode="fitted", matcher=matcher)
    expected = pool(every, weights, tracks)
    found = candidates(some, probes, shown, matcher=matcher, count=3, pooled=Pooled(tracks, weights))
    assert len(found) == len(tracks)
    for hits, scores in zip(found, expected, strict=True):
        best = {person: max(s for s, p in zip(scores, people, strict=True) if p == person) for person in set(people)}
        order = sorted(best, key=lambda person: -best[person])
        assert [hit.person for hit in hits] == order[:3]
        np.testing.assert_allclose([hit.score for hit in hits], [best[person] for person in order[:3]], rtol=1e-4)


def test_a_gallery_of_another_camera_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    made = enroll("f", ["ann"], ["a.jpg"], lambda _px: gallery.sharp[:1], sizes_px=(8.0,), camera="face_px=112,down=a")
    save_gallery(tmp_path / "g.safetensors", made)
    found = load_gallery(tmp_path / "g.safetensors")
    assert found.camera == made.camera
    found.check("f", None, found.camera)
    found.check("f", None)  # nothing is compared at a size
    with pytest.raises(SettingError, match="made with the camera face_px=112,down=a of its matcher"):
        found.check("f", None, "face_px=112,down=b")
    gallery.check("f", None, "face_px=112,down=b")  # of an earlier version, which did not tell
    assert enroll("f", ["ann"], ["a.jpg"], lambda _px: gallery.sharp[:1], camera="x").camera == ""
