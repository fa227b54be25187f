"""What a face model reaches on a protocol: plain and matched, at every size of the probe, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from keyhole.errors import SettingError
from keyhole.faces.albums import open_album
from keyhole.faces.degradation import Degradation
from keyhole.faces.embedding import SIDE_PX, Crops, crop_samples, degraded, embed_crops, shown_px
from keyhole.faces.matching import Matcher, Views, check_modes, matched_scores
from keyhole.faces.resolution import effective_face_px
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.models import FaceModel
    from keyhole.faces.samples import IdentificationSet, PairSet


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
    """

    probe_px: tuple[float, ...] = (112.0,)
    match: tuple[str, ...] = ("none",)
    shrink: Literal["probe", "both"] = "probe"
    margin: float | None = None
    how: Degradation = field(default_factory=Degradation)
    seed: int = 0
    draws: int = 2000

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_modes(self.match)
        sizes = self.probe_px
        if not sizes or len(set(sizes)) < len(sizes) or not all(1 <= px <= 1000 for px in sizes):
            told = ",".join(f"{px:g}" for px in sizes)
            raise SettingError(f"Sizes of probes are {told!r}; expected each once, from 1 to 1000 px, such as 8,12,16.")
        if self.shrink not in ("probe", "both"):
            raise SettingError(f"shrink is {self.shrink!r}; expected probe or both.")
        if self.draws < 100:
            raise SettingError(f"draws is {self.draws}; expected at least 100 for an interval.")

    def at(self, face_px: float | None) -> Degradation | None:
        """Return the degradation to a size; None where nothing is done."""
        return None if face_px is None or face_px >= SIDE_PX else replace(self.how, face_px=face_px)


class Watched:
    """Faces under a model, embedded at each size once.

    Args:
        model: The model.
        crops: Faces cut out for it.
        setting: The camera.
        progress: Wraps the loops.
        name: What they are called there.
    """

    def __init__(
        self, model: FaceModel, crops: Crops, setting: Setting, *, progress: Progress = silent, name: str = "faces"
    ) -> None:
        self.model, self.crops, self.setting = model, crops, setting
        self._progress, self._name = progress, name
        self._seen: dict[float | None, np.ndarray] = {}

    def at(self, face_px: float | None) -> Float[np.ndarray, "f d"]:
        """Return the unit embeddings of the faces at a size; as they are for None, and from 112 px on."""
        how = self.setting.at(face_px)
        key = None if how is None else face_px
        if key not in self._seen:
            label = f"{self._name} at {face_px:g} px" if key is not None else self._name
            self._seen[key] = embed_crops(
                self.model, self.crops, how=how, seed=self.setting.seed, progress=self._progress, label=label
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
        native = self.crops.native_px
        parts, start = [], 0
        for pixels in degraded(self.crops, how=self.setting.at(face_px), seed=self.setting.seed):
            observed = np.minimum(native[start : start + len(pixels)], SIDE_PX)
            parts.append(np.minimum(np.asarray(effective_face_px(pixels)), observed))
            start += len(pixels)
        return np.concatenate(parts) if parts else np.zeros(0)


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
    sizes = probes.estimated_px(face_px) if mode.endswith("-estimated") else shown_px(probes.crops, face_px)
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
    model: FaceModel,
    protocol: IdentificationSet | PairSet,
    setting: Setting,
    *,
    detector: Detector | None = None,
    progress: Progress = silent,
) -> tuple[Crops, ...]:
    """Return the faces of a protocol, cut out for a model: gallery and probes, or those of all pairs.

    Raises:
        DataError: A photo cannot be read, or there is no detector for it.
    """
    from keyhole.faces.samples import PairSet

    groups = (protocol.samples,) if isinstance(protocol, PairSet) else (protocol.gallery, protocol.probes)
    with open_album(protocol.root) as album:
        return tuple(
            crop_samples(
                album, group, model.preparation, margin=setting.margin, detector=detector, progress=progress
            )
            for group in groups
        )
