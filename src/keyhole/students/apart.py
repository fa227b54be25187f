"""People that a test will show, kept out of training: by their names, and by their faces where names say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Float
from torch import Tensor

from keyhole.errors import DataError, SettingError
from keyhole.faces.images.albums import open_album
from keyhole.faces.protocols import lfw
from keyhole.models.frozen import freeze
from keyhole.progress import Progress, silent
from keyhole.students.teachers import FaceTeacher
from keyhole.students.views import FaceViews, Who, only, people_of, read_faces

_AT_ONCE = 64
_NEAR = 0.1


@dataclass(frozen=True)
class Apart:
    """Faces of a test.

    Attributes:
        root: Folder or zip of ``PERSON/*.jpg``, aligned 112 crops.
        folds: Folds of the ``pairs.txt`` in or beside it whose people are apart; None: everybody of the album is.
        score: From what cosine of the teacher's embeddings on a face counts as one of these people.
    """

    root: Path
    folds: tuple[int, ...] | None = None
    score: float = 0.5

    def __post_init__(self) -> None:
        """Check the range of the score."""
        if not -1 <= self.score <= 1:
            raise SettingError(f"The score of people apart is {self.score}; expected a cosine, -1 to 1.")


@dataclass(frozen=True)
class People:
    """Who is apart, by name.

    Attributes:
        apart: Who may not be trained on.
        known: All names of the album: who bears another of these names is someone else.
    """

    apart: frozenset[str]
    known: frozenset[str]


def people_apart(apart: Apart) -> People:
    """Return the names of the people that a test will show.

    Raises:
        SettingError: There is no such fold.
        DataError: The album or its ``pairs.txt`` cannot be read.
    """
    with open_album(apart.root) as album:
        listed = people_of(album.pictures())
    # whether a folder that holds all is a person or just a folder cannot be told; then its name is apart as well
    folders = {PurePosixPath(name).parent.name for name in listed}
    known = frozenset(listed.values()) | (folders - {""} if len(folders) == 1 else set())
    chosen = known if apart.folds is None else lfw.people_in(apart.root, apart.folds)
    return People(chosen, known)


@dataclass(frozen=True)
class Found:
    """Who was left out, by face.

    Attributes:
        people: Their names.
        highest: The highest score of somebody who stayed; None where nobody was compared.
        near: How many stayed who lie less than 0.1 below the score, as somebody apart might.
    """

    people: tuple[str, ...]
    highest: float | None
    near: int = 0


def leave_out(
    faces: FaceViews,
    apart: Apart,
    people: People,
    teacher: FaceTeacher,
    *,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> tuple[FaceViews, Found]:
    """Return the faces without people whom the teacher finds among those apart, and who that was.

    Compared are people whose names the album does not have; those that it has were told apart by name already. One
    picture of somebody that is like one picture of somebody apart takes all pictures of the person out.

    Args:
        faces: The training faces, without the people who are apart by name.
        apart: The faces of the test.
        people: Of :func:`people_apart`.
        teacher: Whose embeddings are compared.
        device: Where to embed.
        progress: Wraps the batches.

    Raises:
        DataError: A picture of the album cannot be read, or nobody is left.
    """
    strangers = [k for k, name in enumerate(faces.classes) if name not in people.known]
    rows = torch.isin(faces.labels, torch.tensor(strangers, dtype=torch.int64)).nonzero().flatten()
    if not len(rows):
        return faces, Found((), None)
    shown = faces.shown
    test = read_faces(
        apart.root, shown=shown, seen=shown, camera=faces.camera, who=Who(keep=people.apart), progress=progress
    )
    gallery, probes = (
        _embeddings(views, teacher, device or torch.device("cpu"), progress) for views in (test, faces.subset(rows))
    )
    best = torch.cat([(part @ gallery.T).amax(1) for part in torch.split(probes, _AT_ONCE)])
    found = set(faces.labels[rows[best >= apart.score]].tolist())
    gone = torch.isin(faces.labels, torch.tensor(sorted(found), dtype=torch.int64))
    if bool(gone.all()):
        raise DataError(
            f"At a score of {apart.score:g} all {len(faces.classes)} people are taken for some of {apart.root}, and "
            "nobody is left to train on. Raise the score."
        )
    stayed = best[~gone[rows]]
    left = only(faces, (~gone).nonzero().flatten()) if found else faces
    names = tuple(faces.classes[k] for k in sorted(found))
    near = set(faces.labels[rows[(best >= apart.score - _NEAR) & ~gone[rows]]].tolist())
    return left, Found(names, float(stayed.max()) if len(stayed) else None, len(near))


@torch.no_grad()
def _embeddings(
    faces: FaceViews, teacher: FaceTeacher, device: torch.device, progress: Progress
) -> Float[Tensor, "n d"]:
    network = teacher.network
    module = freeze(network, device=device)
    batches = faces.to(device).batches(_AT_ONCE)
    found = [
        module(network.input.prepare(batch.images))[0].cpu()
        for batch in progress(batches, label="embed faces", total=-(-len(faces) // _AT_ONCE))
    ]
    return torch.nn.functional.normalize(torch.cat(found), dim=1)
