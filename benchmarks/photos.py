"""Photos to embeddings: detect at 640, align, embed, against the obvious loop on the same cores.

    python benchmarks/photos.py YUNET.onnx EMBEDDING.onnx PHOTOS.zip [--side 640] [--runtime openvino]

The obvious loop is OpenCV's detector, its ``warpAffine``, and ONNX Runtime with its own settings, one photo at a time.
Both get decoded photos of the same size and the same network; the rounds alternate, so that a busy machine slows
both alike. ``--runtime`` is what computes the embedding on our side. The network takes 128 x 128 BGR, 0 to 255, as
face-reidentification-retail-0095 does. Needs opencv-python-headless beside Keyhole's own packages.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image

from keyhole.faces.images.alignment import align, similarity_transform
from keyhole.faces.images.detection import Detector, choose
from keyhole.faces.images.photos import Photo, decode_photo
from keyhole.faces.images.threads import cores, in_order

TEMPLATE_128 = 128 * np.array(
    [[0.3156, 0.4616], [0.6827, 0.4616], [0.5003, 0.6405], [0.3495, 0.8247], [0.6534, 0.8247]]
)

Embed = Callable[[Photo], np.ndarray | None]


def obvious(detector_path: Path, model_path: Path) -> Embed:
    network = onnxruntime.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    name = network.get_inputs()[0].name
    detector = cv2.FaceDetectorYN.create(str(detector_path), "", (640, 640), 0.6)

    def embed(photo: Photo) -> np.ndarray | None:
        picture = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
        share = min(1.0, 640 / max(picture.shape))
        small = cv2.resize(picture, None, fx=share, fy=share) if share < 1 else picture
        detector.setInputSize((small.shape[1], small.shape[0]))
        faces = detector.detect(small)[1]
        if faces is None:
            return None
        best = max(faces, key=lambda face: face[2] * face[3])
        landmarks = best[4:14].reshape(5, 2).astype(np.float64) / share
        crop = cv2.warpAffine(picture, similarity_transform(landmarks, TEMPLATE_128), (128, 128))
        blob = crop.transpose(2, 0, 1)[None].astype(np.float32)
        return network.run(None, {name: blob})[0].ravel()

    return embed


def one_thread(model_path: Path, runtime: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network as a function that computes in the thread that calls it."""
    if runtime == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": cores(), "NUM_STREAMS": cores(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(model_path, "CPU", settings)
        return lambda blob: compiled.create_infer_request().infer([blob])[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    network = onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
    name = network.get_inputs()[0].name
    return lambda blob: network.run(None, {name: blob})[0]


def ours(detector_path: Path, model_path: Path, runtime: str) -> Embed:
    network = one_thread(model_path, runtime)
    detector = Detector(detector_path)

    def embed(photo: Photo) -> np.ndarray | None:
        face = choose(detector.detect(photo))
        if face is None:
            return None
        crop = align(photo, face.landmarks, template=TEMPLATE_128, size_px=128)
        return network(crop[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32)).ravel()

    return embed


def photos_of(path: Path, count: int, side: int) -> list[Photo]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png", ".webp")))
        names = [name for name in names if "portrait" in name] or names
        photos = [decode_photo(archive.read(name), name=name) for name in names[:count]]
    return [np.array(Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC)) for photo in photos]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("detector", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    photos = photos_of(options.photos, options.count, options.side)
    loop, work = obvious(options.detector, options.model), ours(options.detector, options.model, options.runtime)
    seconds: dict[str, list[float]] = {"obvious loop": [], "keyhole": []}
    for _ in range(options.rounds):
        started = time.perf_counter()
        theirs = [loop(photo) for photo in photos]
        between = time.perf_counter()
        own = list(in_order(work, photos))
        seconds["obvious loop"].append(between - started)
        seconds["keyhole"].append(time.perf_counter() - between)
    for name, taken in seconds.items():
        rates = [len(photos) / each for each in taken]
        print(f"{name}: {statistics.median(rates):.1f} photos per second (best {max(rates):.1f})")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"ratio of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    pairs = [(a, b) for a, b in zip(theirs, own, strict=True) if a is not None and b is not None]
    alike = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    print(f"{len(pairs)} of {len(photos)} photos with a face; least cosine between both {min(alike):.4f}")


if __name__ == "__main__":
    main()
