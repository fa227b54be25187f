"""From photos to the aligned crops that students are trained on and exports are checked with."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from keyhole.errors import DataError
from keyhole.faces.embedding import SIDE_PX, crop_samples
from keyhole.faces.images.detection import Detector
from keyhole.faces.images.photos import png_with_face_px
from keyhole.faces.models.preparation import Preparation, arcface_template
from keyhole.faces.watchlist.enrollment import open_people, people_of
from keyhole.files import write_bytes
from keyhole.progress import Progress, silent

_AT_A_TIME = 256


@dataclass(frozen=True)
class Cropped:
    """What became of a folder of photos.

    Attributes:
        written: How many crops were written now.
        there: How many had been written before.
        people: Of how many people there are crops.
        without_face: Names of photos in which no face was found.
        several: Names of photos that show several faces, the largest of which was taken.
        unreadable: Why a photo could not be read, by its name.
    """

    written: int
    there: int
    people: int
    without_face: tuple[str, ...]
    several: tuple[str, ...]
    unreadable: Mapping[str, str]


def crop_folder(root: Path, detector: Detector, out: Path, *, progress: Progress = silent) -> Cropped:
    """Write the largest face of each photo as an aligned 112 x 112 crop, ``PERSON/PHOTO.png``.

    Each file tells how many pixels the face had in its photo, is written whole, and is readable by its owner only. What
    is there already is left alone, so that the same call goes on after a stop. A photo of 112 x 112 is taken for an
    aligned crop.

    Args:
        root: Folder or archive of ``PERSON/*.jpg``, or of one photo a person.
        detector: Finds the faces, on all cores.
        out: The folder of the crops.
        progress: Wraps the loop.

    Raises:
        DataError: There is no photo, two would become one crop, or no photo can be read.
        RunError: A file cannot be written.

    Reference:
        The template of ArcFace (Deng et al., 2019, https://arxiv.org/abs/1801.07698), fitted by
        :func:`keyhole.faces.images.alignment.align`.
    """
    wanted = Preparation(SIDE_PX, template=arcface_template(SIDE_PX))
    found: set[str] = set()
    without: list[str] = []
    several: list[str] = []
    unreadable: dict[str, str] = {}
    written = there = 0
    with open_people(root) as album:
        samples = people_of(album)
        places = {sample.path: out / sample.identity / f"{PurePosixPath(sample.path).stem}.png" for sample in samples}
        first_of: dict[Path, str] = {}
        for path, place in places.items():
            if (other := first_of.setdefault(place, path)) != path:
                raise DataError(f"{other} and {path} of {root} would become one crop. Rename one of them.")
        chunks = range(0, len(samples), _AT_A_TIME)
        for first in progress(chunks, label=f"cropping, {_AT_A_TIME} photos a step", total=len(chunks)):
            part = samples[first : first + _AT_A_TIME]
            found.update(sample.identity for sample in part if places[sample.path].is_file())
            left = [sample for sample in part if not places[sample.path].is_file()]
            there += len(part) - len(left)
            crops = crop_samples(album, left, wanted, detector=detector, skip_unreadable=True)
            several += crops.several
            unreadable |= crops.unreadable
            kept = [sample for sample, has in zip(left, crops.found, strict=True) if has]
            without += [s.path for s in left if s not in kept and s.path not in crops.unreadable]
            for sample, pixels, face_px in zip(kept, crops.pixels, crops.native_px, strict=True):
                file = io.BytesIO()
                png_with_face_px(pixels.numpy(), float(face_px), file)
                write_bytes(places[sample.path], file.getvalue(), private=True)
                found.add(sample.identity)
                written += 1
    if len(unreadable) == len(samples):
        raise DataError(f"{next(iter(unreadable.values()))} So it is with all photos of {root}.")
    return Cropped(written, there, len(found), tuple(without), tuple(several), unreadable)
