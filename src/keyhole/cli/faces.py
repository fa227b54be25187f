"""``keyhole faces``: what a face model sees on few pixels, which factor helps, and how to match."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import face_options as f
from keyhole.cli import options as o
from keyhole.cli import students, watchlist
from keyhole.errors import SettingError

app = typer.Typer(
    help="Low-resolution faces: measure, match, watch lists, students.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@o.command
def evaluate(
    use: f.ModelOptions,
    protocol: f.ProtocolOptions,
    out: o.Out,
    conditions: f.ConditionOptions,
    matcher: f.MatcherFile = None,
    examples: f.Examples = False,
    json: o.Json = False,
) -> None:
    """Evaluate a face model on a protocol, by size of the probe.

    It is compared plainly and matched, and each figure has its interval.

    Example: keyhole faces evaluate --model M.onnx --protocol lfw --root DIR --probe-px 112,16,12,8 --out OUT

    Writes result.json and report.html to OUT. A probe in which no face is found is a miss, and is counted.
    """
    from keyhole.faces.comparison import Pipeline
    from keyhole.faces.evaluation import evaluate as measure
    from keyhole.files import write_json, write_text
    from keyhole.reports.faces_page import evaluation_page
    from keyhole.runs import open_run

    setting = conditions.conditions()
    fitted = f.matcher_of(matcher, setting.match)
    recipe = o.recipe(
        {**use.for_recipe(), **vars(protocol), **vars(conditions), "matcher": matcher, "precision": "fp32"},
        of_machine=("threads",),
    )
    with open_run(out, "faces evaluate", recipe, resume=True) as run:
        read = protocol.open()
        for line in (read.summary(), *read.notes):
            o.note(line)
        pipeline = Pipeline(use.open(), use.find(), fitted, setting)
        found = measure(pipeline, read, examples=examples, progress=o.progress_bar())
        write_text(run.path / "report.html", evaluation_page(found), private=True)  # notes may name people
        write_json(run.path / "result.json", found.to_json(), private=True)
    o.emit(found.to_json(), f"{found.text()}\nReport: {out / 'report.html'}", as_json=json)


@o.command
def factors(
    use: f.ModelOptions,
    protocol: f.ProtocolOptions,
    out: o.Out,
    varied: f.FactorOptions,
    json: o.Json = False,
) -> None:
    """Tell which factor helps, alone and together.

    Factors are the model, the extent of the crop and matching, at each size of the probe.

    Example: keyhole faces factors --model A.onnx --also B.onnx --root DIR --margins 0,0.3,0.6 --out OUT

    Finished parts are kept in OUT/parts: the same command goes on after a stop. Models that differ in more than their
    training data are told as such.
    """
    from keyhole.faces.factors import study_factors
    from keyhole.faces.matching import load_matcher
    from keyhole.faces.models.face_model import load_face_model
    from keyhole.files import write_json, write_text
    from keyhole.reports.faces_page import factors_page
    from keyhole.runs import open_run

    setting = varied.conditions()
    extents = tuple(f.extent(part) for part in varied.margins.split(","))
    also, matchers = varied.also or (), [str(path) for path in varied.matcher or ()]
    recipe = o.recipe(
        {**use.for_recipe(), **vars(protocol), **vars(varied), "matcher": matchers, "precision": "fp32"},
        of_machine=("threads",),
    )
    recipe["files"] |= o.fingerprints([*also, *matchers])
    with open_run(out, "faces factors", recipe, resume=True) as run:
        read = protocol.open()
        for line in (read.summary(), *read.notes):
            o.note(line)
        models = [use.open(), *(load_face_model(name, device=use.device, threads=use.threads) for name in also)]
        found = study_factors(
            models, read, setting, margins=extents, matchers=[load_matcher(Path(path)) for path in matchers],
            folder=run.path / "parts", detector=use.find(), progress=o.progress_bar(),
        )  # fmt: skip
        write_text(run.path / "report.html", factors_page(found))
        write_json(run.path / "result.json", found.to_json())
    o.emit(found.to_json(), f"{found.text()}\nReport: {out / 'report.html'}", as_json=json)


@o.command
def fit(
    use: f.ModelOptions,
    protocol: f.ProtocolOptions,
    out: f.File,
    camera: f.CameraOptions,
    json: o.Json = False,
) -> None:
    """Learn to match small probes with sharp photos.

    It learns from unlabeled faces of other people: a folder or zip PERSON/*.jpg, or all pictures of a protocol.

    Example: keyhole faces fit --model M.onnx --protocol lfw --root DIR --folds 1,2,3 --out matcher.safetensors
    """
    from keyhole.faces.comparison import Pipeline
    from keyhole.faces.evaluation import fit as learn
    from keyhole.faces.matching import save_matcher
    from keyhole.faces.watchlist.enrollment import fit_folder

    f.check_file(out)
    faces = None if protocol.is_people() else protocol.open()
    pipeline = Pipeline(use.open(), use.find(), setting=camera.setting())
    if faces is None:
        found = fit_folder(pipeline, protocol.root, progress=o.progress_bar(), note=o.note)
    else:
        found = learn(pipeline, faces, progress=o.progress_bar())
    save_matcher(out, found)
    value = {"matcher": str(out), "sizes_px": list(found.sizes_px), "people": len(found.people), **found.about}
    o.emit(value, f"{out}: fitted on {found.about['faces']} faces of {len(found.people)} people", as_json=json)


@o.command
def models(
    download: Annotated[str | None, typer.Option(help="Fetch this one, after its terms were accepted.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The terms were read and are accepted.")] = False,
    json: o.Json = False,
) -> None:
    """List known public models and licenses, or download one.

    Example: keyhole faces models --download opencv-sface
    """
    from keyhole.faces.models import registry

    if download is None:
        from keyhole.faces.models.face_model import SHIPPED, shipped_notice

        names = list(registry.KNOWN_MODELS)
        notices = [shipped_notice(), *map(registry.notice, names)]
        o.emit({"models": [SHIPPED, *names]}, "\n\n".join(notices), as_json=json)
        return

    if download == o.FACE_MODEL:
        raise SettingError(
            f"{download} comes with the package; there is nothing to download. It is --model by default."
        )

    def accept(terms: str) -> bool:
        o.note(terms)
        return yes or typer.confirm("Download under these terms?", err=True)

    path = registry.download(download, accept=accept, progress=o.progress_bar())
    o.emit({"model": download, "file": str(path)}, str(path), as_json=json)


for command in (evaluate, factors, fit, *watchlist.COMMANDS, students.distill, models):
    app.command()(command)
