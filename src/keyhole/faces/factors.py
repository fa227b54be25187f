"""Which factor helps, alone and together: model, crop extent, size of the probe and matching, in one table.

After Aghdam et al. (2019), https://arxiv.org/abs/1907.10104, who name three: the training data, matching the
resolutions of gallery and probe, and how much the probe shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keyhole.errors import RunError, SettingError
from keyhole.faces.comparison import Pipeline, Setting
from keyhole.faces.evaluation import evaluate
from keyhole.faces.images.albums import open_album
from keyhole.faces.metrics.intervals import Interval, Resampling, Statistic, difference, interval, mean_statistic
from keyhole.faces.protocols.samples import IdentificationSet, PairSet
from keyhole.faces.results import Evaluation
from keyhole.files import read_json, write_json
from keyhole.progress import Progress, silent

if TYPE_CHECKING:
    from keyhole.faces.images.detection import Detector
    from keyhole.faces.matching import Matcher
    from keyhole.faces.models.face_model import FaceModel


@dataclass(frozen=True)
class Condition:
    """One combination of factors.

    Attributes:
        model: Name of the model.
        margin: Shown around the face; None for aligned 112 crops.
        face_px: Of the probe.
        mode: The way of matching.
    """

    model: str
    margin: float | None
    face_px: float
    mode: str

    def label(self) -> str:
        """Return it as a person reads it."""
        shown = "aligned" if self.margin is None else f"margin {self.margin:g}"
        return f"{self.model}, {shown}, {self.face_px:g} px, {self.mode}"


@dataclass(frozen=True)
class Effect:
    """What changing factors brings at one size, on the same searches or pairs.

    Attributes:
        factor: ``model``, ``margin``, ``matching``, or ``together``: the best of all combinations at a size, whose
            interval does not know that it was chosen as the best.
        before: The condition that it is measured from: the first model and margin, without matching.
        after: The condition with the change.
        gain: Difference in the main figure, -1 to 1.
    """

    factor: str
    before: Condition
    after: Condition
    gain: Interval


@dataclass(frozen=True)
class Factors:
    """The whole table.

    Attributes:
        main: Name of the main figure.
        summary: People, pictures, searches or pairs, in one line.
        figures: The main figure under each condition.
        effects: Each factor alone, and the best combination.
        notes: What a reader must know, such as that models differ in more than their training data.
    """

    main: str
    summary: str
    figures: tuple[tuple[Condition, Interval], ...]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; rates in percent."""
        return {
            "main": self.main,
            "summary": self.summary,
            "notes": list(self.notes),
            "figures": [{**asdict(condition), **_percent(figure)} for condition, figure in self.figures],
            "effects": [
                {"factor": e.factor, "before": asdict(e.before), "after": asdict(e.after), **_percent(e.gain)}
                for e in self.effects
            ],
        }

    def text(self) -> str:
        """Return the effects as text."""
        lines = [self.summary, *self.notes]
        for effect in self.effects:
            value, low, high = (100 * part for part in (effect.gain.value, effect.gain.low, effect.gain.high))
            lines.append(f"{effect.factor:<10} {value:+6.2f} [{low:+.2f}, {high:+.2f}]  {effect.after.label()}")
        return "\n".join(lines)


def _percent(value: Interval) -> dict[str, float]:
    return {name: 100 * getattr(value, name) for name in ("value", "low", "high")}


def study_factors(
    models: Sequence[FaceModel],
    protocol: IdentificationSet | PairSet,
    setting: Setting,
    *,
    margins: Sequence[float | None] = (None,),
    matchers: Sequence[Matcher] = (),
    folder: Path | None = None,
    detector: Detector | None = None,
    progress: Progress = silent,
) -> Factors:
    """Return the main figure under every combination of factors, and what each brings alone and together.

    Args:
        models: The first one is what others are measured from.
        protocol: What is compared.
        setting: Sizes of probes and ways of matching; ``none`` must be among them.
        margins: Crop extents; the first one is what others are measured from.
        matchers: For ``fitted``, one a model and margin.
        folder: Where finished parts are kept, so that a stopped study goes on; one file a model and margin.
        detector: Finds faces.
        progress: Wraps the loops.

    Raises:
        SettingError: A factor is missing or twice, ``none`` is not among the ways of matching, or a matcher is missing.
        RunError: A part in the folder is of another protocol or setting.
    """
    names = [model.name for model in models]
    if not models or not margins or len(set(names)) < len(names) or len(set(margins)) < len(margins):
        raise SettingError("A study of factors needs at least one model and one margin, and each name once.")
    if setting.pool:
        raise SettingError("A study of factors takes each probe for itself; leave --pool out.")
    if "none" not in setting.match:
        raise SettingError("A study of factors measures from 'none'; add it to --match.")
    by_model = {(matcher.fingerprint, matcher.about.get("margin")): matcher for matcher in matchers}
    right: dict[Condition, np.ndarray] = {}
    main = ""
    for model in models:
        for margin in margins:
            here = replace(setting, margin=margin)
            path = None if folder is None else _part_path(folder, model, margin)
            matcher = by_model.get((model.fingerprint, margin))
            part = _kept(path, model, protocol, here, matcher)
            if part is None:
                found = evaluate(Pipeline(model, detector, matcher, here), protocol, progress=progress)
                part = {"conditions": _conditions(model, protocol, here, matcher), **_part(found)}
                if path is not None:
                    write_json(path, part)
            main = part["main"]
            for row in part["rows"]:
                condition = Condition(model.name, margin, row["face_px"], row["match"])
                right[condition] = np.array([mark == "1" for mark in row["right"]])
    return _factors(right, main, protocol, setting, _notes(models))


def _part_path(folder: Path, model: FaceModel, margin: float | None) -> Path:
    """Return where a part is kept; the name of a model may hold what leads elsewhere."""
    readable = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in model.name)[:60]
    earlier = folder / f"{model.name}_{margin}.json"  # as earlier versions called it
    if earlier.parent == folder and earlier.is_file():
        return earlier
    return folder / f"{readable}-{model.fingerprint[:8]}_{margin}.json"


def _part(found: Evaluation) -> dict[str, Any]:
    rows = [
        {"face_px": row.face_px, "match": row.mode, "right": "".join("1" if each else "0" for each in row.right)}
        for row in found.rows
    ]
    return {"main": found.main, "rows": rows}


def _conditions(
    model: FaceModel, protocol: IdentificationSet | PairSet, setting: Setting, matcher: Matcher | None
) -> dict[str, Any]:
    """Return what decides a part: setting, model, matcher, and the pictures by their content."""
    values = asdict(setting)
    values |= {name: list(getattr(setting, name)) for name in ("probe_px", "match", "pool")}
    values |= {"fingerprint": model.fingerprint}
    values |= {"matcher": None if matcher is None else matcher.digest(), "pictures": _digest(protocol)}
    return {key: value for key, value in values.items() if key not in ("draws", "fpir")}


def _digest(protocol: IdentificationSet | PairSet) -> str:
    pairs = isinstance(protocol, PairSet)
    groups = (protocol.samples,) if isinstance(protocol, PairSet) else (protocol.gallery, protocol.probes)
    digest = hashlib.sha256(repr((protocol.name, pairs)).encode())
    if isinstance(protocol, PairSet):
        digest.update(
            repr(
                (protocol.pairs.tolist(), protocol.same.tolist(), protocol.folds.tolist(), protocol.threshold_folds)
            ).encode()
        )
    else:
        digest.update(protocol.views.encode())
    with open_album(protocol.root) as album:
        for sample in (sample for group in groups for sample in group):
            digest.update(repr((sample.path, sample.identity, sample.box, sample.landmarks, sample.aligned)).encode())
            digest.update(hashlib.sha256(album.read(sample.path)).digest())
    return digest.hexdigest()


def _kept(
    path: Path | None,
    model: FaceModel,
    protocol: IdentificationSet | PairSet,
    setting: Setting,
    matcher: Matcher | None,
) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    value = read_json(path)
    count = len(protocol.pairs) if isinstance(protocol, PairSet) else len(protocol.probes)
    same = isinstance(value, dict) and value.get("conditions") == _conditions(model, protocol, setting, matcher)
    rows = value.get("rows") if same else None
    wanted = {(px, mode) for px in setting.probe_px for mode in setting.match}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError(f"{path} is of another model, protocol or setting. Choose another --out, or remove it.")
    whole = {(row.get("face_px"), row.get("match")) for row in rows} == wanted and isinstance(value.get("main"), str)
    if not whole or not all(isinstance(row.get("right"), str) and len(row["right"]) == count for row in rows):
        raise RunError(f"{path} is not whole. Remove it; its part is then measured again.")
    return dict(value)


def _factors(
    right: dict[Condition, np.ndarray],
    main: str,
    protocol: IdentificationSet | PairSet,
    setting: Setting,
    notes: tuple[str, ...],
) -> Factors:
    draws = Resampling(setting.draws, seed=setting.seed)
    statistics = {condition: _statistic(marks, protocol) for condition, marks in right.items()}
    figures = tuple((condition, interval(each, resampling=draws)) for condition, each in statistics.items())
    first = next(iter(right))
    effects = []
    for face_px in setting.probe_px:
        base = replace(first, face_px=face_px, mode="none")
        here = {condition: each for condition, each in statistics.items() if condition.face_px == face_px}
        for condition, each in here.items():
            changed = [
                name
                for name, a, b in (
                    ("model", condition.model, base.model),
                    ("margin", condition.margin, base.margin),
                    ("matching", condition.mode, base.mode),
                )
                if a != b
            ]
            if len(changed) == 1:
                gain = difference(each, statistics[base], resampling=draws)
                effects.append(Effect(changed[0], base, condition, gain))
        best = max(here, key=lambda condition: here[condition].value())
        if best != base and not any(effect.after == best for effect in effects):
            effects.append(Effect("together", base, best, difference(here[best], here[base], resampling=draws)))
    return Factors(main, protocol.summary(), figures, tuple(effects), notes)


def _statistic(marks: np.ndarray, protocol: IdentificationSet | PairSet) -> Statistic:
    if isinstance(protocol, PairSet):
        return mean_statistic(marks, protocol.subjects())
    subjects = np.array([sample.identity for sample in protocol.probes])
    mated = protocol.mated()
    found = mean_statistic(marks, subjects, where=mated)
    return found if mated.all() else replace(found, strata=mated)  # drawn as evaluate draws them


def _notes(models: Sequence[FaceModel]) -> tuple[str, ...]:
    if len(models) < 2:
        return ()
    inputs, sizes = ({model.preparation for model in models}, {model.embedding_size for model in models})
    differ = [name for name, count in (("input", len(inputs)), ("embedding", len(sizes))) if count > 1]
    also = (
        f"They differ in their {' and '.join(differ)}"
        if differ
        else "Input and embedding are alike; the rest is not known"
    )
    data = "; ".join(f"{model.name}: {model.licenses.data}" for model in models)
    return (
        f"Models are compared as they are, which is no factor of training data by itself. {also}. Trained on: {data}.",
    )
