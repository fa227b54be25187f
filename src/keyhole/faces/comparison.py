"""Photos under one pipeline: what finds faces, what embeds them at each size, and how probes are compared."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from keyhole.errors import DataError, SettingError, reason_of
from keyhole.faces.embedding import SIDE_PX, Crops, crop_samples, degraded, embed_crops, shown_px
from keyhole.faces.images.albums import open_album
from keyhole.faces.images.degradation import Degradation
from keyhole.faces.images.resolution import effective_face_px
from keyhole.faces.matching import Matcher, Views, check_modes, matched_scores
from keyhole.faces.pooling import check_poolings
from keyhole.faces.protocols.samples import IdentificationSet, PairSet, Sample
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.images.albums import Album
    from keyhole.faces.images.detection import Detector
    from keyhole.faces.models.face_model import FaceModel


MOST_DRAWS = 100_000
_CAMERA = Degradation(SIDE_PX)  # its size is replaced by those of the probes


@dataclass(frozen=True)
class Setting:
    """Under which conditions a model is evaluated.

    Attributes:
        probe_px: ``face_px`` of the probes, one after the other; 112 and above leaves them as they are.
        match: Ways of matching; differences are told from ``none`` where it is among them.
        shrink: ``probe`` makes the probes small (the mismatched case), ``both`` the gallery as well.
        margin: Shown around the face beyond what the model wants; None takes aligned 112 crops where it can.
        how: The camera: resampler, blur, noise, codec; its size is replaced.
        seed: Of sensor noise and of the bootstrap.
        draws: Of the bootstrap over subjects.
        fpir: Rate of false alarms at which misses are told, where there are people who are not enrolled.
        pool: Ways of pooling the frames of a track; none takes each probe for itself.
        track: The attribute that frames of one track share, or ``camera``.
    """

    probe_px: tuple[float, ...] = (112.0,)
    match: tuple[str, ...] = ("none",)
    shrink: Literal["probe", "both"] = "probe"
    margin: float | None = None
    how: Degradation = _CAMERA
    seed: int = 0
    draws: int = 2000
    fpir: float = 0.01
    pool: tuple[str, ...] = ()
    track: str = "track"

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_modes(self.match)
        check_poolings(self.pool)
        sizes = self.probe_px
        if not sizes or len(set(sizes)) < len(sizes) or not all(1 <= px <= 1000 and px == int(px) for px in sizes):
            listed = ",".join(f"{px:g}" for px in sizes)
            raise SettingError(
                f"Sizes of probes are {listed!r}; expected whole numbers from 1 to 1000 px, each once, such as 8,12,16."
            )
        if self.shrink not in ("probe", "both"):
            raise SettingError(f"shrink is {self.shrink!r}; expected probe or both.")
        if self.shrink == "both" and any(mode.startswith("fitted") for mode in self.match):
            raise SettingError(
                "A fitted comparison takes a small probe to a sharp gallery; with --shrink both there is none. "
                "Use --match none."
            )
        if not 100 <= self.draws <= MOST_DRAWS:
            raise SettingError(f"draws is {self.draws}; expected 100 to {MOST_DRAWS:,} for an interval.")
        if not 0 < self.fpir < 1:
            raise SettingError(f"fpir is {self.fpir}; expected a rate above 0 and below 1, such as 0.01.")

    def at(self, face_px: float | None) -> Degradation | None:
        """Return the degradation to a size; None where nothing is done."""
        return None if face_px is None or face_px >= SIDE_PX else replace(self.how, face_px=round(face_px))


class Watched:
    """Faces under a model, embedded at each size once.

    Args:
        model: The model.
        crops: Faces cut out for it.
        setting: The camera.
        progress: Wraps the loops.
        name: What they are called there; faces of another name get other noise.
    """

    def __init__(
        self, model: FaceModel, crops: Crops, setting: Setting, *, progress: Progress = silent, name: str = "faces"
    ) -> None:
        self.model, self.crops, self.setting = model, crops, setting
        self._progress, self._name = progress, name
        # noise of its own, so that a probe and its mate are not alike by their noise
        role = np.random.SeedSequence((setting.seed, zlib.crc32(name.encode())))
        self.seed = int(role.generate_state(1)[0])
        self._seen: dict[float | None, np.ndarray] = {}
        self._sizes: dict[float | None, np.ndarray] = {}
        self._whole: tuple[Watched, np.ndarray] | None = None

    def subset(self, rows: np.ndarray, *, name: str) -> Watched:
        """Return some of the faces under another name; as they are, they are embedded with all others at once."""
        some = Watched(self.model, self.crops.subset(rows), self.setting, progress=self._progress, name=name)
        some._whole = self, rows
        return some

    def at(self, face_px: float | None) -> Float[np.ndarray, "f d"]:
        """Return the unit embeddings of the faces at a size; as they are for None, and from 112 px on."""
        how = self.setting.at(face_px)
        key = None if how is None else face_px
        if key is None and self._whole is not None:
            whole, rows = self._whole
            return np.asarray(whole.at(None)[rows])
        if key not in self._seen:
            label = f"{self._name} at {face_px:g} px" if key is not None else self._name
            self._seen[key] = embed_crops(
                self.model, self.crops, how=how, seed=self.seed, progress=self._progress, label=label
            )
        return self._seen[key]

    def estimated_px(self, face_px: float | None) -> Float[np.ndarray, " f"]:
        """Return what the spectrum says of the faces' size after the degradation.

        Raises:
            SettingError: The crops are not in the 112 template, on which sizes are estimated.
        """
        if not self.crops.canonical:
            raise SettingError(
                "Sizes are estimated on aligned 112 crops; with a margin, or a model without alignment, they are not. "
                "Use --match none, resolution or fitted."
            )
        how = self.setting.at(face_px)
        key = None if how is None else face_px
        if key not in self._sizes:
            observed, parts, start = np.minimum(self.crops.native_px, SIDE_PX), [], 0
            for pixels in degraded(self.crops, how=how, seed=self.seed):
                some = observed[start : start + len(pixels)]
                parts.append(effective_face_px(pixels, observed_px=some.tolist()).numpy())
                start += len(pixels)
            self._sizes[key] = np.concatenate(parts) if parts else np.zeros(0)
        return self._sizes[key]

    def sizes_px(self, face_px: float | None, mode: str) -> Float[np.ndarray, " f"]:
        """Return the ``face_px`` that a way of matching goes by: estimated, or as the photos and the setting say."""
        return self.estimated_px(face_px) if mode.endswith("-estimated") else shown_px(self.crops, face_px)


@dataclass(frozen=True)
class Pipeline:
    """How photos become scores.

    Attributes:
        model: Embeds faces.
        detector: Finds them; needed for photos without landmarks.
        matcher: Compares small probes with sharp photos; a watch list compares by it wherever there is one.
        setting: The conditions.
    """

    model: FaceModel
    detector: Detector | None = None
    matcher: Matcher | None = None
    setting: Setting = field(default_factory=Setting)

    @property
    def mode(self) -> str:
        """How a watch list compares: nobody tells it the size of a probe."""
        return "none" if self.matcher is None else "fitted-estimated"

    def enrolling(self) -> Pipeline:
        """Return the pipeline with the camera that its matcher was fitted with: a gallery's small views are its."""
        camera = None if self.matcher is None else self.matcher.about.get("camera")
        if not isinstance(camera, dict):
            return self
        try:
            how = Degradation(**camera)
        except TypeError as error:
            raise DataError(f"The matcher was fitted with a camera of unknown settings ({reason_of(error)}). Fit one "
                            "with this version: keyhole faces fit.") from error  # fmt: skip
        return replace(self, setting=replace(self.setting, how=how))

    @property
    def camera(self) -> str:
        """The camera of a gallery's small views, in words; empty where no matcher tells of one."""
        fitted_for_camera = self.matcher is not None and isinstance(self.matcher.about.get("camera"), dict)
        return str(replace(self.enrolling().setting.how, face_px=SIDE_PX)) if fitted_for_camera else ""

    def doubts(self) -> tuple[str, ...]:
        """Return the note on a matcher that was fitted for another camera than the one of the setting."""
        fitted = self.enrolling().setting.how
        if replace(fitted, face_px=SIDE_PX) == replace(self.setting.how, face_px=SIDE_PX):
            return ()
        return ("The matcher was fitted with another camera (--degrade) than this one: expect less of it.",)

    def watch(self, crops: Crops, *, progress: Progress = silent, name: str = "faces") -> Watched:
        """Return faces that were cut out for the model, to be embedded at each size once."""
        return Watched(self.model, crops, self.setting, progress=progress, name=name)

    def crop(
        self, album: Album, samples: Sequence[Sample], *, skip_unreadable: bool = False, progress: Progress = silent
    ) -> Crops:
        """Return the faces of samples, cut out for the model; args and errors are those of :func:`crop_samples`."""
        return crop_samples(
            album, samples, self.model.preparation, margin=self.setting.margin, detector=self.detector,
            skip_unreadable=skip_unreadable, progress=progress,
        )  # fmt: skip


def compare(
    probes: Watched,
    gallery: Watched,
    face_px: float,
    *,
    mode: str,
    matcher: Matcher | None = None,
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return how alike probes of a size and a gallery are under a way of matching.

    Args:
        probes: The probes.
        gallery: The gallery.
        face_px: Of the probes.
        mode: The way of matching.
        matcher: For ``fitted``.
        pairs: Rows of probes and of the gallery that are compared one with one; all with all where missing.

    Returns:
        One score a pair, or probes x gallery.
    """
    setting = probes.setting
    seen = probes.at(face_px)
    sizes = probes.sizes_px(face_px, mode)
    views: Views = gallery.at
    if setting.shrink == "both":
        views = _no_sharper(gallery, face_px)
    if pairs is None:
        return matched_scores(seen, sizes, views, mode=mode, matcher=matcher)
    rows, mates = pairs
    return matched_scores(seen[rows], sizes[rows], views, mode=mode, matcher=matcher, mates=mates)


def _no_sharper(gallery: Watched, face_px: float) -> Views:
    def view(px: float | None) -> np.ndarray:
        return gallery.at(face_px if px is None else min(px, face_px))

    return view


def crops_of(
    pipeline: Pipeline, protocol: IdentificationSet | PairSet, *, progress: Progress = silent
) -> tuple[Crops, ...]:
    """Return the faces of a protocol, cut out for a model: gallery and probes, or those of all pairs.

    Raises:
        DataError: A photo cannot be read, or there is no detector for it.
    """
    groups = (protocol.samples,) if isinstance(protocol, PairSet) else (protocol.gallery, protocol.probes)
    with open_album(protocol.root) as album:
        return tuple(pipeline.crop(album, group, progress=progress) for group in groups)
