"""``keyhole faces``: what a face model sees on few pixels, and a watch list that says when it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli import options as o
from keyhole.errors import SettingError

if TYPE_CHECKING:
    from keyhole.faces.detection import Detector
    from keyhole.faces.evaluation import Setting
    from keyhole.faces.matching import Matcher
    from keyhole.faces.models import FaceModel
    from keyhole.faces.samples import IdentificationSet, PairSet

app = typer.Typer(
    help="Low-resolution faces: evaluate a model on any protocol, match by resolution, calibrate, identify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Match = Annotated[
    str, typer.Option(help="none, resolution, resolution-estimated, fitted, fitted-estimated; several by commas.")
]
MatcherFile = Annotated[Path | None, typer.Option(help="A matcher of 'keyhole faces fit', for fitted.")]
OneMatch = Annotated[str, typer.Option(help="none, or fitted-estimated (with --matcher).")]
File = Annotated[Path, typer.Option(help="The file to write; only its owner can read it.")]


@dataclass(frozen=True)
class ModelOptions:
    """A face model, and what finds faces for it."""

    model: Annotated[
        str, typer.Option(help="A known model, .onnx, .xml, .toml, or package.module:function ('faces models').")
    ]
    detector: Annotated[Path | None, typer.Option(help="YuNet's ONNX file; needed for photos without landmarks.")] = (
        None
    )
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads on the CPU; all cores by default.")] = (
        None
    )
    device: o.Device = "auto"

    def open(self) -> FaceModel:
        """Return the model, ready to embed."""
        from keyhole.faces.models import load_face_model

        return load_face_model(self.model, device=self.device, threads=self.threads)

    def find(self) -> Detector | None:
        """Return the detector, where one is given."""
        from keyhole.faces.detection import Detector

        return None if self.detector is None else Detector(self.detector)


@dataclass(frozen=True)
class ProtocolOptions:
    """Whom to enroll, and whom to search for."""

    root: Annotated[Path, typer.Option(help="Folder or zip of the protocol's pictures.")]
    protocol: Annotated[str, typer.Option(help="lfw, scface, icbrw or folder.")] = "folder"
    folds: Annotated[str | None, typer.Option(help="Folds of lfw by commas, such as 8,9,10; all by default.")] = None
    pairs: Annotated[Path | None, typer.Option(help="pairs.txt of lfw; beside the pictures by default.")] = None
    subjects: Annotated[Path | None, typer.Option(help="File with one subject of scface a line.")] = None
    cameras: Annotated[str | None, typer.Option(help="Cameras of scface by commas; 1,2,3,4,5 by default.")] = None
    manifest: Annotated[Path | None, typer.Option(help="Manifest (CSV) of a folder; DIR/manifest.csv by default.")] = (
        None
    )
    views: Annotated[
        str | None, typer.Option(help="Of several gallery pictures: best or mean; icbrw also frontal.")
    ] = None

    def open(self) -> IdentificationSet | PairSet:
        """Return what the protocol compares."""
        from keyhole.faces.protocols.named import read_protocol

        return read_protocol(
            self.protocol,
            self.root,
            folds=_integers("--folds", self.folds),
            pairs=self.pairs,
            subjects=self.subjects,
            cameras=_integers("--cameras", self.cameras),
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
        from keyhole.faces.evaluation import Setting

        return Setting(margin=self.margin, **more)


@dataclass(frozen=True)
class CameraOptions(CropOptions):
    """What stands between a face and the model."""

    degrade: Annotated[str, typer.Option(help="The camera, such as down=cv2-area,blur=0.5,noise=2,jpeg=70.")] = ""
    seed: o.Seed = 0

    def setting(self, **more: Any) -> Setting:
        """Return them with more of an evaluation's setting, in the form of the library."""
        from keyhole.faces.degradation import degradation_of, parse_settings
        from keyhole.faces.evaluation import Setting

        settings = {"face_px": 112, **parse_settings(self.degrade)}
        if settings["face_px"] != 112:
            raise SettingError("--degrade names a face_px; give sizes by --probe-px, and leave it out there.")
        how = degradation_of(settings, seen=self.degrade)
        return Setting(margin=self.margin, how=how, seed=self.seed, **more)


def _integers(option: str, text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}; expected whole numbers by commas, such as 8,9,10.") from error


def _sizes(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} is {text!r}; expected pixels by commas, such as 8,12,16.") from error


def _extent(text: str) -> float | None:
    try:
        return None if text == "aligned" else float(text)
    except ValueError as error:
        raise SettingError(f"--margins holds {text!r}; expected numbers from 0 to 1, or aligned, by commas.") from error


def _matcher(path: Path | None, modes: tuple[str, ...]) -> Matcher | None:
    from keyhole.faces.matching import load_matcher

    wanted = any(mode.startswith("fitted") for mode in modes)
    if wanted and path is None:
        raise SettingError("Matching 'fitted' needs --matcher FILE; make one: keyhole faces fit.")
    return load_matcher(path) if wanted and path is not None else None


@o.command
def evaluate(
    use: ModelOptions,
    protocol: ProtocolOptions,
    out: o.Out,
    camera: CameraOptions,
    probe_px: Annotated[str, typer.Option(help="face_px of the probes by commas; 112 as they are.")] = "112",
    match: Match = "none",
    matcher: MatcherFile = None,
    shrink: Annotated[str, typer.Option(help="probe, or both (gallery as well).")] = "probe",
    fpir: Annotated[float, typer.Option(help="Rate of false alarms for the open-set figures, 0 to 1.")] = 0.01,
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap over subjects.")] = 2000,
    examples: Annotated[
        bool, typer.Option(help="Show example faces in the report; only where the terms of the data allow it.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Evaluate a face model on a protocol: at each size of the probe, plain and matched, with intervals.

    Example: keyhole faces evaluate --model M.onnx --protocol lfw --root DIR --probe-px 112,16,12,8 --out OUT

    Writes result.json and report.html to OUT. A probe in which no face is found is a miss, and is counted.
    """
    from keyhole.faces.evaluation import evaluate as measure
    from keyhole.files import write_json, write_text
    from keyhole.reports.faces_page import evaluation_page
    from keyhole.runs import open_run

    modes = tuple(match.split(","))
    setting = camera.setting(
        probe_px=_sizes("--probe-px", probe_px), match=modes, shrink=shrink, draws=draws, fpir=fpir
    )
    fitted = _matcher(matcher, modes)
    told = o.recipe(
        {**vars(use), **vars(protocol), **vars(camera), "probe_px": probe_px, "match": match, "matcher": matcher,
         "shrink": shrink, "fpir": fpir, "draws": draws, "precision": "fp32"},
        of_machine=("threads",),
    )  # fmt: skip
    with open_run(out, "faces evaluate", told, resume=True) as run:
        read = protocol.open()
        for line in (read.summary(), *read.notes):
            o.note(line)
        found = measure(
            use.open(), read, setting, detector=use.find(), matcher=fitted, examples=examples,
            progress=o.progress_bar(),
        )  # fmt: skip
        write_text(run.path / "report.html", evaluation_page(found), private=examples)  # faces are their owner's
        write_json(run.path / "result.json", found.to_json())
    o.emit(found.to_json(), f"{found.text()}\nReport: {out / 'report.html'}", as_json=json)


@o.command
def factors(
    use: ModelOptions,
    protocol: ProtocolOptions,
    out: o.Out,
    also: Annotated[list[str] | None, typer.Option(help="Another model; may be given several times.")] = None,
    margins: Annotated[
        str, typer.Option(help="Crop extents by commas, 0 to 1 of the crop; aligned for 112-template crops.")
    ] = "aligned",
    degrade: Annotated[str, typer.Option(help="The camera, as in 'faces evaluate'.")] = "",
    seed: o.Seed = 0,
    probe_px: Annotated[str, typer.Option(help="face_px of the probes by commas.")] = "112,32,16,12,8",
    match: Match = "none,resolution",
    matcher: Annotated[list[Path] | None, typer.Option(help="For fitted: a matcher of each model.")] = None,
    draws: Annotated[int, typer.Option(min=100, help="Of the bootstrap over subjects.")] = 2000,
    json: o.Json = False,
) -> None:
    """Tell which factor helps, alone and together: model, crop extent and matching, at each size of the probe.

    Example: keyhole faces factors --model A.onnx --also B.onnx --root DIR --margins 0,0.3,0.6 --out OUT

    Finished parts are kept in OUT/parts: the same command goes on after a stop. Models that differ in more than their
    training data are told as such.
    """
    from keyhole.faces.factors import study_factors
    from keyhole.faces.matching import load_matcher
    from keyhole.faces.models import load_face_model
    from keyhole.files import write_json, write_text
    from keyhole.reports.faces_page import factors_page
    from keyhole.runs import open_run

    extents = tuple(_extent(part) for part in margins.split(","))
    modes = tuple(match.split(","))
    setting = CameraOptions(None, degrade, seed).setting(
        probe_px=_sizes("--probe-px", probe_px), match=modes, draws=draws
    )
    told = o.recipe(
        {**vars(use), **vars(protocol), "also": also, "margins": margins, "degrade": degrade, "seed": seed,
         "probe_px": probe_px, "match": match, "matcher": [str(path) for path in matcher or ()], "draws": draws,
         "precision": "fp32"},
        of_machine=("threads",),
    )  # fmt: skip
    told["files"] |= o.fingerprints([*(also or ()), *map(str, matcher or ())])
    with open_run(out, "faces factors", told, resume=True) as run:
        read = protocol.open()
        for line in (read.summary(), *read.notes):
            o.note(line)
        models = [use.open(), *(load_face_model(name, device=use.device, threads=use.threads) for name in also or ())]
        found = study_factors(
            models, read, setting, margins=extents, matchers=[load_matcher(path) for path in matcher or ()],
            folder=run.path / "parts", detector=use.find(), progress=o.progress_bar(),
        )  # fmt: skip
        write_text(run.path / "report.html", factors_page(found))
        write_json(run.path / "result.json", found.to_json())
    o.emit(found.to_json(), f"{found.text()}\nReport: {out / 'report.html'}", as_json=json)


@o.command
def fit(
    use: ModelOptions,
    protocol: ProtocolOptions,
    out: File,
    camera: CameraOptions,
    json: o.Json = False,
) -> None:
    """Learn to match small probes with sharp photos, from unlabeled faces of other people.

    Example: keyhole faces fit --model M.onnx --protocol lfw --root DIR --folds 1,2,3 --out matcher.safetensors
    """
    from keyhole.faces.evaluation import fit as learn
    from keyhole.faces.matching import save_matcher

    _check_file(out)
    read = protocol.open()
    found = learn(use.open(), read, camera.setting(), detector=use.find(), progress=o.progress_bar())
    save_matcher(out, found)
    value = {"matcher": str(out), "sizes_px": list(found.sizes_px), "people": len(found.people), **found.about}
    o.emit(value, f"{out}: fitted on {found.about['faces']} faces of {len(found.people)} people", as_json=json)


@o.command
def embed(
    use: ModelOptions,
    folder: Annotated[Path, typer.Argument(help="Folder or zip: PERSON/*.jpg, or PERSON.jpg.")],
    out: File,
    crop: CropOptions,
    matcher: MatcherFile = None,
    json: o.Json = False,
) -> None:
    """Enroll a folder of people in a gallery file, which its owner alone can read.

    Example: keyhole faces embed people/ --model M.onnx --detector YUNET.onnx --out gallery.safetensors

    With --matcher the gallery is also embedded at the sizes that the matcher compares.
    """
    from keyhole.faces.enrollment import enroll_folder
    from keyhole.faces.gallery import save_gallery
    from keyhole.faces.matching import load_matcher

    _check_file(out)
    sizes = load_matcher(matcher).sizes_px if matcher is not None else ()
    gallery, misses = enroll_folder(
        use.open(), folder, crop.setting(), detector=use.find(), sizes_px=sizes, progress=o.progress_bar(),
        note=o.note,
    )  # fmt: skip
    save_gallery(out, gallery)
    people = len(set(gallery.people))
    value = {"gallery": str(out), "people": people, "photos": len(gallery), "without_face": list(misses)}
    missed = f"; no face in {len(misses)}: {', '.join(misses[:3])}" if misses else ""
    o.emit(value, f"{out}: {people} people, {len(gallery)} photos{missed}", as_json=json)


@o.command
def calibrate(
    use: ModelOptions,
    out: Annotated[Path, typer.Option(help="The file of thresholds (JSON) to write.")],
    gallery: Annotated[Path, typer.Option(help="Gallery of 'keyhole faces embed'.")],
    strangers: Annotated[Path, typer.Option(help="Folder or zip of photos of people who are not enrolled.")],
    camera: CameraOptions,
    mated: Annotated[
        Path | None, typer.Option(help="Folder or zip PERSON/*.jpg of other photos of the enrolled, to tell misses.")
    ] = None,
    probe_px: Annotated[str, typer.Option(help="Sizes of probes by commas.")] = "8,10,12,16,20,24,32,48,112",
    match: OneMatch = "none",
    matcher: MatcherFile = None,
    fpir: Annotated[float, typer.Option(help="Wanted rate of false alarms, above 0 and below 1.")] = 0.01,
    least_px: Annotated[float, typer.Option(min=1, help="Below this nothing is told.")] = 8.0,
    json: o.Json = False,
) -> None:
    """Find thresholds by the size of the probe for a wanted rate of false alarms.

    Example: keyhole faces calibrate --model M.onnx --gallery gallery.safetensors --strangers DIR --out thresholds.json
    """
    from keyhole.faces.calibration import calibrate as find
    from keyhole.faces.gallery import load_gallery
    from keyhole.faces.thresholds import save_thresholds

    _check_file(out, ending=".json")
    model = use.open()
    found = find(
        model, load_gallery(gallery), strangers, camera.setting(probe_px=_sizes("--probe-px", probe_px)),
        mated=mated, mode=match, matcher=_matcher(matcher, (match,)), fpir=fpir, least_px=least_px,
        detector=use.find(), progress=o.progress_bar(), note=o.note,
    )  # fmt: skip
    save_thresholds(out, found)
    lines = [
        f"{level.face_px:>6g} px: score {level.score:.3f}, false alarms at most {100 * level.fpir_bound:.1f} %"
        + ("" if level.fnir is None else f", misses {100 * level.fnir:.1f} %")
        for level in found.levels
    ]
    o.emit({"thresholds": str(out), "levels": [vars(level) for level in found.levels]}, "\n".join(lines), as_json=json)


@o.command
def identify(
    use: ModelOptions,
    gallery: Annotated[Path, typer.Option(help="Gallery of 'keyhole faces embed', or a folder of people.")],
    probe: Annotated[Path, typer.Option(help="A photo, or a folder or zip of photos.")],
    thresholds: Annotated[Path, typer.Option(help="Thresholds of 'keyhole faces calibrate'.")],
    crop: CropOptions,
    match: OneMatch = "none",
    matcher: MatcherFile = None,
    count: Annotated[int, typer.Option(min=1, help="Candidates at most.")] = 5,
    json: o.Json = False,
) -> None:
    """Say who a probe may be: ranked candidates above the threshold of its size, or unknown, or too little to tell.

    Example: keyhole faces identify --model M.onnx --gallery g.safetensors --probe x.jpg --thresholds t.json
    """
    from keyhole.faces.enrollment import identify as find
    from keyhole.faces.enrollment import open_gallery
    from keyhole.faces.thresholds import load_thresholds

    model, detector = use.open(), use.find()
    fitted = _matcher(matcher, (match,))
    enrolled = open_gallery(model, gallery, crop.setting(), detector=detector, matcher=fitted, note=o.note)
    levels = load_thresholds(thresholds, fingerprint=model.fingerprint, mode=match)
    answers = find(
        model, enrolled, probe, levels, crop.setting(), matcher=fitted, detector=detector, count=count,
        progress=o.progress_bar(), note=o.note,
    )  # fmt: skip
    value = {"probes": [{"probe": name, **each.to_json()} for name, each in answers.items()]}
    o.emit(value, "\n".join(f"{name}: {each.text()}" for name, each in answers.items()), as_json=json)


@o.command
def compare(
    use: ModelOptions,
    first: Annotated[Path, typer.Argument(help="A photo.")],
    second: Annotated[Path, typer.Argument(help="Another photo.")],
    crop: CropOptions,
    match: OneMatch = "none",
    matcher: MatcherFile = None,
    json: o.Json = False,
) -> None:
    """Compare the faces of two photos: the sharper one stands for the gallery.

    Example: keyhole faces compare a.jpg b.jpg --model M.onnx --detector YUNET.onnx
    """
    from keyhole.faces.enrollment import compare as measure

    found = measure(
        use.open(), first, second, crop.setting(), mode=match, matcher=_matcher(matcher, (match,)),
        detector=use.find(),
    )  # fmt: skip
    o.emit(found, f"score {found['score']:.3f} ({found['first_px']:.0f} and {found['second_px']:.0f} px)", as_json=json)


@o.command
def models(
    download: Annotated[str | None, typer.Option(help="Fetch this one, after its terms were accepted.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The terms were read and are accepted.")] = False,
    json: o.Json = False,
) -> None:
    """List the known public models with their licenses, or download one.

    Example: keyhole faces models --download opencv-sface
    """
    from keyhole.faces import registry

    if download is None:
        names = list(registry.KNOWN_MODELS)
        o.emit({"models": names}, "\n\n".join(registry.notice(name) for name in names), as_json=json)
        return

    def accept(terms: str) -> bool:
        o.note(terms)
        return yes or typer.confirm("Download under these terms?", err=True)

    path = registry.download(download, accept=accept, progress=o.progress_bar())
    o.emit({"model": download, "file": str(path)}, str(path), as_json=json)


def _check_file(out: Path, *, ending: str = ".safetensors") -> None:
    """Refuse a file to write that would be something else, before the work begins."""
    if out.suffix != ending or out.is_dir():
        raise SettingError(f"--out is {out}; expected a file that ends in {ending}.")


for command in (evaluate, factors, fit, embed, calibrate, identify, compare, models):
    app.command()(command)
