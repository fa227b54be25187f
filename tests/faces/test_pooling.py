"""Frames as searches: weights by hand, sums against loops."""

from __future__ import annotations

import numpy as np
import pytest

from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.faces.matching import Matcher
from keyhole.faces.pooling import check_poolings, frame_quality, frame_weights, grouped, pool, tracks_of
from keyhole.faces.protocols.samples import Sample


def frame(identity: str, track: str = "", camera: str = "") -> Sample:
    return Sample(f"{identity}{track}{camera}.jpg", identity, camera, attributes={"track": track} if track else {})


def test_tracks_are_of_one_person_and_one_value() -> None:
    samples = [frame("ann", "1"), frame("bob", "1"), frame("ann", "1"), frame("ann", "2"), frame("cid")]
    found = tracks_of(samples, "track")
    assert found.of.tolist() == [0, 1, 0, 2, 3]
    assert found.first.tolist() == [0, 1, 3, 4]
    assert len(found) == 4


def test_cameras_make_tracks_and_frames_of_none_stay_alone() -> None:
    samples = [frame("ann", camera="a"), frame("ann", camera="a"), Sample("x.jpg", "ann"), Sample("y.jpg", "ann")]
    assert tracks_of(samples, "camera").of.tolist() == [0, 0, 1, 2]
    with pytest.raises(SettingError, match=r"No probe has 'track'.*there is camera else\."):
        tracks_of(samples, "track")


def test_weights_by_hand() -> None:
    tracks = grouped(["a", "b", "a", "a", "c", "c"])
    quality = np.array([0.1, 0.7, 0.5, 0.4, 0.0, 0.0])
    assert frame_weights("best", quality, tracks).tolist() == [0, 1, 1, 0, 1, 0]
    np.testing.assert_allclose(frame_weights("equal", quality, tracks), [1 / 3, 1, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    np.testing.assert_allclose(frame_weights("quality", quality, tracks), [0.1, 1, 0.5, 0.4, 0.5, 0.5])


def test_of_equally_good_frames_the_first_is_the_best() -> None:
    assert frame_weights("best", np.array([0.2, 0.9, 0.9]), grouped("aaa")).tolist() == [0, 1, 0]


@pytest.mark.parametrize("way", ["best", "equal", "quality"])
def test_shares_of_a_track_sum_to_one_and_sums_equal_a_loop(way: str) -> None:
    random = np.random.default_rng(0)
    tracks = grouped(random.integers(0, 7, 40).tolist())
    weights = frame_weights(way, random.random(40), tracks)
    values = random.normal(size=(40, 5))
    found = pool(values, weights, tracks)
    for track in range(len(tracks)):
        rows = [row for row in range(40) if tracks.of[row] == track]
        assert sum(weights[row] for row in rows) == pytest.approx(1)
        np.testing.assert_allclose(found[track], sum(weights[row] * values[row] for row in rows))
    assert tracks.largest(values[:, 0]).tolist() == [values[tracks.of == t, 0].max() for t in range(len(tracks))]


def test_a_frame_counts_for_what_can_be_restored_of_it() -> None:
    eye = np.stack([np.eye(2, dtype=np.float32)] * 2)
    zeros = np.zeros((2, 2), np.float32)
    matcher = Matcher("f", (8.0, 16.0), eye, zeros, zeros[0], (0.6, 0.25), sharp_px=48.0)
    np.testing.assert_allclose(frame_quality(np.array([7.0, 15.0, 47.0, 48.0]), matcher), [0.4, 0.75, 0.75, 1.0])
    np.testing.assert_allclose(frame_quality(np.array([12.0, 48.0, 96.0])), [0.25, 1.0, 1.0])


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(UnknownNameError, match=r"way of pooling 'qualty'; nearest known: quality"):
        check_poolings(("qualty",))
    with pytest.raises(SettingError, match="expected each once"):
        check_poolings(("best", "best"))
    with pytest.raises(ShapeError, match="2 qualities for 3 frames"):
        frame_weights("equal", np.ones(2), grouped("abc"))
