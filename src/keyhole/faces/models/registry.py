"""Known public models: where they are, what proves that a file is whole, under which terms, and what they take.

A checksum or address stands here only when it was read at its source or computed from the file. Where it is unknown, it
is ``None``: such a file is fetched by hand and named by its path.
"""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keyhole.errors import DataError, SettingError, WeightsError, unknown_name
from keyhole.faces.models.preparation import ARCFACE_112, Licenses, Preparation
from keyhole.faces.models.vggface2 import MEAN_BGR, VGGFACE2_NETWORKS
from keyhole.files import sha256, write_bytes
from keyhole.progress import Progress, silent

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class KnownFile:
    """One file of a model; what is not known for sure is ``None``."""

    name: str
    sha256: str | None
    size_bytes: int | None
    address: str | None


@dataclass(frozen=True)
class KnownModel:
    """A public model.

    Args:
        page: Where its authors describe it.
        forms: Ways to have it, each a tuple of files; the first is the one that is downloaded. The first file of a form
            is the one to load.
        licenses: Terms of code, weights and training data.
        preparation: What it takes; ``None`` for a detector.
        embedding_size: Numbers in an embedding; 0 for a detector.
        network: Name of our network definition for files that hold weights alone.
        note: What a user should know of the entry itself.
    """

    page: str
    forms: tuple[tuple[KnownFile, ...], ...]
    licenses: Licenses
    preparation: Preparation | None
    embedding_size: int
    network: str | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        """``embedder`` or ``detector``."""
        return "detector" if self.preparation is None else "embedder"


def known_model(name: str) -> KnownModel:
    """Return a known model.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in KNOWN_MODELS:
        raise unknown_name("face model", name, KNOWN_MODELS)
    return KNOWN_MODELS[name]


def known_by_sha256(digest: str) -> tuple[str, tuple[KnownFile, ...]] | None:
    """Return the name and the files of the known model whose main file has this SHA-256, or ``None``."""
    for name, model in KNOWN_MODELS.items():
        for form in model.forms:
            if form[0].sha256 == digest:
                return name, form
    return None


def models_folder() -> Path:
    """Return where downloaded models lie: ``$KEYHOLE_MODELS``, else ``keyhole/models`` in the user's cache."""
    if chosen := os.environ.get("KEYHOLE_MODELS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "keyhole" / "models"


def notice(name: str) -> str:
    """Return what a person should read before a download: the source, the files and all three licenses, as lines.

    Raises:
        UnknownNameError: There is no such model.

    Example:
        >>> print(notice("yunet-2023mar").splitlines()[0])
        yunet-2023mar (detector), https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet
    """
    model = known_model(name)
    lines = [f"{name} ({model.kind}), {model.page}"]
    for file in model.forms[0]:
        size = f"{file.size_bytes:,} bytes" if file.size_bytes else "size unknown"
        lines.append(f"  file: {file.name}, {size}, SHA-256 {file.sha256 or 'unknown'}")
    terms = model.licenses
    lines += [f"  code: {terms.code}", f"  weights: {terms.weights}", f"  training data: {terms.data}"]
    return "\n".join([*lines, *([f"  note: {model.note}"] if model.note else [])])


def download(
    name: str, folder: Path | None = None, *, accept: Callable[[str], bool], progress: Progress = silent
) -> Path:
    """Return the main file of a known model, fetched and checked.

    A file that is there already and whole is not fetched again. Each file is written whole or not at all.

    Args:
        name: One of ``KNOWN_MODELS``.
        folder: Where it shall lie; ``None`` for :func:`models_folder`.
        accept: Is shown :func:`notice` first; nothing is fetched unless it returns true.
        progress: Shows how far it is, in quarters of a MiB.

    Raises:
        UnknownNameError: There is no such model.
        SettingError: No address or checksum is known, or the terms were not accepted.
        DataError: The server cannot be reached or gives another file.
        RunError: The folder cannot be written.
    """
    model = known_model(name)
    folder = folder or models_folder()
    unknown = [file.name for file in model.forms[0] if file.address is None or file.sha256 is None]
    if unknown:
        raise SettingError(
            f"No lasting address of {', '.join(unknown)} is known. Fetch it from {model.page} and name it by its path."
        )
    waiting = [file for file in model.forms[0] if not _is_whole(folder / file.name, file)]
    if waiting and not accept(notice(name)):
        raise SettingError(f"{name} was not downloaded: its terms were not accepted.")
    for file in waiting:
        _fetch(file, folder / file.name, progress=progress)
    return folder / model.forms[0][0].name


def _is_whole(path: Path, file: KnownFile) -> bool:
    return path.is_file() and sha256(path) == file.sha256


def _fetch(file: KnownFile, path: Path, *, progress: Progress) -> None:
    def save(target: Path) -> None:
        digest = hashlib.sha256()
        chunks = _chunks(file)
        total = math.ceil((file.size_bytes or 0) / CHUNK_BYTES) or 1
        with target.open("wb") as out:
            for chunk in progress(chunks, label=file.name, total=total):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise DataError(
                f"{file.address} gave SHA-256 {digest.hexdigest()}; expected {file.sha256}. "
                "Nothing was kept: the download broke off, or the file was replaced."
            )

    write_bytes(path, save)


def _chunks(file: KnownFile) -> Iterator[bytes]:
    address = file.address or ""
    if not address.startswith(("https://", "http://")):
        raise SettingError(f"{address!r} is no address of the web; expected https://.")
    left = file.size_bytes
    request = urllib.request.Request(address, headers={"User-Agent": "keyhole"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                if left is not None and (left := left - len(chunk)) < 0:
                    raise DataError(f"{address} is longer than {file.size_bytes} bytes. Nothing was kept.")
                yield chunk
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or error
        raise DataError(f"Cannot fetch {address}: {reason}. Try again, or name a file by its path.") from error


def installed(name: str, folder: Path | None = None) -> Path:
    """Return the main file of a known model in a folder, checked against its checksums.

    Raises:
        UnknownNameError: There is no such model.
        WeightsError: A file is missing or is not the known one.
    """
    model = known_model(name)
    folder = folder or models_folder()
    found = [form for form in model.forms if (folder / form[0].name).is_file()]
    if not found:
        names = " or ".join(form[0].name for form in model.forms)
        raise WeightsError(f"{name} is not in {folder} (no {names}). Download it first, or name a file by its path.")
    for file in found[0]:
        check_file(folder / file.name, file)
    return folder / found[0][0].name


def check_file(path: Path, file: KnownFile) -> None:
    """Check that a file is the known one.

    Raises:
        WeightsError: It is missing, or its SHA-256 is another.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing; expected it beside the model. Download both files together.")
    digest = sha256(path)
    if file.sha256 is not None and digest != file.sha256:
        raise WeightsError(f"{path} has SHA-256 {digest}; expected {file.sha256}. Download it again.")


_ZOO = "https://github.com/opencv/opencv_zoo"
_ZOO_RAW = f"{_ZOO}/raw/47534e27c9851bb1128ccc0102f1145e27f23f98/models"
_OMZ = "https://github.com/openvinotoolkit/open_model_zoo/tree/master/models/intel/face-reidentification-retail-0095"
_OMZ_FILES = (
    "https://storage.openvinotoolkit.org/repositories/open_model_zoo/2023.0/models_bin/1/"
    "face-reidentification-retail-0095/FP16"
)
_HALVES = (127.5, 127.5, 127.5)

_RETAIL = KnownModel(
    page=_OMZ,
    forms=(
        (
            KnownFile(
                "face-reidentification-retail-0095.xml",
                "ce53d2c9c08c0bd1c1660fb8a5b6d0e3e4ec19eb92f1036d2d83a85e83082dce",
                350_427,
                f"{_OMZ_FILES}/face-reidentification-retail-0095.xml",
            ),
            KnownFile(
                "face-reidentification-retail-0095.bin",
                "241229ca3d206321868d46ce74a3c0b06c49cea58db7dc70b2e842ff287545d1",
                2_213_628,
                f"{_OMZ_FILES}/face-reidentification-retail-0095.bin",
            ),
        ),
        (
            KnownFile(
                "face-reidentification-retail-0095.onnx",
                "bc7a51dffa4cdd74fc6f26177ee5945ebaf22f882f548754a55ff7f8d8cfbda9",
                4_459_224,
                None,
            ),
        ),
    ),
    licenses=Licenses("Apache-2.0", "Apache-2.0", "not disclosed by Intel"),
    # the documentation's relative places times the side; the scaling of gray levels is part of the network
    preparation=Preparation(
        128,
        "bgr",
        template=tuple(
            (128 * x, 128 * y)
            for x, y in (
                (0.31556875, 0.4615741071428571),
                (0.6826229166666667, 0.4615741071428571),
                (0.5002625, 0.6405053571428571),
                (0.349471875, 0.8246919642857142),
                (0.6534364583333333, 0.8246919642857142),
            )
        ),
    ),
    embedding_size=256,
)


def _edgeface(name: str, repository: str, file: KnownFile) -> KnownModel:
    return KnownModel(
        page=f"https://huggingface.co/Idiap/{repository}",
        forms=((file,),),
        licenses=Licenses(
            "BSD-3-Clause (otroshi/edgeface)",
            "CC BY-NC-SA 4.0 (model card): not for commercial use",
            "WebFace260M, subsets of 12M and 4M: treat as research only",
        ),
        preparation=Preparation(112, "rgb", _HALVES, _HALVES, template=ARCFACE_112),
        embedding_size=512,
        network=name,
        note="needs timm; never run with its own weights by the authors of Keyhole",
    )


def _idiap(repository: str, commit: str, name: str) -> str:
    return f"https://huggingface.co/Idiap/{repository}/resolve/{commit}/{name}"


_SE256 = KnownFile(
    "senet50_256.pth",
    "3a3c7e03fcd9ccfdbf6eeab19186242ba1cf2b19f95d95511280e584dbc3a7de",
    106_517_252,
    "https://media.githubusercontent.com/media/stresearch/xfr/5a74f36ac0531a2578b079fee92d000176cf4ec5/"
    "models/senet50_256_pytorch/senet50_256.pth",
)


def _vggface2(name: str, size: int) -> KnownModel:
    known = name == "vggface2-se-resnet50-256"
    return KnownModel(
        page="https://github.com/ox-vgg/vgg_face2",
        forms=((_SE256 if known else KnownFile(f"{name}.pth", None, None, None),),),
        licenses=Licenses(
            "Apache-2.0 (definition of Keyhole)",
            "not stated with the models",
            "MS-Celeb-1M (withdrawn by Microsoft), VGGFace2 (a mirror says CC BY-NC 4.0): treat as research only",
        ),
        preparation=Preparation(224, "bgr", MEAN_BGR, margin=0.3),
        embedding_size=size,
        network=name,
        note="the file as converted with MMdnn by the authors of VGGFace2; never run with its own weights here"
        if known
        else "weights by path only: .pth, .pkl, .npy or .npz with the names of torchvision or of the Caffe models",
    )


# name -> model
KNOWN_MODELS: dict[str, KnownModel] = {
    "face-reidentification-retail-0095": _RETAIL,
    "opencv-sface": KnownModel(
        page=f"{_ZOO}/tree/main/models/face_recognition_sface",
        forms=(
            (
                KnownFile(
                    "face_recognition_sface_2021dec.onnx",
                    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
                    38_696_353,
                    f"{_ZOO_RAW}/face_recognition_sface/face_recognition_sface_2021dec.onnx",
                ),
            ),
        ),
        licenses=Licenses("Apache-2.0", "Apache-2.0 (OpenCV Zoo)", "not stated by OpenCV Zoo"),
        preparation=Preparation(112, "rgb", template=ARCFACE_112),
        embedding_size=128,
        note="prepared as OpenCV does; never run by the authors of Keyhole",
    ),
    "mobilefacenet": KnownModel(
        page="https://github.com/foamliu/MobileFaceNet",
        forms=(
            (
                KnownFile(
                    "mobilefacenet.pt",
                    "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
                    4_135_271,
                    "https://github.com/foamliu/MobileFaceNet/raw/a6cc9032a659b615f477833e1a70b5e7931bcccc/"
                    "weights/mobilefacenet.pt",
                ),
            ),
        ),
        licenses=Licenses(
            "Apache-2.0 (definition of Keyhole)",
            "Apache-2.0 (its repository)",
            "refined MS-Celeb-1M, withdrawn by Microsoft: treat as research only",
        ),
        preparation=Preparation(112, "rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), template=ARCFACE_112),
        embedding_size=128,
        network="mobilefacenet",
    ),
    "edgeface-xxs": _edgeface(
        "edgeface-xxs",
        "EdgeFace-XXS",
        KnownFile(
            "edgeface_xxs.pt",
            "5b6bac48ea660aca185be8a8ac934db2093b51259461721da53c468230bc24c9",
            5_032_125,
            _idiap("EdgeFace-XXS", "e710f4647ac4dde011c13f82224539d24800ab92", "edgeface_xxs.pt"),
        ),
    ),
    "edgeface-xs": _edgeface(
        "edgeface-xs",
        "EdgeFace-XS-GAMMA",
        KnownFile(
            "edgeface_xs_gamma_06.pt",
            "5ae7504cd9aee0a5d52c2115fd2eb66b0985dd1730f40134b5854e0cb658ce16",
            7_170_425,
            _idiap("EdgeFace-XS-GAMMA", "735c1b59bdc798260e56f12533fddfe8a8c4c568", "edgeface_xs_gamma_06.pt"),
        ),
    ),
    "edgeface-s": _edgeface(
        "edgeface-s",
        "EdgeFace-S-GAMMA",
        KnownFile(
            "edgeface_s_gamma_05.pt",
            "dc59abda2e8580399fd115a1eeb07e1f21156196db604b884407bcf0f17efb07",
            14_695_737,
            _idiap("EdgeFace-S-GAMMA", "a1c171036159e94bd4c766088370a37d0899d31f", "edgeface_s_gamma_05.pt"),
        ),
    ),
    "auraface": KnownModel(
        page="https://huggingface.co/fal/AuraFace-v1",
        forms=(
            (
                KnownFile(
                    "glintr100.onnx",
                    "a7933ea5330113b01c9b60351d8f4c33003f145d8470ac5f0e52ee2effe25c60",
                    260_694_151,
                    "https://huggingface.co/fal/AuraFace-v1/resolve/af6d057c9b0ec4071d4c49c80e3539258798b609/glintr100.onnx",
                ),
            ),
        ),
        licenses=Licenses("Apache-2.0", "Apache-2.0 (model card)", "not named by its publisher"),
        preparation=Preparation(112, "rgb", _HALVES, _HALVES, template=ARCFACE_112),
        embedding_size=512,
        note="other files of its repository are those of InsightFace; never run by the authors of Keyhole",
    ),
    **{name: _vggface2(name, size) for name, (_, size) in VGGFACE2_NETWORKS.items()},
    "yunet-2023mar": KnownModel(
        page=f"{_ZOO}/tree/main/models/face_detection_yunet",
        forms=(
            (
                KnownFile(
                    "face_detection_yunet_2023mar.onnx",
                    "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
                    232_589,
                    f"{_ZOO_RAW}/face_detection_yunet/face_detection_yunet_2023mar.onnx",
                ),
            ),
        ),
        licenses=Licenses("MIT", "MIT (OpenCV Zoo)", "WIDER FACE"),
        preparation=None,
        embedding_size=0,
    ),
    "yunet-n-640": KnownModel(
        page="https://github.com/ShiqiYu/libfacedetection.train",
        forms=(
            (
                KnownFile(
                    "yunet_n_640_640.onnx",
                    "25a606a145a5b6d7271ae138fbd00eba91dad8b83222ae3f2c7ecd0f4a7b0e31",
                    317_466,
                    "https://github.com/ShiqiYu/libfacedetection.train/raw/"
                    "0047ac24afb1a50a0c6105001c89d1b5b805dbf1/onnx/yunet_n_640_640.onnx",
                ),
            ),
        ),
        licenses=Licenses("Apache-2.0", "Apache-2.0 (its repository)", "WIDER FACE"),
        preparation=None,
        embedding_size=0,
    ),
}
