"""Fit and measure the estimate of effective resolution on the Face Research Lab London Set.

    python benchmarks/effective_resolution.py fit --root london_faces.zip --out src/keyhole/faces/images/resolution.json
    python benchmarks/effective_resolution.py measure --root london_faces.zip [--lfw lfw112.zip]
        --out docs/results/faces/effective-resolution.json

The London Set (DeBruine & Jones 2017, doi:10.6084/m9.figshare.5047666, CC BY 4.0) is read as aligned crops of 224 px,
``aligned224/NNN_neutral.jpg`` and ``_smiling.jpg``. Every third person is held out from the fit and measured.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from keyhole.faces.images.degradation import Degradation, degrade
from keyhole.faces.images.resampling import METHODS, resample
from keyhole.faces.images.resolution import BLUR_SIGMA_PX, CROP_PX, band_powers, effective_face_px

SIZES = tuple(range(8, 65))
FEW_SIZES = (8, 12, 16, 24, 32, 48, 64)
KINDS = (
    [(name, {"down": name}) for name in METHODS]
    + [("pil-box to pil-bicubic", {"down": "pil-box", "up": "pil-bicubic"})]
    + [("cv2-area to cv2-linear", {"down": "cv2-area", "up": "cv2-linear"})]
)
CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "jpeg=90": {"codec": "jpeg", "quality": 90},
    "jpeg=70": {"codec": "jpeg", "quality": 70},
}
VARIANTS = 8
DRAWS = 72
TOGETHER = 2  # neighbors that share a degradation, which is faster
DIVISORS = (7, 8, 14, 16, 28, 56)  # a whole number of pixels each: spectra of their own kind, drawn more often
HIDDEN = (64, 32)
METHOD_NAMES = list(METHODS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("fit", "measure"))
    parser.add_argument("--root", type=Path, required=True, help="zip of the London Set")
    parser.add_argument("--lfw", type=Path, help="zip of aligned LFW crops")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40000)
    options = parser.parse_args()
    if options.action == "fit":
        fit(options.root, options.out, options.steps)
    else:
        measure(options.root, options.lfw, options.out)


def london(root: Path, *, held_out: bool) -> Tensor:
    """Return crops of 224 px of the people of one side, two of each."""
    with zipfile.ZipFile(root) as archive:
        names = sorted(name for name in archive.namelist() if "/aligned224/" in name and name.endswith(".jpg"))
        people = sorted({Path(name).name[:3] for name in names})
        chosen = {person for index, person in enumerate(people) if (index % 3 == 2) == held_out}
        images = [Image.open(io.BytesIO(archive.read(name))) for name in names if Path(name).name[:3] in chosen]
        return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))


def moved(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Return crops of 112 px from crops of 224, each mirrored, turned, scaled and shifted a little."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(crops), generator=generator)

    angle, scale = between(-0.2, 0.2), between(0.75, 1.0)
    mirror = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    shift = (1 - scale) * torch.stack([between(-1, 1), between(-1, 1)])
    grid = functional.affine_grid(_affine(angle, scale, mirror, shift), [len(crops), 3, 224, 224], align_corners=False)
    pixels = crops.movedim(3, 1).float()
    turned = functional.grid_sample(pixels, grid, "bicubic", "reflection", align_corners=False)
    gamma = torch.exp(between(-0.4, 0.4)).view(-1, 1, 1, 1)
    gain, offset = between(0.4, 1.05).view(-1, 1, 1, 1), between(-10, 40).view(-1, 1, 1, 1)
    lit = 255 * (turned.clamp(0, 255) / 255) ** gamma * gain + offset
    small = functional.interpolate(lit, size=(CROP_PX, CROP_PX), mode="area")
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, 3).contiguous()


def _affine(angle: Tensor, scale: Tensor, mirror: Tensor, shift: Tensor) -> Tensor:
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack(
        [torch.stack([cos * mirror, -sin, shift[0]], 1), torch.stack([sin * mirror, cos, shift[1]], 1)], 1
    )


def drawn(count: int, rng: np.random.Generator) -> tuple[list[Degradation], Tensor]:
    """Return random degradations, and the size that each leaves to be seen."""
    hows, seen = [], []
    for _ in range(count):
        octaves, pixels = int(np.exp(rng.uniform(np.log(5), np.log(125)))), int(rng.integers(24, 125))
        size = (octaves, pixels, int(rng.choice(DIVISORS)))[rng.choice(3, p=(0.5, 0.35, 0.15))]
        down = METHOD_NAMES[rng.integers(len(METHOD_NAMES))]
        up = METHOD_NAMES[rng.integers(len(METHOD_NAMES))] if rng.random() < 0.35 else None
        codec = {"codec": "jpeg", "quality": int(rng.integers(50, 97))} if rng.random() < 0.45 else {}
        if rng.random() < 0.1:
            codec = {"codec": "webp", "quality": int(rng.integers(50, 97))}
        blur = float(rng.uniform(0.2, 2.0)) if rng.random() < 0.12 else 0.0
        noise = float(np.exp(rng.uniform(-1, 2))) if rng.random() < 0.3 else 0.0
        hows.append(Degradation(size, down=down, up=up, blur_sigma_px=blur, noise_sigma=noise, **codec))
        seen.append(max(min(size, CROP_PX) / math.hypot(1, blur / BLUR_SIGMA_PX), 4.0))
    return hows, torch.tensor(seen)


def warped(crops: Tensor, hows: list[Degradation], generator: torch.Generator) -> Tensor:
    """Return crops whose small pictures were turned and shifted when they were enlarged, as alignment does."""
    out = torch.empty_like(crops)
    angle = 0.3 * (2 * torch.rand(len(crops), generator=generator) - 1)
    for index, how in enumerate(hows):
        turn = _affine(angle[index : index + 1], torch.ones(1), torch.ones(1), torch.zeros(2, 1))
        back = _affine(
            -angle[index : index + 1], torch.ones(1), torch.ones(1), 0.02 * torch.randn(2, 1, generator=generator)
        )
        picture = _sampled(crops[index : index + 1].movedim(3, 1).float(), turn, CROP_PX)
        one = picture.round().clamp(0, 255).to(torch.uint8).movedim(1, 3).contiguous()
        small = resample(one, min(how.face_px, CROP_PX), how.down).movedim(3, 1).float()
        out[index] = _sampled(small, back, CROP_PX).round().clamp(0, 255).to(torch.uint8)[0].movedim(0, 2)
    return out


def _sampled(pixels: Tensor, affine: Tensor, size: int) -> Tensor:
    grid = functional.affine_grid(affine, [len(pixels), 3, size, size], align_corners=False)
    return functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=False)


def examples(root: Path) -> tuple[Tensor, Tensor]:
    crops224, generator, rng = london(root, held_out=False), torch.Generator().manual_seed(0), np.random.default_rng(0)
    features, targets = [], []
    for variant in range(VARIANTS):
        crops = moved(crops224, generator)
        for draw in range(DRAWS):
            hows, seen = drawn(len(crops) // TOGETHER, rng)
            hows = [how for how in hows for _ in range(TOGETHER)]
            seen = seen.repeat_interleave(TOGETHER)
            crops = crops[torch.randperm(len(crops), generator=generator)]
            if draw % 9 == 5:
                hows = [Degradation(how.face_px, down=how.down) for how in hows]
                made = warped(crops, hows, generator)
                seen = torch.tensor([float(max(min(how.face_px, CROP_PX), 4)) for how in hows])
            else:
                made = degrade(crops, hows, seed=variant * DRAWS + draw)
            if draw % 3 == 0:  # the crop itself was stored as a file
                made = degrade(made, Degradation(CROP_PX, codec="jpeg", quality=int(rng.integers(80, 98))))
            features.append(band_powers(made))
            targets.append(seen.log())
        print(f"variant {variant + 1} of {VARIANTS}", flush=True)
    return torch.cat(features), torch.cat(targets)


def fit(root: Path, out: Path, steps: int) -> None:
    features, targets = examples(root)
    torch.manual_seed(0)
    mean, scale = features.mean(0), features.std(0)
    inputs = (features - mean) / scale
    widths = (inputs.shape[1], *HIDDEN, 1)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    network = nn.Sequential(*[module for layer in layers for module in (layer, nn.Tanh())][:-1])
    with torch.no_grad():
        layers[-1].bias.fill_(float(targets.mean()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(inputs), (1024,))
        loss = functional.smooth_l1_loss(network(inputs[rows]).squeeze(1), targets[rows], beta=0.03)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(step, float(loss), flush=True)
    stored = {
        "what": "effective face resolution: log10 band powers to log of face_px; see keyhole.faces.images.resolution",
        "fitted_on": "Face Research Lab London Set, DeBruine & Jones 2017, doi:10.6084/m9.figshare.5047666, CC BY 4.0",
        "made_by": "benchmarks/effective_resolution.py fit",
        "mean": _rounded(mean),
        "scale": _rounded(scale),
        "layers": [{"weight": _rounded(layer.weight), "bias": _rounded(layer.bias)} for layer in layers],
    }
    out.write_text(json.dumps(stored, separators=(",", ":")) + "\n")


def _rounded(values: Tensor) -> Any:
    return np.round(values.detach().double().numpy(), 3).tolist()


def measure(root: Path, lfw: Path | None, out: Path) -> None:
    people = resample(london(root, held_out=True)[::2], CROP_PX, "pil-box")
    rows = [
        {"kind": kind, "codec": codec, **errors(people, [Degradation(size, **how, **file) for size in SIZES])}
        for kind, how in KINDS
        for codec, file in CODECS.items()
    ]
    changed = [
        {"kind": name, **errors(people, [Degradation(size, **how) for size in FEW_SIZES], change)}
        for name, (how, change) in CHANGES.items()
    ]
    medians = np.array([row["median_error_percent"] for row in rows])
    found: dict[str, Any] = {
        "command": "python benchmarks/effective_resolution.py measure --root london_faces.zip --lfw lfw112.zip",
        "data": "Face Research Lab London Set (DeBruine & Jones 2017, CC BY 4.0), people held out from the fit",
        "people": len(people),
        "sizes_px": SIZES,
        "sizes_of_changed_px": FEW_SIZES,
        "worst_median_error_percent": float(medians.max()),
        "mean_median_error_percent": round(float(medians.mean()), 2),
        "share_of_cells_above_15_percent": round(float((medians > 15).mean()), 4),
        "at_full_size_px": quantiles(effective_face_px(people)),
        "rows": rows,
        "changed": changed,
        "lfw": on_lfw(lfw) if lfw else [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {_listed(value)}" for name, value in found.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    draw(rows, out.with_suffix(".png"))
    print(out.read_text())


def _listed(value: Any) -> str:
    """Return JSON with a line for each row of a table."""
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
    return json.dumps(value)


CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "half as bright": ({}, lambda crops: (crops * 0.5).to(torch.uint8)),
    "low contrast": ({}, lambda crops: (100 + crops * 0.25).to(torch.uint8)),
    "noise of 2": ({"noise_sigma": 2.0}, None),
    "noise of 5": ({"noise_sigma": 5.0}, None),
    "webp=75": ({"codec": "webp", "quality": 75}, None),
    "gray": ({}, lambda crops: crops.float().mean(3, keepdim=True).expand(-1, -1, -1, 3).to(torch.uint8)),
    "mirrored": ({}, lambda crops: crops.flip(2)),
}


def errors(people: Tensor, hows: list[Degradation], change: Any = None) -> dict[str, list[float]]:
    """Return errors of the estimate for each degradation, in percent of the true size."""
    crops = change(people) if change else people
    seen = np.stack([effective_face_px(degrade(crops, how)).numpy() for how in hows])
    error = 100 * (seen / np.array([[how.face_px] for how in hows]) - 1)
    return {
        "median_error_percent": np.median(np.abs(error), axis=1).round(1).tolist(),
        "p90_error_percent": np.quantile(np.abs(error), 0.9, axis=1).round(1).tolist(),
        "bias_percent": np.median(error, axis=1).round(1).tolist(),
    }


def quantiles(values: Tensor) -> dict[str, float]:
    return {f"p{p}": round(float(np.quantile(values.numpy(), p / 100)), 1) for p in (5, 25, 50, 75, 95)}


def on_lfw(path: Path) -> list[dict[str, Any]]:
    """Return what is estimated of crops whose faces had about 76 px in the photos, as they are and shrunk."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))[::40]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    crops = torch.from_numpy(np.stack(pictures))
    found: list[dict[str, Any]] = [
        {"images": len(crops), "kind": "as they are", "estimate_px": quantiles(effective_face_px(crops))}
    ]
    for kind in ("pil-bicubic", "cv2-area", "cv2-linear", "torch-nearest"):
        for codec, file in CODECS.items():
            hows = [Degradation(size, down=kind, **file) for size in FEW_SIZES[:-1]]
            found.append({"kind": kind, "codec": codec, "sizes_px": FEW_SIZES[:-1], **errors(crops, hows)})
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind, _ in KINDS]
    figure, axes = pyplot.subplots(len(CODECS), 1, figsize=(12, 13), sharex=True, layout="constrained")
    for axis, codec in zip(axes, CODECS, strict=True):
        cells = np.array([row["median_error_percent"] for row in rows if row["codec"] == codec])
        shown = axis.imshow(cells, cmap="viridis", vmin=0, vmax=20, aspect="auto")
        for (line, column), value in np.ndenumerate(cells):
            if value > 15:
                axis.text(column, line, f"{value:.0f}", ha="center", va="center", color="r", fontsize=7)
        axis.set_xticks(range(0, len(SIZES), 4), [str(size) for size in SIZES[::4]])
        axis.set_yticks(range(len(kinds)), kinds)
        axis.set_title(f"codec on the small picture: {codec}")
    axes[-1].set_xlabel("true size, face_px")
    figure.colorbar(shown, ax=axes, label="median error of the estimate, % (numbers where above 15)")
    figure.suptitle("Effective resolution: median error on people that were not fitted (London Set)")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
