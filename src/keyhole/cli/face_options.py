"""Options of ``keyhole faces``: models, protocols, crops and cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import SettingError

if TYPE_CHECKING:
    from keyhole.faces.comparison import Pipeline, Setting
    from keyhole.faces.images.detection import Detector
    from keyhole.faces.matching import Matcher
    from keyhole.faces.models.face_model import FaceModel
    from keyhole.faces.protocols.samples import IdentificationSet, PairSet

Match = Annotated[
    str, typer.Option(help="none, resolution, resolution-estimated, fitted, fitted-estimated; several by commas.")
]
MatcherFile = Annotated[Path | None, typer.Option(help="A matcher of 'keyhole faces fit', for fitted.")]
Draws = Annotated[int, typer.Option(min=100, max=100_000, help="Of the bootstrap over subjects.")]
Examples = Annotated[
    bool, typer.Option(help="Show example faces in the report; only where the terms of the data allow it.")
]
File = Annotated[Path, typer.Option(help="The file to write; only its owner can read it.")]


@dataclass(frozen=True)
class DetectionOptions:
    """How closely photos are searched for faces."""

    detect_px: Annotated[
        int, typer.Option(help="Long side at which photos are searched; faces below some 10 pixels there are missed.")
    ] = 640
    detect_enlarge: Annotated[
        float,
        typer.Option(help="Search photos so many times larger, 1 to 8: smaller faces, in the square of the time."),
    ] = 1.0

    def open_detector(self, path: Path) -> Detector:
        """Return a detector that searches so."""
        from keyhole.faces.images.detection import Detector

        return Detector(path, side_px=self.detect_px, enlarge=self.detect_enlarge)

    def for_recipe(self) -> dict[str, Any]:
        """Return the options for a recipe, silent about how photos are searched where that is the usual way."""
        usual = vars(DetectionOptions())
        return {name: value for name, value in vars(self).items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class ModelOptions(DetectionOptions):
    """A face model, and what finds faces for it."""

    model: Annotated[
        str,
        typer.Option(
            help="The model of the package, a known one, .onnx, .xml, .safetensors, .toml, or package.module:function."
        ),
    ] = o.FACE_MODEL
    detector: Annotated[Path | None, typer.Option(help="YuNet's ONNX file; needed for photos without landmarks.")] = (
        None
    )
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads on the CPU; all cores by default.")] = (
        None
    )
    device: o.Device = "auto"

    def open(self) -> FaceModel:
        """Return the model, ready to embed."""
        from keyhole.faces.models.face_model import load_face_model

        return load_face_model(self.model, device=self.device, threads=self.threads)

    def find(self) -> Detector | None:
        """Return the detector, where one is given."""
        return None if self.detector is None else self.open_detector(self.detector)


@dataclass(frozen=True)
class ProtocolOptions:
    """Whom to enroll, and whom to search for."""

    root: Annotated[Path, typer.Option(help="Folder or zip of the protocol's pictures.")]
    protocol: Annotated[str, typer.Option(help="lfw, scface, icbrw or folder.")] = "folder"
    folds: Annotated[str | None, typer.Option(help="Folds of lfw by commas, such as 8,9,10; all by default.")] = None
    threshold_folds: Annotated[
        str | None, typer.Option(help="Folds of lfw that choose the threshold and are not judged.")
    ] = None
    pairs: Annotated[Path | None, typer.Option(help="pairs.txt of lfw; beside the pictures by default.")] = None
    subjects: Annotated[Path | None, typer.Option(help="File with one subject of scface a line.")] = None
    cameras: Annotated[str | None, typer.Option(help="Cameras of scface by commas; 1,2,3,4,5 by default.")] = None
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest (CSV) of a folder; where there is no gallery/, DIR/manifest.csv.")
    ] = None
    views: Annotated[
        str | None, typer.Option(help="Of several gallery pictures: best or mean; icbrw also frontal.")
    ] = None

    def is_people(self) -> bool:
        """Return whether the root is a plain folder of people, which says nothing of galleries and probes."""
        from keyhole.faces.protocols.folder import is_set

        asked = {name: value for name, value in vars(self).items() if name not in ("root", "protocol")}
        return self.protocol == "folder" and not any(asked.values()) and not is_set(self.root)

    def open(self) -> IdentificationSet | PairSet:
        """Return what the protocol compares."""
        from keyhole.faces.protocols.named import read_protocol

        return read_protocol(
            self.protocol,
            self.root,
            folds=integers("--folds", self.folds),
            threshold_folds=integers("--threshold-folds", self.threshold_folds),
            pairs=self.pairs,
            subjects=self.subjects,
            cameras=integers("--cameras", self.cameras),
            views=self.views,
            manifest=self.manifest,
        )


@dataclass(frozen=True)
class CropOptions:
    """How a face is cut out of its photo."""

    margin: Annotated[
        float | None, typer.Option(help="Shown around the face beyond what the model wants, 0 to 1 of the crop.")
    ] = None

    def setting(self, **more: Any) -> Setting:
        """Return it with more of an evaluation's setting, in the form of the library."""
        from keyhole.faces.comparison import Setting

        return Setting(margin=self.margin, **more)


@dataclass(frozen=True)
class CameraOptions(CropOptions):
    """What stands between a face and the model."""

    degrade: Annotated[str, typer.Option(help="The camera, such as down=cv2-area,blur=0.5,noise=2,jpeg=70.")] = ""
    seed: o.Seed = 0

    def setting(self, **more: Any) -> Setting:
        """Return them with more of an evaluation's setting, in the form of the library."""
        from keyhole.faces.comparison import Setting
        from keyhole.faces.images.degradation import degradation_of, parse_settings

        settings = {"face_px": 112, **parse_settings(self.degrade)}
        if settings["face_px"] != 112:
            raise SettingError("--degrade names a face_px; give sizes by --probe-px, and leave it out there.")
        how = degradation_of(settings, seen=self.degrade)
        return Setting(margin=self.margin, how=how, seed=self.seed, **more)


@dataclass(frozen=True)
class ConditionOptions(CameraOptions):
    """Under which conditions a model is evaluated."""

    probe_px: Annotated[str, typer.Option(help="face_px of the probes by commas; 112 as they are.")] = "112"
    match: Match = "none"
    shrink: Annotated[str, typer.Option(help="probe, or both (gallery as well).")] = "probe"
    pool: Annotated[
        str | None, typer.Option(help="Make one search of the frames of a track: best, equal, quality; by commas.")
    ] = None
    track: Annotated[str, typer.Option(help="What frames of one track share: a column of the manifest, or camera.")] = (
        "track"
    )
    fpir: Annotated[float, typer.Option(help="Rate of false alarms for the open-set figures, 0 to 1.")] = 0.01
    draws: Draws = 2000

    def conditions(self) -> Setting:
        """Return them in the form of the library."""
        return self.setting(
            probe_px=sizes("--probe-px", self.probe_px), match=tuple(self.match.split(",")), shrink=self.shrink,
            pool=tuple(self.pool.split(",")) if self.pool else (), track=self.track, fpir=self.fpir, draws=self.draws,
        )  # fmt: skip


@dataclass(frozen=True)
class FactorOptions:
    """Which factors are varied, and how."""

    also: Annotated[list[str] | None, typer.Option(help="Another model; may be given several times.")] = None
    margins: Annotated[
        str, typer.Option(help="Crop extents by commas, 0 to 1 of the crop; aligned for 112-template crops.")
    ] = "aligned"
    degrade: Annotated[str, typer.Option(help="The camera, as in 'faces evaluate'.")] = ""
    seed: o.Seed = 0
    probe_px: Annotated[str, typer.Option(help="face_px of the probes by commas.")] = "112,32,16,12,8"
    match: Match = "none,resolution"
    matcher: Annotated[list[Path] | None, typer.Option(help="For fitted: a matcher of each model.")] = None
    draws: Draws = 2000

    def conditions(self) -> Setting:
        """Return what is common to all combinations, in the form of the library."""
        return CameraOptions(None, self.degrade, self.seed).setting(
            probe_px=sizes("--probe-px", self.probe_px), match=tuple(self.match.split(",")), draws=self.draws
        )


@dataclass(frozen=True)
class WatchOptions(ModelOptions):
    """How a watch list sees and compares faces."""

    matcher: Annotated[
        Path | None, typer.Option(help="A matcher of 'keyhole faces fit': small probes are compared by it.")
    ] = None

    def pipeline(self, setting: Setting) -> Pipeline:
        """Return the pipeline under a setting."""
        from keyhole.faces.comparison import Pipeline
        from keyhole.faces.matching import load_matcher

        matcher = None if self.matcher is None else load_matcher(self.matcher)
        return Pipeline(self.open(), self.find(), matcher, setting)


@dataclass(frozen=True)
class ThresholdOptions:
    """What thresholds are asked for."""

    mated: Annotated[
        Path | None, typer.Option(help="Folder or zip PERSON/*.jpg of other photos of the enrolled, to tell misses.")
    ] = None
    probe_px: Annotated[str, typer.Option(help="Sizes of probes by commas.")] = "8,10,12,16,20,24,32,48,112"
    fpir: Annotated[float, typer.Option(help="Wanted rate of false alarms, above 0 and below 1.")] = 0.01
    least_px: Annotated[
        float | None, typer.Option(min=1, help="Below this nothing is told; by default 0.9 of the smallest size.")
    ] = None


def integers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return the whole numbers of an option."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}; expected whole numbers by commas, such as 8,9,10.") from error


def sizes(option: str, text: str) -> tuple[float, ...]:
    """Return the pixels of an option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}; expected pixels by commas, such as 8,12,16.") from error


def extent(text: str) -> float | None:
    """Return a margin of ``--margins``; None for aligned crops."""
    try:
        return None if text == "aligned" else float(text)
    except ValueError as error:
        raise SettingError(f"--margins holds {text!r}; expected numbers from 0 to 1, or aligned, by commas.") from error


def matcher_of(path: Path | None, modes: tuple[str, ...]) -> Matcher | None:
    """Return the matcher of a file, where a way of matching needs one."""
    from keyhole.faces.matching import load_matcher

    wanted = any(mode.startswith("fitted") for mode in modes)
    if wanted and path is None:
        raise SettingError("Matching 'fitted' needs --matcher FILE; make one: keyhole faces fit.")
    if path is not None and not wanted:
        raise SettingError(f"--matcher {path} serves no --match of {','.join(modes)}; add fitted, or leave it out.")
    return load_matcher(path) if wanted and path is not None else None


def check_file(out: Path, *, ending: str = ".safetensors", option: str = "--out") -> None:
    """Refuse a file to write that would be something else, before the work begins."""
    if out.suffix != ending or out.is_dir():
        raise SettingError(f"{option} is {out}; expected a file that ends in {ending}.")
