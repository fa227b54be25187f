"""Faces followed through clips: drawn detections for the linking, real frames for the rest."""

from __future__ import annotations

import stat
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keyhole.errors import DataError
from keyhole.faces.images.alignment import TEMPLATE_112
from keyhole.faces.images.clips import Clip, clip_digest, clip_length, crop_writer, follow, read_clip
from keyhole.faces.images.detection import Detector, Face
from keyhole.faces.images.photos import Photo, noted_face_px


class Drawn(Detector):
    """Finds the white squares of a frame, in the order of their left edges: what is linked is then known."""

    def __init__(self) -> None:
        pass

    def detect(self, photo: Photo) -> tuple[Face, ...]:
        found = []
        for value in np.unique(photo[photo > 0]):
            ys, xs = np.where(photo[..., 0] == value)
            left, top, side = xs.min(), ys.min(), xs.max() - xs.min() + 1
            points = TEMPLATE_112 * side / 112 + (left, top)
            found.append(Face((float(left), float(top), float(side), float(side)), points, float(value) / 255))
        return tuple(found)


def frame(*squares: tuple[int, int, int, int]) -> Photo:
    photo = np.zeros((120, 200, 3), np.uint8)
    for left, top, side, value in squares:
        photo[top : top + side, left : left + side] = value
    return photo


def numbers(clip: Clip) -> list[list[int]]:
    return [[seen.frame for seen in track] for track in clip.tracks]


def test_a_face_is_followed_while_it_moves_a_little() -> None:
    frames = [frame((10 + 4 * k, 20, 30, 200), (120 - 4 * k, 60, 40, 250)) for k in range(6)]
    found = follow(frames, Drawn())
    assert numbers(found) == [[0, 1, 2, 3, 4, 5]] * 2
    assert [track[0].face.box[0] for track in found.tracks] == [120, 10]  # the surer face comes first
    assert found.frames == 6
    assert found.to_json()["with_a_face"] == 6
    assert found.text().splitlines()[0] == "6 frames, 6 of them with a face"


def test_a_face_may_be_missing_for_two_frames_and_no_longer() -> None:
    here, gone = frame((10, 20, 30, 200)), frame()
    assert numbers(follow([here, gone, gone, here], Drawn())) == [[0, 3]]
    assert numbers(follow([here, gone, gone, gone, here], Drawn())) == [[0], [4]]


def test_a_jump_is_somebody_else() -> None:
    assert numbers(follow([frame((10, 20, 30, 200)), frame((60, 20, 30, 200))], Drawn())) == [[0], [1]]


def test_two_faces_never_share_a_track() -> None:
    found = follow([frame((10, 20, 30, 200)), frame((10, 20, 30, 250), (12, 60, 30, 200))], Drawn())
    assert numbers(found) == [[0, 1], [1]]


def test_a_clip_without_frames_is_told() -> None:
    with pytest.raises(DataError, match="no frame"):
        follow([], Drawn())


def test_sizes_are_those_of_the_eyes_or_less() -> None:
    (track,) = follow([frame((10, 20, 30, 200))], Drawn()).tracks
    assert track[0].eyes_px == pytest.approx(30)
    assert track[0].shown_px <= track[0].eyes_px
    assert track[0].crop is not None
    assert track[0].crop.shape == (112, 112, 3)


def test_clips_are_files_folders_or_archives(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame((10 + k, 20, 30, 200))) for k in range(3)]
    pictures[0].save(tmp_path / "clip.webp", save_all=True, append_images=pictures[1:], lossless=True)
    (tmp_path / "folder").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(tmp_path / "folder" / f"{k}.png")
    for path in (tmp_path / "clip.webp", tmp_path / "folder"):
        assert clip_length(path) == 3
        read = list(read_clip(path))
        assert len(read) == 3
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(read, pictures, strict=True))
    assert clip_digest(tmp_path / "folder") == clip_digest(tmp_path / "folder")
    before = clip_digest(tmp_path / "folder")
    for k in (10, 9):  # numbers count as numbers
        Image.fromarray(frame((10 + k, 20, 30, 200))).save(tmp_path / "folder" / f"{k}.png")
    lefts = [int(np.where(photo[..., 0].any(axis=0))[0][0]) for photo in read_clip(tmp_path / "folder")]
    assert lefts == [10, 11, 12, 19, 20]
    assert clip_digest(tmp_path / "folder") != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture; expected the frames of a clip"):
        list(read_clip(tmp_path / "empty"))


def test_crops_are_written_for_their_owner(tmp_path: Path) -> None:
    frames, folder = [frame((10, 20, 30, 200), (100, 20, 30, 250))] * 2, tmp_path / "tracks"
    (folder / "face-09").mkdir(parents=True)
    (folder / "face-09" / "00001.png").write_bytes(b"of another clip")
    found = follow(frames, Drawn(), sink=crop_writer(folder))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert names == ["face-01/00000.png", "face-01/00001.png", "face-02/00000.png", "face-02/00001.png"]
    assert stat.S_IMODE((folder / names[0]).stat().st_mode) == 0o600
    first = found.tracks[0][0]
    assert first.crop is not None
    assert np.array_equal(np.asarray(Image.open(folder / names[0])), first.crop)
    assert noted_face_px((folder / names[0]).read_bytes()) == pytest.approx(first.eyes_px, abs=0.01)
    lean = follow(frames, Drawn(), keep_crops=False)
    assert all(seen.crop is None for track in lean.tracks for seen in track)
    assert numbers(lean) == numbers(found)


def test_a_corridor_is_followed(shared: Path) -> None:
    """A person walks towards the camera: one long track, whose face grows."""
    models, clips = shared / "data" / "faces" / "models", shared / "data" / "faces" / "video"
    for clip in sorted(clips.glob("*.gif")):
        found = follow(read_clip(clip), Detector(models / "yunet_n_640_640.onnx"))
        longest = max(found.tracks, key=len)
        assert found.frames == clip_length(clip)
        assert len(longest) >= 10
        assert all(later.frame > earlier.frame for earlier, later in pairwise(longest))
