"""``keyhole faces``, the watch list: enroll, calibrate, and say who a probe may be, or that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import face_options as f
from keyhole.cli import options as o
from keyhole.errors import SettingError

Report = Annotated[Path | None, typer.Option(help="Also write this HTML file; only its owner can read it.")]


@o.command
def embed(
    use: f.WatchOptions,
    folder: Annotated[Path, typer.Argument(help="Folder or zip: PERSON/*.jpg, or PERSON.jpg.")],
    out: f.File,
    crop: f.CropOptions,
    json: o.Json = False,
) -> None:
    """Enroll a folder of people in a gallery file.

    Its owner alone can read the file.

    Example: keyhole faces embed people/ --model M.onnx --detector YUNET.onnx --out gallery.safetensors

    With --matcher the gallery is also embedded at the sizes that the matcher compares.
    """
    from keyhole.faces.watchlist.enrollment import enroll_folder
    from keyhole.faces.watchlist.gallery import save_gallery

    f.check_file(out)
    gallery, faces = enroll_folder(use.pipeline(crop.setting()), folder, progress=o.progress_bar(), note=o.note)
    save_gallery(out, gallery)
    people = len(set(gallery.people))
    value = {
        "gallery": str(out), "people": people, "photos": len(gallery), "without_face": list(faces.without_face),
        "unreadable": faces.unreadable,
    }  # fmt: skip
    left = len(faces.without_face) + len(faces.unreadable)
    o.emit(value, f"{out}: {people} people, {len(gallery)} photos" + (f"; {left} left out" * bool(left)), as_json=json)


@o.command
def calibrate(
    use: f.WatchOptions,
    out: Annotated[Path, typer.Option(help="The file of thresholds (JSON) to write; the report lies beside it.")],
    gallery: Annotated[Path, typer.Option(help="Gallery of 'keyhole faces embed'.")],
    strangers: Annotated[Path, typer.Option(help="Folder or zip of photos of people who are not enrolled.")],
    camera: f.CameraOptions,
    wanted: f.ThresholdOptions,
    json: o.Json = False,
) -> None:
    """Find thresholds for a wanted rate of false alarms.

    There is one for each size of the probe.

    Example: keyhole faces calibrate --model M.onnx --gallery gallery.safetensors --strangers DIR --out thresholds.json

    Beside the thresholds, a report shows the scores that they rest on: thresholds.html.
    """
    from keyhole.faces.watchlist.calibration import Wanted
    from keyhole.faces.watchlist.calibration import calibrate as find
    from keyhole.faces.watchlist.gallery import load_gallery
    from keyhole.faces.watchlist.thresholds import save_thresholds
    from keyhole.files import write_text
    from keyhole.reports.watchlist_page import KICKER, calibration_page

    f.check_file(out, ending=".json")
    report = out.with_suffix(".html")
    if report.exists() and not (report.is_file() and KICKER in report.read_text(encoding="utf-8", errors="replace")):
        raise SettingError(f"{report}, where the report would stand, is something else. Choose another --out.")
    asked = Wanted(wanted.fpir, wanted.least_px)
    pipeline = use.pipeline(camera.setting(probe_px=f.sizes("--probe-px", wanted.probe_px)))
    found = find(
        pipeline, load_gallery(gallery), strangers, asked, mated=wanted.mated, progress=o.progress_bar(), note=o.note
    )
    save_thresholds(out, found.thresholds)
    write_text(report, calibration_page(found))
    levels = found.thresholds.levels
    lines = [
        f"{level.face_px:>6g} px: score {level.score:.3f}, false alarms at most {100 * level.fpir_bound:.1f} %"
        + ("" if level.fnir is None else f", misses {100 * level.fnir:.1f} %")
        + (f" ({100 * level.too_little:.1f} % show too little)" if level.too_little else "")
        for level in levels
    ]
    value = {"thresholds": str(out), "report": str(report), "levels": [vars(level) for level in levels]}
    o.emit(value, "\n".join([*lines, f"Report: {report}"]), as_json=json)


@o.command
def identify(
    use: f.WatchOptions,
    gallery: Annotated[Path, typer.Option(help="Gallery of 'keyhole faces embed', or a folder of people.")],
    probe: Annotated[Path, typer.Option(help="A photo, or a folder or zip of photos.")],
    thresholds: Annotated[Path, typer.Option(help="Thresholds of 'keyhole faces calibrate'.")],
    crop: f.CropOptions,
    frames: Annotated[
        bool, typer.Option("--frames", help="The photos of each folder are frames of one person: one answer a folder.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Candidates at most.")] = 5,
    report: Report = None,
    json: o.Json = False,
) -> None:
    """Say who a probe may be, or that it is unknown.

    The answer is ranked candidates above the threshold of its size, or unknown, or too little to tell.

    Example: keyhole faces identify --model M.onnx --gallery g.safetensors --probe x.jpg --thresholds t.json
    """
    from keyhole.faces.watchlist.enrollment import identify as find
    from keyhole.faces.watchlist.enrollment import open_gallery
    from keyhole.faces.watchlist.thresholds import load_thresholds
    from keyhole.files import write_text
    from keyhole.reports.watchlist_page import answers_page

    if report is not None:
        f.check_file(report, ending=".html", option="--report")
    pipeline = use.pipeline(crop.setting())
    levels = load_thresholds(thresholds, fingerprint=pipeline.model.fingerprint)
    enrolled = open_gallery(pipeline, gallery, note=o.note)
    answers = find(
        pipeline, enrolled, probe, levels, frames=frames, count=count, progress=o.progress_bar(), note=o.note
    )
    if report is not None:
        write_text(report, answers_page(answers, levels), private=True)
    value = {"probes": [{"probe": name, **each.to_json()} for name, each in answers.items()]}
    o.emit(value, "\n".join(f"{name}: {each.text()}" for name, each in answers.items()), as_json=json)


@o.command
def compare(
    use: f.WatchOptions,
    first: Annotated[Path, typer.Argument(help="A photo.")],
    second: Annotated[Path, typer.Argument(help="Another photo.")],
    crop: f.CropOptions,
    report: Report = None,
    json: o.Json = False,
) -> None:
    """Compare the faces of two photos.

    The sharper one stands for the gallery.

    Example: keyhole faces compare a.jpg b.jpg --model M.onnx --detector YUNET.onnx
    """
    from keyhole.faces.watchlist.enrollment import compare as measure
    from keyhole.files import write_text
    from keyhole.reports.watchlist_page import comparison_page

    if report is not None:
        f.check_file(report, ending=".html", option="--report")
    found = measure(use.pipeline(crop.setting()), first, second, note=o.note)
    if report is not None:
        write_text(report, comparison_page(found), private=True)
    text = f"score {found.score:.3f} ({found.first_px:.0f} and {found.second_px:.0f} px)"
    o.emit(found.to_json(), text, as_json=json)


@o.command
def frames(
    clip: Annotated[Path, typer.Argument(help="An animated file (GIF, WebP), or a folder or zip of frames.")],
    out: o.Out,
    detector: Annotated[Path, typer.Option(help="YuNet's ONNX file.")],
    search: f.DetectionOptions,
    crops: Annotated[
        bool, typer.Option("--crops", help="Also write the aligned faces, a folder a person; only their owner can.")
    ] = False,
    examples: f.Examples = False,
    json: o.Json = False,
) -> None:
    """Follow the faces of a clip.

    It tells where they are in each frame, and how many pixels each really shows.

    Example: keyhole faces frames clip.gif --detector YUNET.onnx --crops --out OUT

    Writes result.json and report.html to OUT. With --crops, OUT/tracks is a probe for 'faces identify --frames'.
    """
    from keyhole.faces.images.clips import clip_digest, clip_length, crop_writer, follow, read_clip
    from keyhole.files import write_json, write_text
    from keyhole.reports.watchlist_page import clip_page
    from keyhole.runs import open_run

    recipe = o.recipe(
        {
            "clip": str(clip),
            "detector": str(detector),
            "crops": crops,
            "precision": "fp32",
            "device": "cpu",
            **search.for_recipe(),
        }
    )
    recipe["files"] |= {str(clip): clip_digest(clip)}
    with open_run(out, "faces frames", recipe, resume=True) as run:
        pictures = o.progress_bar()(read_clip(clip), label="frames", total=clip_length(clip))
        sink = {"sink": crop_writer(run.path / "tracks")} if crops else {}
        found = follow(pictures, search.open_detector(detector), keep_crops=examples, **sink)
        if crops and not found.tracks:
            o.note("No face was found, so there are no crops.")
        write_text(run.path / "report.html", clip_page(found, name=clip.name, examples=examples), private=examples)
        write_json(run.path / "result.json", found.to_json())
    o.emit(found.to_json(), f"{found.text()}\nReport: {out / 'report.html'}", as_json=json)


@o.command
def crop(
    photos: Annotated[Path, typer.Argument(help="Folder or zip: PERSON/*.jpg, or one photo a person.")],
    out: o.Out,
    detector: Annotated[Path, typer.Option(help="YuNet's ONNX file.")],
    search: f.DetectionOptions,
    json: o.Json = False,
) -> None:
    """Cut the largest face out of each photo, aligned.

    The crops of 112 x 112 are what 'faces distill' and 'export' take.

    Example: keyhole faces crop photos/ --detector YUNET.onnx --out crops

    Writes PERSON/PHOTO.png to OUT, readable by its owner only. The same command goes on after a stop.
    """
    from keyhole.faces.cropping import crop_folder
    from keyhole.faces.protocols.samples import counted, shortened

    found = crop_folder(photos, search.open_detector(detector), out, progress=o.progress_bar())
    if found.without_face:
        o.note(f"No face was found in {counted(len(found.without_face), 'photo')}: {shortened(found.without_face)}.")
    if found.several:
        o.note(f"The largest face was taken of {counted(len(found.several), 'photo')}: {shortened(found.several)}.")
    if found.unreadable:
        o.note(f"{counted(len(found.unreadable), 'photo')} cannot be read: {next(iter(found.unreadable.values()))}")
    value = {
        "out": str(out), "written": found.written, "there_before": found.there, "people": found.people,
        "without_face": list(found.without_face), "several": list(found.several), "unreadable": dict(found.unreadable),
    }  # fmt: skip
    before = f", {found.there:,} were there" if found.there else ""
    people = counted(found.people, "person", "people")
    o.emit(value, f"{out}: {counted(found.written, 'crop')} written{before}; {people}", as_json=json)


COMMANDS = (embed, calibrate, identify, compare, frames, crop)
