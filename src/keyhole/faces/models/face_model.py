"""Face models: crops in, unit embeddings out, with all that must be known to use one right."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from keyhole.errors import DivergenceError, KeyholeError, SettingError, WeightsError, reason_of, unknown_name
from keyhole.faces.models.compact import COMPACT, load_compact
from keyhole.faces.models.description import Description, parse_description, read_description
from keyhole.faces.models.edgeface import EDGEFACES, load_edgeface
from keyhole.faces.models.mobilefacenet import load_mobilefacenet
from keyhole.faces.models.openvino_ir import IrModule, rebuild
from keyhole.faces.models.preparation import Licenses, Preparation, prepare
from keyhole.faces.models.registry import KNOWN_MODELS, check_file, installed, known_by_sha256
from keyhole.faces.models.runtimes import (
    Network,
    OnnxNetwork,
    OpenVinoNetwork,
    TorchNetwork,
    import_module,
    module_source,
    run_padded,
)
from keyhole.faces.models.vggface2 import VGGFACE2_NETWORKS, load_vggface2
from keyhole.faces.models.weights import READERS, read_weights
from keyhole.files import halved_state, read_tensors, sha256, write_tensors
from keyhole.runtime import choose_device

SHIPPED = "keyhole-face"
"""The name of the face model that comes with the package, and needs no download."""


@dataclass(frozen=True)
class FaceModel:
    """A network that embeds faces.

    Args:
        name: What reports call it.
        preparation: What its crops are.
        embedding_size: Numbers in an embedding.
        licenses: Terms of code, weights and training data.
        sha256: Of the model's main file; ``None`` where there is no file.
        fingerprint: Equal for two models only if network, weights and preparation are. Embeddings of different
            fingerprints must not be compared.
        network: Runs the images.
    """

    name: str
    preparation: Preparation
    embedding_size: int
    licenses: Licenses
    sha256: str | None
    fingerprint: str
    network: Network = field(repr=False, compare=False)

    def embed(self, crops: UInt8[Tensor, "n s s 3"]) -> Float[Tensor, "n d"]:
        """Return the embeddings of crops, each of length 1; the dot product of two is their score, from -1 to 1.

        Crops are run in batches; to rounding, an embedding does not depend on the others. No crops give no rows.

        Args:
            crops: RGB bytes in the model's own template and size.

        Raises:
            ShapeError: The crops are of another size or type, or the network gives no rows.
            SettingError: The network gives another number of values than ``embedding_size``.
            DivergenceError: An embedding has NaN or infinity, or is all zeros.
        """
        batch = self.network.chunk
        parts = []
        for start in range(0, len(crops), batch):
            images = prepare(crops[start : start + batch], self.preparation)
            parts.append(self._unit(run_padded(self.network, images), start, len(crops)))
        if not parts:
            prepare(crops, self.preparation)
            return torch.zeros(0, self.embedding_size)
        return torch.cat(parts)

    def _unit(self, raw: Float[Tensor, "n d"], start: int, total: int) -> Float[Tensor, "n d"]:
        if raw.shape[1] != self.embedding_size:
            raise SettingError(
                f"{self.name} gave {raw.shape[1]} numbers for a face; its description says {self.embedding_size}. "
                "Correct embedding_size, or name another output."
            )
        finite = torch.isfinite(raw).all(dim=1)
        lengths = torch.linalg.vector_norm(raw.double(), dim=1)
        for bad, what in ((~finite, "NaN or infinity"), (finite & (lengths < 1e-12), "all zeros")):
            if bad.any():
                place = start + int(bad.nonzero()[0])
                raise DivergenceError(
                    f"{self.name} gave {what} for face {place} of {total} (from 0); expected numbers. "
                    "Look at that crop, or at the model's mean and std."
                )
        unit: Tensor = raw / lengths.unsqueeze(1)
        return unit.float()


def load_face_model(
    name_or_path: str | Path,
    *,
    folder: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    runtime: str = "auto",
) -> FaceModel:
    """Return a face model ready to embed, of any of these forms.

    - ``keyhole-face``, which comes with the package;
    - the name of a known model that was downloaded (see :mod:`keyhole.faces.models.registry`);
    - a model file (``.onnx``, OpenVINO's ``.xml`` with the ``.bin`` beside it, or weights of a known network) whose
      SHA-256 is known: it needs no description;
    - a ``.safetensors`` file of :func:`save_face_model`, such as a student: it brings its description along;
    - a ``.toml`` file that describes any model (see :mod:`keyhole.faces.models.description`);
    - ``package.module:function``, which returns a ``torch.nn.Module`` with a dict ``description`` of the same keys.

    Args:
        name_or_path: The model.
        folder: Where downloaded models lie; ``None`` for the user's cache.
        device: Where PyTorch modules run; files of ONNX and OpenVINO run on the CPU.
        threads: Threads on the CPU; ``None`` for one a core.
        runtime: For files of ONNX: ``onnxruntime`` (also ``auto``) or ``openvino``, which may be several times as fast.

    Raises:
        UnknownNameError: There is no such model, runtime, network, or key of a description.
        SettingError: A setting is wrong, a file is not described, or a library is missing.
        WeightsError: A file is missing, damaged, or another one than its checksum says.
        DataError: The description is not TOML.
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    text, path, where = str(name_or_path), Path(name_or_path), _Where(device, threads, runtime)
    if text == SHIPPED:
        text, path = str(shipped()), shipped()
    if text in KNOWN_MODELS:
        return _load(_described_by_registry(text, installed(text, folder)), where)
    if path.suffix == ".toml":
        return _load(read_description(path), where)
    if path.suffix == ".safetensors" and (found := _load_itself(path, where)) is not None:
        return found
    if path.suffix in (".onnx", ".xml", *READERS):
        return _load(_described_by_checksum(path), where)
    if re.fullmatch(r"[\w.]+:\w+", text):
        return _load_module(text, where)
    raise unknown_name(
        "face model",
        text,
        [SHIPPED, *KNOWN_MODELS],
        see="Or name a file (.onnx, .xml, .toml) or package.module:function.",
    )


def shipped() -> Path:
    """Return the file of the face model that comes with the package."""
    return Path(__file__).with_name(f"{SHIPPED}.safetensors")


def shipped_notice() -> str:
    """Return what a person should know of the package's face model, as :func:`keyhole.faces.models.registry.notice`."""
    path = shipped()
    stored = read_tensors(path)[1]["licenses"]
    lines = [f"{SHIPPED} (embedder), comes with the package, needs no download"]
    lines.append(f"  file: {path.name}, {path.stat().st_size:,} bytes, SHA-256 {sha256(path)}")
    lines += [f"  code: {stored['code']}", f"  weights: {stored['weights']}", f"  training data: {stored['data']}"]
    return "\n".join(lines)


def save_face_model(
    path: Path,
    module: nn.Module,
    network: str,
    preparation: Preparation,
    *,
    licenses: Licenses,
    about: Mapping[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write weights with all that must be known to use them right, so that :func:`load_face_model` takes the file.

    Args:
        path: A ``.safetensors`` file.
        module: The network.
        network: Its name among :data:`NETWORKS`: a file never chooses the code that runs beyond those. The graph of an
            OpenVINO IR has no name; it is kept with its weights.
        preparation: What its crops are.
        licenses: Of code, weights and training data.
        about: More JSON values to keep with it, such as the recipe.
        half: Write fp16, half the size, where that loses no more than rounding; it runs in fp32 all the same.

    Raises:
        UnknownNameError: There is no such network.
        RunError: The file cannot be written; an older one is untouched.
    """
    graph = module.plan() if isinstance(module, IrModule) else None
    if graph is None and network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    header = {
        "kind": _KIND,
        "network": network if graph is None else None,
        "graph": graph,
        "preparation": dataclasses.asdict(preparation),
        "licenses": dataclasses.asdict(licenses),
        "about": dict(about or {}),
    }
    write_tensors(path, halved_state(module) if half else dict(module.state_dict()), header)


def architecture_of(path: Path) -> str | None:
    """Return the name among :data:`NETWORKS` that a file of :func:`save_face_model` says, else None."""
    if not is_face_model(path):
        return None
    name = read_tensors(path)[1].get("network")
    return name if isinstance(name, str) else None


def is_face_model(path: Path) -> bool:
    """Return whether a file is one of :func:`save_face_model`; raises like :func:`keyhole.files.read_tensors`."""
    return path.suffix == ".safetensors" and path.is_file() and read_tensors(path)[1].get("kind") == _KIND


def _load_itself(path: Path, where: _Where) -> FaceModel | None:
    """Return the model of a file of :func:`save_face_model`; None for other files."""
    tensors, header = read_tensors(path)
    if header.get("kind") != _KIND:
        return None
    try:
        table = {key: value for key, value in header["preparation"].items() if value is not None}
        table |= {"file": path.name, "licenses": header["licenses"]}
        described = parse_description(table, where=path.name, folder=path.parent, name=path.stem)
        network, graph = header["network"], header["graph"]
        module = rebuild(graph, tensors) if graph is not None else NETWORKS[network](tensors)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        message = f"{path} does not describe its face model. Write it anew, or describe it in a .toml file."
        raise WeightsError(message) from error
    source = network if graph is None else json.dumps(graph, sort_keys=True)
    return _from_module(module, described, where, source=source, digest=sha256(path))


@dataclass(frozen=True)
class _Where:
    device: str
    threads: int | None
    runtime: str


def _described_by_registry(name: str, path: Path) -> Description:
    known = KNOWN_MODELS[name]
    if known.preparation is None:
        raise SettingError(f"{name} is a detector; expected a model that embeds faces.")
    return Description(
        name=name,
        file=path,
        module=None,
        network=known.network,
        preparation=known.preparation,
        licenses=known.licenses,
        embedding_size=known.embedding_size,
    )


def _described_by_checksum(path: Path) -> Description:
    if not path.is_file():
        raise WeightsError(f"Cannot read {path}: no such file. Name a model file, or download one.")
    digest = sha256(path)
    found = known_by_sha256(digest)
    if found is None and (beside := path.with_name(f"{path.name}.toml")).is_file():
        return read_description(beside)  # as 'keyhole export' writes it
    if found is None:
        raise SettingError(
            f"{path} is no known model (SHA-256 {digest}). Describe it in a .toml file (file, size_px, color, mean, "
            "std, template or margin), or download it again if it should be known."
        )
    name, form = found
    for file in form[1:]:
        check_file(path.with_suffix(Path(file.name).suffix), file)
    return _described_by_registry(name, path)


def _load_module(text: str, where: _Where) -> FaceModel:
    module = import_module(text)
    table = getattr(module, "description", None)
    if not isinstance(table, Mapping):
        raise SettingError(
            f"{text} has no description; give the module a dict of that name (size_px, mean, ...), "
            f'or write a .toml file with module = "{text}".'
        )
    described = parse_description({**table, "module": text}, where=text, folder=Path(), name=text)
    return _from_module(module, described, where, source=module_source(module))


def _load(described: Description, where: _Where) -> FaceModel:
    if described.module is not None:
        module = import_module(described.module)
        return _from_module(module, described, where, source=module_source(module))
    path = described.file
    if path is None or not path.is_file():
        raise WeightsError(f"Cannot read {path}: no such file. Name a model file, or download one.")
    digest = sha256(path)
    if described.sha256 not in (None, digest):
        raise WeightsError(f"{path} has SHA-256 {digest}; its description says {described.sha256}. Copy it again.")
    if path.suffix in (".onnx", ".xml"):
        run = OpenVinoNetwork if path.suffix == ".xml" else RUNTIMES[where.runtime]
        size_px = described.preparation.size_px
        network = run(path, size_px=size_px, output=described.output, threads=where.threads)
        return _finished(network, described, digest=digest, parts=[described.output or "", digest, *_beside(path)])
    if path.suffix not in READERS:
        raise unknown_name("form of model file", path.suffix, (".onnx", ".xml", *READERS))
    if described.network is None:
        raise SettingError(f"{path} holds weights alone. Say network = one of {', '.join(NETWORKS)}.")
    module = NETWORKS[described.network](read_weights(path))
    return _from_module(module, described, where, source=described.network, digest=digest)


def _from_module(
    module: nn.Module, described: Description, where: _Where, *, source: str, digest: str | None = None
) -> FaceModel:
    parts = [source, *_tensor_digests(module)]
    network = TorchNetwork(module, device=choose_device(where.device), threads=where.threads)
    return _finished(network, described, digest=digest, parts=parts)


def _finished(network: Network, described: Description, *, digest: str | None, parts: list[str]) -> FaceModel:
    """Return the model after it has run once: what it takes and gives is then known to be as described."""
    side, count = described.preparation.size_px, min(2, network.chunk)
    gray = torch.full((count, side, side, 3), 127, dtype=torch.uint8)
    try:
        size = run_padded(network, prepare(gray, described.preparation)).shape[1]
    except KeyholeError:
        raise
    except Exception as error:  # each runtime has its own types
        reason = reason_of(error)
        raise SettingError(f"{described.name} cannot run {count} images of {side} x {side} px ({reason}).") from error
    if described.embedding_size not in (None, size):
        raise SettingError(
            f"{described.name} gives {size} numbers for a face; its description says {described.embedding_size}. "
            "Correct embedding_size, or name another output."
        )
    how = json.dumps(dataclasses.asdict(described.preparation), sort_keys=True)
    return FaceModel(
        name=described.name,
        preparation=described.preparation,
        embedding_size=size,
        licenses=described.licenses,
        sha256=digest,
        fingerprint=hashlib.sha256("\n".join([*parts, how]).encode()).hexdigest(),
        network=network,
    )


def _tensor_digests(module: nn.Module) -> list[str]:
    digests = []
    for name, tensor in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digests.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()}")
    return digests


_KIND = "keyhole face model 1"

# how ONNX names a file that holds weights: entry "location" of a tensor, then its length (seven bits a byte) and text
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]{0,4}[\x00-\x7f])")


def _beside(path: Path) -> list[str]:
    """Return the checksums of the files beside a model file that hold its weights."""
    if path.suffix == ".xml":
        weights = path.with_suffix(".bin")
        return [sha256(weights)] if weights.is_file() else []
    data = path.read_bytes()
    names = set()
    for found in _LOCATION.finditer(data):
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[1]))
        names.add(data[found.end() : found.end() + length].decode(errors="replace"))
    if lacking := [name for name in sorted(names) if not (path.parent / name).is_file()]:
        raise WeightsError(f"{path} keeps weights in {lacking[0]!r}, which is not beside it. Copy that file as well.")
    return [sha256(path.parent / name) for name in sorted(names)]


# what runs files of ONNX
RUNTIMES: dict[str, type[OnnxNetwork] | type[OpenVinoNetwork]] = {
    "auto": OnnxNetwork,
    "onnxruntime": OnnxNetwork,
    "openvino": OpenVinoNetwork,
}

# name -> function of weights to module; the name is part of the fingerprint, so a changed definition takes a new name
NETWORKS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "mobilefacenet": load_mobilefacenet,
    **{name: partial(load_edgeface, name=name) for name in EDGEFACES},
    **{name: partial(load_vggface2, name=name) for name in VGGFACE2_NETWORKS},
    **{name: partial(load_compact, name=name) for name in COMPACT},
}
