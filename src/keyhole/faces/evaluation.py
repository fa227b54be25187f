"""What a face model reaches on a protocol: plain and matched, at every size of the probe, with intervals."""

from __future__ import annotations

import io
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
        if not sizes or len(set(sizes)) < len(sizes) or not all(1 <= px <= 1000 for px in sizes):
            told = ",".join(f"{px:g}" for px in sizes)
            raise SettingError(f"Sizes of probes are {told!r}; expected each once, from 1 to 1000 px, such as 8,12,16.")
        if self.shrink not in ("probe", "both"):
            raise SettingError(f"shrink is {self.shrink!r}; expected probe or both.")
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
            parts.append(effective_face_px(pixels, observed_px=observed.tolist()).numpy())
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
    groups = (protocol.samples,) if isinstance(protocol, PairSet) else (protocol.gallery, protocol.probes)
    with open_album(protocol.root) as album:
        return tuple(
            crop_samples(album, group, model.preparation, margin=setting.margin, detector=detector, progress=progress)
            for group in groups
        )


@dataclass(frozen=True)
class Row:
    """What was reached at one size under one way of matching.

    Attributes:
        face_px: Asked of the probes.
        mode: The way of matching.
        figures: By name, with their intervals; rates 0 to 1. What is undefined is missing.
        gap: Difference in the main figure to ``none`` on the same searches or pairs.
        cmc: Share of searches by rank, for identification.
        errors: Points of the error curve: rates along x, rates along y.
        right: Whether each search was first, or each pair told right, in the order of the protocol.
    """

    face_px: float
    mode: str
    figures: dict[str, Interval]
    gap: Interval | None
    cmc: tuple[float, ...] = ()
    errors: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    right: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Group:
    """The main figure of some of the searches, such as those of one camera.

    Attributes:
        name: Of the group.
        face_px: Asked of the probes.
        mode: The way of matching.
        searches: How many, with a mate.
        missed: How many of them without a detected face.
        figure: The main figure.
    """

    name: str
    face_px: float
    mode: str
    searches: int
    missed: int
    figure: Interval


@dataclass(frozen=True)
class Example:
    """A face as the model sees it.

    Attributes:
        caption: What it is; no name.
        png: The picture.
    """

    caption: str
    png: bytes


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a protocol.

    Attributes:
        kind: ``pairs`` or ``searches``.
        model: Its name.
        protocol: Name of the protocol.
        summary: People, pictures, searches or pairs, and misses of the detector, in one line.
        main: Name of the main figure.
        rows: By size and way of matching.
        groups: By camera and the like.
        notes: All that was decided or deviates from the official form.
        about_model: Fingerprint and licenses.
        setting: The conditions, as JSON values.
        draws: Of the bootstrap.
        missed: Pictures without a detected face: ``gallery`` and ``probes``, or ``pictures`` of pairs.
        error_names: What the error curves show along x and y.
        examples: Faces, where they may be shown.
    """

    kind: Literal["pairs", "searches"]
    model: str
    protocol: str
    summary: str
    main: str
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    about_model: dict[str, str]
    setting: dict[str, Any]
    draws: int
    missed: dict[str, int]
    error_names: tuple[str, str]
    examples: tuple[Example, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways of matching, each once."""
        return tuple(dict.fromkeys(row.mode for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return figures and conditions as JSON values; rates in percent."""
        return {
            "kind": self.kind,
            "model": {"name": self.model, **self.about_model},
            "protocol": self.protocol,
            "summary": self.summary,
            "missed": self.missed,
            "setting": self.setting,
            "notes": list(self.notes),
            "rows": [
                {
                    "face_px": row.face_px,
                    "match": row.mode,
                    "figures": {name: _percent(value) for name, value in row.figures.items()},
                    "gap": None if row.gap is None else _percent(row.gap),
                }
                for row in self.rows
            ],
            "groups": [
                {**{k: v for k, v in asdict(group).items() if k != "figure"}, "figure": _percent(group.figure)}
                for group in self.groups
            ],
        }

    def sentence(self) -> str:
        """Return in a sentence what was found at the smallest and at the largest size."""
        sizes = sorted({row.face_px for row in self.rows})
        told = []
        for px in dict.fromkeys((sizes[-1], sizes[0])):
            at = {row.mode: row for row in self.rows if row.face_px == px}
            first = at.get("none") or next(iter(at.values()))
            told.append(f"{100 * first.figures[self.main].value:.1f} % at {px:g} px ({first.mode})")
            best = max(at.values(), key=lambda row: row.figures[self.main].value)
            if best is not first and best.gap is not None:
                value = best.figures[self.main].value
                sure = "surely" if best.gap.low > 0 else "perhaps by chance"
                told[-1] += f", {100 * value:.1f} % matched by {best.mode} ({sure} better)"
        return f"{self.main.capitalize()} of {self.model} on {self.protocol}: {'; '.join(told)}."

    def text(self) -> str:
        """Return the table as text."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        lines = [self.summary]
        for row in self.rows:
            cells = [f"{name} {_short(row.figures[name])}" for name in names if name in row.figures]
            if row.gap is not None:
                cells.append(f"against none {_short(row.gap, sign='+')}")
            lines.append(f"{row.face_px:>6g} px  {row.mode:<20} {', '.join(cells)}")
        return "\n".join(lines)


def _percent(value: Interval) -> dict[str, float]:
    return {name: 100 * getattr(value, name) for name in ("value", "low", "high")}


def _short(value: Interval, sign: str = "") -> str:
    center, low, high = (100 * part for part in (value.value, value.low, value.high))
    return f"{center:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


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
    if matcher is not None:
        pictures = protocol.samples if isinstance(protocol, PairSet) else (*protocol.gallery, *protocol.probes)
        matcher.check(model.fingerprint, {sample.identity for sample in pictures})
    parts = crops_of(model, protocol, setting, detector=detector, progress=progress)
    for crops, name in zip(parts, ("pictures",) if len(parts) == 1 else ("gallery", "probes"), strict=True):
        if not len(crops):
            raise DataError(f"No face was found in any picture of the {name}. Look at the pictures, or at --detector.")
    measure = _pairs if isinstance(protocol, PairSet) else _searches
    return measure(model, protocol, parts, setting, matcher, examples, progress)  # type: ignore[arg-type]


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

    rows, _ = _rows(row, setting)
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

    rows, _ = _rows(row, setting)
    missed = {"gallery": int((~enrolled.found).sum()), "probes": int((~sought.found).sum())}
    summary = f"{protocol.summary()}; without a face {missed['gallery']} of the gallery, {missed['probes']} probes"
    return Evaluation(
        "searches", model.name, protocol.name, summary, "rank-1", rows, _groups(protocol, held, setting),
        protocol.notes, _about(model), _told(setting), setting.draws, missed, ("FPIR, %", "FNIR, %"),
        _examples(probes, setting) if examples else (),
    )  # fmt: skip


def _rows(
    row: Callable[[float, str], tuple[Statistic, Row]], setting: Setting
) -> tuple[tuple[Row, ...], dict[tuple[float, str], Statistic]]:
    """Return one row a size and mode, with the gap to ``none``, and the main statistics."""
    rows, mains = [], {}
    for face_px in setting.probe_px:
        for mode in setting.match:
            mains[face_px, mode], made = row(face_px, mode)
            plain = mains.get((face_px, "none"))
            if mode != "none" and plain is not None:
                made = replace(made, gap=difference(mains[face_px, mode], plain, resampling=_draws(setting)))
            rows.append(made)
    return tuple(rows), mains


def _flags(values: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(value) for value in values)


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

    chosen = np.unique(np.linspace(0, len(probes.crops) - 1, most).round().astype(int))
    some, found = probes.crops.subset(chosen), []
    for face_px in sorted(setting.probe_px, reverse=True):
        for pixels in degraded(some, how=setting.at(face_px), seed=setting.seed):
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
    seen = [Watched(model, crops, setting, progress=progress, name="faces") for crops in parts]

    def at(face_px: float | None) -> np.ndarray:
        return np.concatenate([watched.at(face_px) for watched in seen])

    return fit_matcher(
        at(None),
        at,
        fingerprint=model.fingerprint,
        people={sample.identity for sample in samples},
        about={"faces_of": faces.name, "camera": asdict(setting.how), "margin": setting.margin},
    )
