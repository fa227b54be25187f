"""Faces as a data set of two views: the sharp image for the teacher, and what a camera makes of it for the students."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from keyhole.data.splits import WHOLE, Batch, Share, epoch_order, to_unit
from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import Album, open_album
from keyhole.faces.images.alignment import retemplate
from keyhole.faces.images.degradation import degrade, image_seeds
from keyhole.faces.images.distributions import Distribution
from keyhole.faces.images.photos import decode_photo
from keyhole.faces.images.threads import in_order
from keyhole.faces.models.preparation import Preparation
from keyhole.progress import Progress, silent

SIDE_PX = 112
_CPU = torch.device("cpu")
_FLIP, _NOISE, _DRAWN = 21, 22, 24  # streams of random numbers of their own


@dataclass(frozen=True)
class FaceViews:
    """Aligned faces, each seen sharp by a teacher and small by students; a :class:`keyhole.data.splits.Split`.

    What the students see is drawn anew in each epoch, from the seed, the epoch and the image alone. The sharp image
    comes as it is or mirrored, so that a teacher may be asked once for each of the two. Its number is ``2 * i`` for
    image i, and one more where it is mirrored.

    Attributes:
        crops: 112-template crops, RGB.
        labels: Whom each shows, by position in ``classes``; -1 where it is not known.
        indices: Position of each in the official order.
        classes: Who there is; empty where nobody is told apart.
        shown: What the teacher takes.
        seen: What the students take.
        camera: How small the students see each face, and how it came to that.
        flip: Mirror half of the images.
        small_seed: Makes :meth:`batches` yield the faces as the camera delivers them; None yields them sharp.
        device: Where batches go; faces are degraded on the CPU.
    """

    crops: UInt8[Tensor, "n 112 112 3"]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    shown: Preparation
    seen: Preparation
    camera: Distribution
    flip: bool = True
    small_seed: int | None = None
    device: torch.device = _CPU

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.crops)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the faces and of whom they show."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="backslashreplace"))
        digest.update(self.labels.numpy().tobytes())
        for part in torch.split(self.crops, 1024):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    def subset(self, positions: Sequence[int] | Int64[Tensor, " m"]) -> FaceViews:
        """Return the images at these positions of this split, in that order."""
        where = torch.as_tensor(positions, dtype=torch.int64)
        return replace(self, crops=self.crops[where], labels=self.labels[where], indices=self.indices[where])

    def to(self, device: torch.device) -> FaceViews:
        """Return the same images with batches on that device."""
        return replace(self, device=device)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order, in the form of the teacher: sharp, or small where ``small_seed`` is given."""
        seed = self.small_seed
        drawn = () if seed is None else self.camera.draw(len(self), seed)
        seeds = [] if seed is None else image_seeds(seed, len(self))
        for first in range(0, len(self), batch_size):
            where = slice(first, first + batch_size)
            crops = self.crops[where] if seed is None else degrade(self.crops[where], drawn[where], seed=seeds[where])
            yield Batch(
                in_form(crops, self.shown).to(self.device),
                self.labels[where].to(self.device),
                self.indices[where].to(self.device),
            )

    def training_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, augment: bool = True, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """Yield one epoch, shuffled: what the students see, and how to make the sharp image for the teacher.

        Args:
            batch_size: Images a step.
            seed: Of order, mirroring and camera.
            epoch: From 0.
            start: Step to begin with.
            augment: Mirror half of the images, where they may be.
            share: Which part of each batch this process takes.
        """
        count = len(self)
        order = epoch_order(count, seed=seed, epoch=epoch)
        mirrored = np.random.default_rng([seed, epoch, _FLIP]).integers(0, 2, count)
        if not (augment and self.flip):
            mirrored[:] = 0
        drawn = self.camera.draw(count, _mixed(seed, epoch))
        seeds = image_seeds(_mixed(seed, epoch), count)
        for step in range(start, share.steps(count, batch_size)):
            chosen = order[share.of_step(step, batch_size)]
            where = torch.from_numpy(chosen)
            crops, flips = self.crops[where], torch.from_numpy(mirrored[chosen])
            crops = torch.where(flips[:, None, None, None] == 1, crops.flip(2), crops)
            small = degrade(crops, [drawn[row] for row in chosen], seed=[seeds[row] for row in chosen])
            yield Batch(
                in_form(small, self.seen).to(self.device),
                self.labels[where].to(self.device),
                self.indices[where].to(self.device),
                shown=partial(self._sharp, crops),
                views=2 * self.indices[where] + flips,
            )

    @property
    def views(self) -> int:
        """How many different sharp images there are; the numbers in batches are below that."""
        return 2 * (int(self.indices.max()) + 1)

    def _sharp(self, crops: Tensor, rows: Tensor) -> Tensor:
        return in_form(crops[rows.cpu()], self.shown).to(self.device)


def only(faces: FaceViews, rows: Int64[Tensor, " m"]) -> FaceViews:
    """Return some faces, all of known people, as a set of their own: people and positions are counted anew.

    Args:
        faces: The faces.
        rows: Positions of those to take, in their order.
    """
    people, labels = torch.unique(faces.labels[rows], return_inverse=True)
    return replace(
        faces,
        crops=faces.crops[rows],
        labels=labels,
        indices=torch.arange(len(rows)),
        classes=tuple(faces.classes[k] for k in people.tolist()),
    )


def drawn(faces: FaceViews, count: int, *, seed: int) -> FaceViews:
    """Return so many of the faces, drawn at random, in the order that they have.

    Args:
        faces: The faces, all of known people.
        count: How many, at least 1.
        seed: Which.

    Raises:
        SettingError: There are fewer faces, or ``count`` is below 1.
    """
    if not 1 <= count <= len(faces):
        raise SettingError(f"{count} of {len(faces)} faces were asked for; expected 1 to as many as there are.")
    rows = np.random.default_rng([seed, _DRAWN]).permutation(len(faces))[:count]
    return only(faces, torch.from_numpy(np.sort(rows)))


def in_form(crops: UInt8[Tensor, "n 112 112 3"], preparation: Preparation) -> Tensor:
    """Return canonical crops in a network's own template and size, RGB in [0, 1], color first."""
    assert preparation.template is not None, "read_faces saw to it"
    template = np.asarray(preparation.template, float)
    return to_unit(retemplate(crops, template, preparation.size_px, margin=preparation.margin or 0.0))


def _mixed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, _NOISE]).generate_state(1)[0])


@dataclass(frozen=True)
class Who:
    """Whose pictures are taken, and how many.

    Attributes:
        keep: Names of the people to take; None takes all.
        leave: Names of people to leave out, also of those to take.
        least: People of fewer pictures in an album are left out.
        most: At most so many pictures of a person and album, the first ones by name; None takes all.
    """

    keep: frozenset[str] | None = None
    leave: frozenset[str] = frozenset()
    least: int = 1
    most: int | None = None

    def pictures(self, people: Mapping[str, str]) -> dict[str, str]:
        """Return the pictures to take among those of an album, and whom each shows.

        Example:
            >>> Who(leave=frozenset({"ben"}), most=1).pictures({"a1": "ann", "a2": "ann", "b1": "ben"})
            {'a1': 'ann'}
        """
        taken: dict[str, list[str]] = {}
        for name in sorted(people):
            if (self.keep is None or people[name] in self.keep) and people[name] not in self.leave:
                taken.setdefault(people[name], []).append(name)
        enough = {person: names[: self.most] for person, names in taken.items() if len(names) >= self.least}
        return {name: person for person, names in enough.items() for name in names}


def read_faces(
    roots: Path | Sequence[Path],
    *,
    shown: Preparation,
    seen: Preparation,
    camera: Distribution,
    who: Who | None = None,
    flip: bool = True,
    progress: Progress = silent,
) -> FaceViews:
    """Return the aligned 112 crops of a folder or archive, and who they show (see :func:`people_of`).

    Args:
        roots: Folder or zip of ``PERSON/*.jpg``, at any depth, or of one picture a person in one folder; other pictures
            than 112 x 112 are refused. Of several, people of one name are one person.
        shown: What the teacher takes.
        seen: What the students take.
        camera: What the students see of a face.
        who: Whose pictures are taken; None takes all.
        flip: Mirror half of the images.
        progress: Wraps the loop.

    Raises:
        DataError: There is no picture, one cannot be read or is no aligned crop, or a network takes no such crops.
    """
    for preparation in (shown, seen):
        if preparation.template is None:
            raise DataError(
                "The network takes the box of a detector, and aligned crops end at the face. Take a network with a "
                "template."
            )
    who = who or Who()
    listed = {root: _listed(root) for root in ([roots] if isinstance(roots, Path) else roots)}
    where = " and ".join(map(str, listed))
    if lacking := sorted((who.keep or frozenset()).difference(*(people.values() for people in listed.values()))):
        raise DataError(
            f"{where} holds no picture of {len(lacking)} of the people asked for: {lacking[0]}; expected PERSON/*.jpg. "
            "Correct the names, or the folder."
        )
    albums = {root: who.pictures(people) for root, people in listed.items()}
    people = [person for pictures in albums.values() for person in pictures.values()]
    if not people:
        raise DataError(
            f"{where} holds no picture that is to be taken; expected PERSON/*.jpg. Change whom to take, or the folder."
        )
    crops = torch.empty(len(people), SIDE_PX, SIDE_PX, 3, dtype=torch.uint8)
    row = 0
    for root, pictures in albums.items():
        with open_album(root) as opened:
            read = in_order(partial(_crop, opened), list(pictures))
            for crop in progress(read, label="reading faces", total=len(pictures)):
                crops[row] = torch.from_numpy(crop)
                row += 1
    classes = tuple(sorted(set(people)))
    position = {person: k for k, person in enumerate(classes)}
    return FaceViews(
        crops,
        torch.tensor([position[person] for person in people]),
        torch.arange(len(people)),
        classes,
        shown,
        seen,
        camera,
        flip,
    )


def _listed(root: Path) -> dict[str, str]:
    with open_album(root) as album:
        return people_of(album.pictures())


def people_of(names: Sequence[str]) -> dict[str, str]:
    """Return whom each picture shows: the folder that it lies in; where all lie in one folder, each someone else.

    Example:
        >>> people_of(["a/ann/1.jpg", "a/ben/1.jpg"])
        {'a/ann/1.jpg': 'ann', 'a/ben/1.jpg': 'ben'}
        >>> people_of(["a/ann.jpg", "a/ben.jpg"])
        {'a/ann.jpg': 'ann', 'a/ben.jpg': 'ben'}
    """
    paths = {name: PurePosixPath(name) for name in names}
    alone = len({path.parent for path in paths.values()}) == 1
    return {name: path.stem if alone else path.parent.name or path.stem for name, path in paths.items()}


def _crop(album: Album, name: str) -> np.ndarray:
    photo = decode_photo(album.read(name), name=name)
    if photo.shape[:2] != (SIDE_PX, SIDE_PX):
        raise DataError(
            f"{name} of {album.root} is {photo.shape[1]} x {photo.shape[0]}; expected aligned crops of 112 x 112. "
            "Make them first: keyhole faces crop."
        )
    return photo
