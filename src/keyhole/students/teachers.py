"""Face models as teachers: PyTorch modules whose layers can be tapped, with what they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from keyhole.errors import SettingError
from keyhole.faces.models.description import read_description
from keyhole.faces.models.face_model import SHIPPED, FaceModel, load_face_model, shipped
from keyhole.faces.models.openvino_ir import IrModule, read_ir, residual_sums
from keyhole.faces.models.preparation import Licenses, Preparation
from keyhole.faces.models.registry import KNOWN_MODELS, installed
from keyhole.faces.models.runtimes import TorchNetwork
from keyhole.models.network import InputSpec, Network
from keyhole.students.onnx_teacher import OnnxTeacher


@dataclass(frozen=True)
class FaceTeacher:
    """A face model that teaches.

    Attributes:
        network: Takes RGB crops in its own form, in [0, 1]; gives embeddings. Its layers lie under ``network``.
        preparation: Template and size of its crops.
        licenses: Of its code, weights and training data.
        sha256: Of its file.
        layers: Candidates for hints as a glob, where they are known better than by the shape of modules.
    """

    network: Network
    preparation: Preparation
    licenses: Licenses
    sha256: str | None
    layers: str | None


class Upright(nn.Module):
    """A network that takes RGB whatever its own order of colors, and gives rows."""

    def __init__(self, network: nn.Module, *, reverse: bool) -> None:
        super().__init__()
        self.network, self.reverse = network, reverse

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings (n, d) of prepared RGB images (n, 3, s, s)."""
        found: Tensor = self.network(images.flip(1) if self.reverse else images)
        return found.flatten(1)


def load_teacher(name_or_path: str | Path) -> FaceTeacher:
    """Return a face model as a teacher.

    Args:
        name_or_path: A PyTorch model of any form that :func:`keyhole.faces.models.face_model.load_face_model` takes, an
            OpenVINO IR, whose graph is read, or an ONNX file, whose intermediate results are made outputs.

    Raises:
        SettingError: The layers of the model cannot be tapped.
        KeyholeError: It cannot be read.
    """
    model = load_face_model(name_or_path, device="cpu")
    path, candidates, output = file_of(name_or_path), None, None
    if Path(name_or_path).suffix == ".toml":
        output = read_description(Path(name_or_path)).output
    if path.suffix == ".xml":
        module: nn.Module = read_ir(path)
        assert isinstance(module, IrModule)
        candidates = ",".join(f"network.{name}" for name in residual_sums(module)) or None
    elif isinstance(model.network, TorchNetwork):
        module = model.network.module
    elif path.suffix == ".onnx":
        module = OnnxTeacher(path, output=output)
        candidates = ",".join(f"network.{name}" for name in module.sums) or None
    else:
        raise SettingError(f"The layers of {name_or_path} cannot be tapped; name its .onnx, .xml or PyTorch form.")
    return _teacher(model, module, str(name_or_path), candidates)


def file_of(name_or_path: str | Path) -> Path:
    """Return the file of a model that is named by itself, by its description, or by its name in the registry."""
    path = shipped() if str(name_or_path) == SHIPPED else Path(name_or_path)
    if path.suffix == ".toml":
        return read_description(path).file or path
    return installed(str(name_or_path), None) if str(name_or_path) in KNOWN_MODELS else path


def _teacher(model: FaceModel, module: nn.Module, name: str, candidates: str | None) -> FaceTeacher:
    how = model.preparation
    network = Network(name, Upright(module, reverse=how.color == "bgr").eval(), input_of(how), model.embedding_size)
    return FaceTeacher(network, how, model.licenses, model.sha256, candidates)


def input_of(preparation: Preparation) -> InputSpec:
    """Return mean and deviation of a face model for RGB images in [0, 1]."""
    mean, std = preparation.mean, preparation.std
    if preparation.color == "bgr":
        mean, std = mean[::-1], std[::-1]
    side = preparation.size_px
    return InputSpec((side, side), tuple(value / 255 for value in mean), tuple(value / 255 for value in std))
