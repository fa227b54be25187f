"""The networks of VGGFace2 equal torchvision's with Caffe's strides, and load under all names in circulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import WeightsError
from keyhole.faces.models.vggface2 import VGGFACE2_NETWORKS, VggFace2Net, load_vggface2, torchvision_names
from keyhole.faces.models.weights import read_weights


def shaken(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.2), (module.running_mean, -0.2)):
                tensor.data.uniform_(low, low + 0.4, generator=generator)
            module.running_var.data.uniform_(0.8, 1.2, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return shaken(VggFace2Net(squeeze=False)).state_dict()


@pytest.fixture(scope="module")
def squeezed() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return shaken(VggFace2Net(squeeze=True, embedding_size=256)).state_dict()


@pytest.fixture
def image() -> Tensor:
    # smaller than 224, so that tests are quick; an odd size after the first convolution shows how pooling rounds
    return torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(1))


def test_it_is_torchvisions_with_the_strides_and_pooling_of_caffe(plain: dict[str, Tensor], image: Tensor) -> None:
    other = torchvision.models.resnet50()
    for stage in (other.layer2, other.layer3, other.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    other.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    other.fc = nn.Identity()
    other.load_state_dict(plain)
    with torch.inference_mode():
        found = load_vggface2(plain, "vggface2-resnet50")(image)
        assert found.shape == (1, 2048)
        torch.testing.assert_close(found, other.eval()(image), rtol=1e-4, atol=1e-4)


def test_squeeze_and_excitation_by_hand(squeezed: dict[str, Tensor], image: Tensor) -> None:
    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = squeezed[f"{name}.running_mean"], squeezed[f"{name}.running_var"]
        return functional.batch_norm(x, mean, var, squeezed[f"{name}.weight"], squeezed[f"{name}.bias"])

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return functional.conv2d(x, squeezed[f"{name}.weight"], squeezed.get(f"{name}.bias"), **how)

    with torch.inference_mode():
        network = load_vggface2(squeezed, "vggface2-se-resnet50-256")
        x = functional.relu(norm(conv(image, "conv1", stride=2, padding=3), "bn1"))
        x = functional.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        for stage, blocks in enumerate((3, 4, 6, 3), start=1):
            for block in range(blocks):
                at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
                out = functional.relu(norm(conv(x, f"{at}.conv1", stride=stride), f"{at}.bn1"))
                out = functional.relu(norm(conv(out, f"{at}.conv2", padding=1), f"{at}.bn2"))
                out = norm(conv(out, f"{at}.conv3"), f"{at}.bn3")
                weights = functional.relu(conv(functional.adaptive_avg_pool2d(out, 1), f"{at}.conv4"))
                out = out * (1 / (1 + torch.exp(-conv(weights, f"{at}.conv5"))))
                if block == 0:
                    x = norm(conv(x, f"{at}.downsample.0", stride=stride), f"{at}.downsample.1")
                x = functional.relu(out + x)
        wanted = squeezed["head.weight"].flatten(1) @ x.mean(dim=(2, 3))[0]
        torch.testing.assert_close(network(image)[0], wanted, rtol=1e-3, atol=1e-4)


def test_the_published_file_has_the_size_of_our_weights(squeezed: dict[str, Tensor]) -> None:
    # senet50_256.pth is 106,517,252 bytes: 32-bit floats, and some kilobytes of names
    floats = sum(value.numel() for value in squeezed.values() if value.is_floating_point())
    assert 0 < 106_517_252 - 4 * floats < 200_000


CAFFE = {
    "conv1": "1x1_reduce",
    "bn1": "1x1_reduce/bn",
    "conv2": "3x3",
    "bn2": "3x3/bn",
    "conv3": "1x1_increase",
    "bn3": "1x1_increase/bn",
    "conv4": "1x1_down",
    "conv5": "1x1_up",
    "downsample.0": "1x1_proj",
    "downsample.1": "1x1_proj/bn",
}


def caffe_name(name: str) -> str:
    """Return the Caffe name of ``layer1.0.conv1.weight``, an independent inverse of what is tested."""
    layer, _, value = name.rpartition(".")
    known = {"conv1": "conv1/7x7_s2", "bn1": "conv1/7x7_s2/bn", "head": "feat_extract"}
    if layer not in known:
        stage, block, part = layer.split(".", 2)
        known[layer] = f"conv{int(stage[-1]) + 1}_{int(block) + 1}/{CAFFE[part]}"
    return f"{known[layer]}.{value}"


def mmdnn(state: dict[str, Tensor], *, transpose: bool) -> dict[str, dict[str, np.ndarray]]:
    layers: dict[str, dict[str, np.ndarray]] = {"classifier": {"weights": np.zeros((8631, 2)), "bias": np.zeros(8631)}}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        layer, _, value = caffe_name(name).rpartition(".")
        norm = layer.endswith("/bn")
        kinds = {"weight": "scale" if norm else "weights", "running_mean": "mean", "running_var": "var", "bias": "bias"}
        array = tensor.numpy()
        layers.setdefault(layer, {})[kinds[value]] = (
            array.transpose(2, 3, 1, 0) if transpose and array.ndim == 4 else array
        )
    return layers


def underscored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {caffe_name(name).replace("/", "_"): value for name, value in state.items()}


def pickled(state: dict[str, Tensor], folder: Path) -> Path:
    import pickle

    arrays = {name: value.numpy() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    arrays["fc.weight"] = np.zeros((3, 2048), np.float32)
    (folder / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=4))
    return folder / "w.pkl"


def mmdnn_file(state: dict[str, Tensor], folder: Path) -> Path:
    np.save(folder / "w.npy", np.array(mmdnn(state, transpose=False), dtype=object), allow_pickle=True)
    return folder / "w.npy"


def mmdnn_intermediate(state: dict[str, Tensor], folder: Path) -> Path:
    np.save(folder / "w.npy", np.array(mmdnn(state, transpose=True), dtype=object), allow_pickle=True)
    return folder / "w.npy"


def arrays(state: dict[str, Tensor], folder: Path) -> Path:
    np.savez(folder / "w.npz", **{name: value.numpy() for name, value in underscored(state).items()})
    return folder / "w.npz"


def torch_file(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(underscored(state), folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize("form", [pickled, mmdnn_file, mmdnn_intermediate, arrays, torch_file])
def test_all_forms_give_the_same_network(
    squeezed: dict[str, Tensor], tmp_path: Path, form: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    found = load_vggface2(read_weights(form(squeezed, tmp_path)), "vggface2-se-resnet50-256").state_dict()
    for name, tensor in squeezed.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", [name for name in VGGFACE2_NETWORKS if name != "vggface2-se-resnet50-256"])
def test_another_network_is_refused_in_one_line(squeezed: dict[str, Tensor], name: str) -> None:
    with pytest.raises(WeightsError, match=r"name another network|weights of another network") as caught:
        load_vggface2(squeezed, name)
    assert "\n" not in str(caught.value)


def test_names_of_torchvision_stay_and_the_classifier_goes() -> None:
    given = {"layer1.0.conv1.weight": 1, "fc.bias": 2, "bn1.running_var": 3, "bn1.num_batches_tracked": 4}
    assert list(torchvision_names(given)) == ["layer1.0.conv1.weight", "bn1.running_var"]
    assert list(torchvision_names({"layer4.2.se_module.fc2.bias": 0})) == ["layer4.2.conv5.bias"]
