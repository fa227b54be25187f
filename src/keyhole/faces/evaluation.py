"""What a face model reaches on a protocol: plain and matched, at every size of the probe, with intervals."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from keyhole.errors import DataError, SettingError
from keyhole.faces import identification, verification
from keyhole.faces.albums import open_album
from keyhole.faces.degradation import Degradation
from keyhole.faces.embedding import SIDE_PX, Crops, crop_samples, degraded, embed_crops, shown_px
from keyhole.faces.intervals import Interval, Resampling, Statistic, difference, interval
from keyhole.faces.matching import Matcher, Views, check_modes, fit_matcher, matched_scores
from keyhole.faces.resolution import effective_face_px
from keyhole.faces.results import Evaluation, Example, Group, Row
from keyhole.faces.samples import IdentificationSet, PairSet, Sample
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.models import FaceModel


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
    """

    probe_px: tuple[float, ...] = (112.0,)
    match: tuple[str, ...] = ("none",)
    shrink: Literal["probe", "both"] = "probe"
    margin: float | None = None
    how: Degradation = _CAMERA
    seed: int = 0
    draws: int = 2000
    fpir: float = 0.01

    def __post_init__(self) -> None:
        """Check names and ranges."""
        check_modes(self.match)
        sizes = self.probe_px
        if not sizes or len(set(sizes)) < len(sizes) or not all(1 <= px <= 1000 and px == int(px) for px in sizes):
            told = ",".join(f"{px:g}" for px in sizes)
            raise SettingError(
                f"Sizes of probes are {told!r}; expected whole numbers from 1 to 1000 px, each once, such as 8,12,16."
            )
        if self.shrink not in ("probe", "both"):
            raise SettingError(f"shrink is {self.shrink!r}; expected probe or both.")
        if self.shrink == "both" and any(mode.startswith("fitted") for mode in self.match):
            raise SettingError(
                "A fitted comparison takes a small probe to a sharp gallery; with --shrink both there is none. "
                "Use --match none."
            )
        if self.draws < 100:
            raise SettingError(f"draws is {self.draws}; expected at least 100 for an interval.")
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

    def at(self, face_px: float | None) -> Float[np.ndarray, "f d"]:
        """Return the unit embeddings of the faces at a size; as they are for None, and from 112 px on."""
        how = self.setting.at(face_px)
        key = None if how is None else face_px
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
    groups = (protocol.samples,) if isinstance(protocol, PairSet) else (protocol.gallery, protocol.probes)
    with open_album(protocol.root) as album:
        return tuple(
            crop_samples(album, group, model.preparation, margin=setting.margin, detector=detector, progress=progress)
            for group in groups
        )


def evaluate(
    model: FaceModel,
    protocol: IdentificationSet | PairSet,
    setting: Setting,
    *,
    detector: Detector | None = None,
    matcher: Matcher | None = None,
    examples: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Return what a model reaches on a protocol at each size of the probe, under each way of matching.

    A probe in which no face is found is a miss, whatever its scores; so is a pair with such a picture.

    Args:
        model: The model.
        protocol: What is compared.
        setting: The conditions.
        detector: Finds faces in photos without landmarks.
        matcher: For ``fitted``; it may not have been fitted on people of the protocol.
        examples: Keep a few faces for the report; only where the terms of the data allow it.
        progress: Wraps the loops.

    Raises:
        DataError: A photo cannot be read, there is nothing to compare, or no face at all.
        SettingError: Settings exclude each other, or the matcher knows people of the protocol.
    """
    _check(model, setting, matcher)
    if matcher is not None:
        pictures = protocol.samples if isinstance(protocol, PairSet) else (*protocol.gallery, *protocol.probes)
        matcher.check(model.fingerprint, {sample.identity for sample in pictures}, margin=setting.margin)
    parts = crops_of(model, protocol, setting, detector=detector, progress=progress)
    for crops, name in zip(parts, ("pictures",) if len(parts) == 1 else ("gallery", "probes"), strict=True):
        if not len(crops):
            raise DataError(f"No face was found in any picture of the {name}. Look at the pictures, or at --detector.")
    measure = _pairs if isinstance(protocol, PairSet) else _searches
    return measure(model, protocol, parts, setting, matcher, examples, progress)  # type: ignore[arg-type]


def _check(model: FaceModel, setting: Setting, matcher: Matcher | None) -> None:
    """Refuse before any work what would fail after it."""
    if matcher is None and any(mode.startswith("fitted") for mode in setting.match):
        raise SettingError("Matching 'fitted' needs a matcher; fit one: keyhole faces fit.")
    aligned = model.preparation.template is not None and setting.margin is None
    if not aligned and any(mode.endswith("-estimated") for mode in setting.match):
        raise SettingError(
            "Sizes are estimated on aligned 112 crops; with a margin, or a model without alignment, they are not. "
            "Use --match none, resolution or fitted."
        )


def _pairs(
    model: FaceModel,
    protocol: PairSet,
    parts: tuple[Crops, ...],
    setting: Setting,
    matcher: Matcher | None,
    examples: bool,
    progress: Progress,
) -> Evaluation:
    crops = parts[0]
    place = np.where(crops.found, np.cumsum(crops.found) - 1, -1)[protocol.pairs]
    whole = (place >= 0).all(axis=1)
    probe_rows, probe_places = np.unique(place[whole, 1], return_inverse=True)
    mate_rows, mate_places = np.unique(place[whole, 0], return_inverse=True)
    probes = Watched(model, crops.subset(probe_rows), setting, progress=progress, name="probes")
    gallery = Watched(model, crops.subset(mate_rows), setting, progress=progress, name="gallery")
    subjects = protocol.subjects()

    def row(face_px: float, mode: str) -> tuple[Statistic, Row]:
        scores = np.full(len(place), verification.LOST)
        pairs = probe_places, mate_places
        scores[whole] = compare(probes, gallery, face_px, mode=mode, matcher=matcher, pairs=pairs)
        told = verification.fold_accuracy(scores, protocol.same, protocol.folds)
        main = verification.accuracy_statistic(told, subjects)
        more = {
            "EER": verification.eer_statistic(scores, protocol.same, subjects=subjects),
            "TAR at FAR 1 %": verification.tar_statistic(scores, protocol.same, 0.01, subjects=subjects),
            "TAR at FAR 0.1 %": verification.tar_statistic(scores, protocol.same, 0.001, subjects=subjects),
        }
        curve = verification.det(scores, protocol.same)
        errors = tuple(curve.false_accept.tolist()), tuple(curve.false_reject.tolist())
        return main, Row(
            face_px, mode, _with_intervals({"accuracy": main, **more}, setting), None, (), errors, _flags(told.correct)
        )

    rows = _rows(row, setting)
    missed = int((~crops.found).sum())
    summary = f"{protocol.summary()}; {missed} without a face, {int((~whole).sum())} pairs lost by that"
    return Evaluation(
        "pairs", model.name, protocol.name, summary, "accuracy", rows, (), protocol.notes, _about(model),
        _told(setting), setting.draws, {"pictures": missed}, ("false accepts, %", "false rejects, %"),
        _examples(probes, setting) if examples else (),
    )  # fmt: skip


def _searches(
    model: FaceModel,
    protocol: IdentificationSet,
    parts: tuple[Crops, ...],
    setting: Setting,
    matcher: Matcher | None,
    examples: bool,
    progress: Progress,
) -> Evaluation:
    enrolled, sought = parts
    probes = Watched(model, sought, setting, progress=progress, name="probes")
    gallery = Watched(model, enrolled, setting, progress=progress, name="gallery")
    open_set = not protocol.mated().all()
    held: dict[tuple[float, str], identification.Searches] = {}

    def row(face_px: float, mode: str) -> tuple[Statistic, Row]:
        scores = np.zeros((len(protocol.probes), len(protocol.gallery)), np.float32)
        scores[np.ix_(sought.found, enrolled.found)] = compare(probes, gallery, face_px, mode=mode, matcher=matcher)
        found = identification.search(
            scores,
            gallery=[sample.identity for sample in protocol.gallery],
            probes=[sample.identity for sample in protocol.probes],
            found=sought.found,
            enrolled=enrolled.found,
            views=protocol.views,
        )
        held[face_px, mode] = found
        main = identification.rank_statistic(found)
        more: dict[str, Statistic | None] = {"rank-1": main}
        if found.people >= 10:
            more["rank-5"] = identification.rank_statistic(found, 5)
        more["CMC area"] = identification.cmc_area_statistic(found)
        errors = None
        if open_set and found.alarms.any():
            more[f"FNIR at FPIR {100 * setting.fpir:g} %"] = identification.fnir_at_fpir_statistic(found, setting.fpir)
            curve = identification.open_set_curve(found)
            errors = tuple(curve.fpir.tolist()), tuple(curve.fnir.tolist())
        cmc = tuple(identification.cmc(found).tolist())
        return main, Row(
            face_px, mode, _with_intervals(more, setting), None, cmc, errors, _flags(identification.hits(found))
        )

    rows = _rows(row, setting)
    missed = {"gallery": int((~enrolled.found).sum()), "probes": int((~sought.found).sum())}
    summary = f"{protocol.summary()}; without a face {missed['gallery']} of the gallery, {missed['probes']} probes"
    return Evaluation(
        "searches", model.name, protocol.name, summary, "rank-1", rows, _groups(protocol, held, setting),
        (*protocol.notes, *_too_few(held, setting)), _about(model), _told(setting), setting.draws, missed,
        ("FPIR, %", "FNIR, %"),
        _examples(probes, setting) if examples else (),
    )  # fmt: skip


def _rows(row: Callable[[float, str], tuple[Statistic, Row]], setting: Setting) -> tuple[Row, ...]:
    """Return one row a size and mode, with the gap to ``none``."""
    rows = []
    for face_px in setting.probe_px:
        made = {mode: row(face_px, mode) for mode in setting.match}
        for mode, (main, each) in made.items():
            gap = None
            if mode != "none" and "none" in made:
                gap = difference(main, made["none"][0], resampling=_draws(setting))
            rows.append(replace(each, gap=gap))
    return tuple(rows)


def _flags(values: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(value) for value in values)


def _too_few(held: dict[tuple[float, str], identification.Searches], setting: Setting) -> tuple[str, ...]:
    """Return the note on a rate of false alarms that so few searches cannot show."""
    found = next(iter(held.values()))
    if not found.alarms.any():
        return ()
    warning = identification.threshold_for_fpir(found, setting.fpir).warning
    return () if warning is None else (f"No FNIR is told: {warning}",)


def _draws(setting: Setting) -> Resampling:
    return Resampling(setting.draws, seed=setting.seed)


def _with_intervals(statistics: dict[str, Statistic | None], setting: Setting) -> dict[str, Interval]:
    return {name: interval(each, resampling=_draws(setting)) for name, each in statistics.items() if each is not None}


def _groups(
    protocol: IdentificationSet, held: dict[tuple[float, str], identification.Searches], setting: Setting
) -> tuple[Group, ...]:
    """Return the main figure by camera and by each attribute that has from 2 to 12 values."""
    labels: dict[str, list[str]] = {"camera": [sample.camera for sample in protocol.probes]}
    for key in sorted({key for sample in protocol.probes for key in sample.attributes}):
        labels[key] = [sample.attributes.get(key, "") for sample in protocol.probes]
    groups = []
    for kind, values in labels.items():
        names = sorted(set(values) - {""})
        if not 2 <= len(names) <= 12:
            continue
        for name in names:
            where = np.array([value == name for value in values])
            for (face_px, mode), found in held.items():
                some = found.subset(where)
                if some.mated.any():
                    figure = interval(identification.rank_statistic(some), resampling=_draws(setting))
                    missed = int((some.mated & ~some.found).sum())
                    groups.append(Group(f"{kind} {name}", face_px, mode, int(some.mated.sum()), missed, figure))
    return tuple(groups)


def _about(model: FaceModel) -> dict[str, str]:
    terms = model.licenses
    return {
        "fingerprint": model.fingerprint,
        "license of the code": terms.code,
        "license of the weights": terms.weights,
        "training data": terms.data,
    }


def _told(setting: Setting) -> dict[str, Any]:
    told = asdict(setting)
    return {**told, "probe_px": list(setting.probe_px), "match": list(setting.match), "how": asdict(setting.how)}


def _examples(probes: Watched, setting: Setting, *, most: int = 4) -> tuple[Example, ...]:
    """Return a few probes at each size, spread over all of them, without names."""
    from PIL import Image

    if not len(probes.crops):
        return ()
    chosen = np.unique(np.linspace(0, len(probes.crops) - 1, most).round().astype(int))
    some, found = probes.crops.subset(chosen), []
    for face_px in sorted(setting.probe_px, reverse=True):
        for pixels in degraded(some, how=setting.at(face_px), seed=probes.seed):
            for k, crop in enumerate(pixels):
                file = io.BytesIO()
                Image.fromarray(crop.numpy()).save(file, "PNG")
                found.append(Example(f"probe {k + 1} at {face_px:g} px", file.getvalue()))
    return tuple(found)


def fit(
    model: FaceModel,
    faces: IdentificationSet | PairSet,
    setting: Setting,
    *,
    detector: Detector | None = None,
    progress: Progress = silent,
) -> Matcher:
    """Return a matcher fitted on all faces of a set, without its labels; see :mod:`keyhole.faces.matching`.

    Args:
        model: The model.
        faces: The faces; who they are of is only remembered as digests, so that nobody tests on them.
        setting: Margin and camera.
        detector: Finds faces.
        progress: Wraps the loops.

    Raises:
        DataError: A photo cannot be read, or there are too few faces.
    """
    parts = crops_of(model, faces, setting, detector=detector, progress=progress)
    samples: tuple[Sample, ...]
    samples = faces.samples if isinstance(faces, PairSet) else (*faces.gallery, *faces.probes)
    seen = [Watched(model, part, setting, progress=progress, name=f"faces {k + 1}") for k, part in enumerate(parts)]

    def at(face_px: float | None) -> np.ndarray:
        return np.concatenate([watched.at(face_px) for watched in seen])

    return fit_matcher(
        at(None),
        at,
        fingerprint=model.fingerprint,
        people={sample.identity for sample in samples},
        about={"faces_of": faces.name, "camera": asdict(setting.how), "margin": setting.margin},
    )
