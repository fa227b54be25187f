"""The ResNet-50 and SE-ResNet-50 of VGGFace2, with the module names of torchvision.

They come from Caffe: the stride of a block is in its first 1x1 convolution, and the first pooling has no padding but
rounds up. A squeeze-and-excitation block is named ``conv4`` and ``conv5``, as in the converted weights in circulation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import WeightsError

MEAN_BGR = (91.4953, 103.8827, 131.0912)

# name -> (squeeze and excitation, embedding size); 2048 is the pooled feature, less is a linear layer on top of it
VGGFACE2_NETWORKS: dict[str, tuple[bool, int]] = {
    f"vggface2-{kind}resnet50{head}": (bool(kind), size)
    for kind in ("", "se-")
    for head, size in (("", 2048), ("-256", 256), ("-128", 128))
}


class VggFace2Net(nn.Module):
    """Face embedding network: (n, 3, 224, 224) -> (n, embedding_size), BGR minus ``MEAN_BGR``.

    Args:
        squeeze: Weigh the channels of each block by squeeze and excitation.
        embedding_size: 2048 for the pooled feature; otherwise a 1x1 convolution without bias on top of it.

    Reference:
        Cao et al. (2018), VGGFace2, https://arxiv.org/abs/1710.08092; He et al. (2016), https://arxiv.org/abs/1512.03385,
        Table 1; Hu et al. (2018), https://arxiv.org/abs/1709.01507, with a reduction of 16.

    Example:
        >>> net = VggFace2Net(squeeze=False).eval()
        >>> sum(p.numel() for p in net.parameters())
        23508032
    """

    def __init__(self, *, squeeze: bool, embedding_size: int = 2048) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 3, stride=1, squeeze=squeeze)
        self.layer2 = _stage(256, 128, 4, stride=2, squeeze=squeeze)
        self.layer3 = _stage(512, 256, 6, stride=2, squeeze=squeeze)
        self.layer4 = _stage(1024, 512, 3, stride=2, squeeze=squeeze)
        self.head = nn.Identity() if embedding_size == 2048 else nn.Conv2d(2048, embedding_size, 1, bias=False)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return the embeddings, not yet of unit length."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embedding: Tensor = self.head(x.mean(dim=(2, 3), keepdim=True))
        return embedding.flatten(1)


class _Block(nn.Module):
    def __init__(self, inputs: int, channels: int, *, stride: int, squeeze: bool) -> None:
        super().__init__()
        outputs = 4 * channels
        self.conv1 = nn.Conv2d(inputs, channels, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.conv4 = nn.Conv2d(outputs, outputs // 16, 1) if squeeze else None
        self.conv5 = nn.Conv2d(outputs // 16, outputs, 1) if squeeze else None
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        out = functional.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.conv4 is not None and self.conv5 is not None:
            pooled = out.mean(dim=(2, 3), keepdim=True)
            out = out * torch.sigmoid(self.conv5(functional.relu(self.conv4(pooled))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(out + shortcut, inplace=True)


def _stage(inputs: int, channels: int, blocks: int, *, stride: int, squeeze: bool) -> nn.Sequential:
    first = _Block(inputs, channels, stride=stride, squeeze=squeeze)
    others = (_Block(4 * channels, channels, stride=1, squeeze=squeeze) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


_CAFFE_PARTS = {
    "1x1_reduce": "conv1",
    "1x1_reduce_bn": "bn1",
    "3x3": "conv2",
    "3x3_bn": "bn2",
    "1x1_increase": "conv3",
    "1x1_increase_bn": "bn3",
    "1x1_down": "conv4",
    "1x1_up": "conv5",
    "1x1_proj": "downsample.0",
    "1x1_proj_bn": "downsample.1",
}
_CAFFE_LAYERS = {"conv1_7x7_s2": "conv1", "conv1_7x7_s2_bn": "bn1", "feat_extract": "head"}
_CAFFE_BLOCK = re.compile(r"conv([2-5])_(\d+)_(.+)")
_VALUES = {"weights": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_DROPPED = ("fc", "classifier", "num_batches_tracked", "prob")  # the classifier of the training identities


def torchvision_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names of torchvision, whatever of the usual names they came with.

    Known are the names of torchvision (``layer1.0.conv1.weight``), those of the Caffe models as MMdnn and other
    converters keep them (``conv2_1/1x1_reduce``, ``conv2_1_1x1_reduce_bn``), and MMdnn's names of values (``weights``,
    ``scale``, ``mean``, ``var``). The classifier of the training identities is left out.

    Example:
        >>> list(torchvision_names({"conv3_2/1x1_reduce.weights": torch.zeros(1), "classifier.bias": torch.zeros(1)}))
        ['layer2.1.conv1.weight']
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, _, value = name.rpartition(".")
        if value in _DROPPED or layer.split(".")[0].split("_")[0] in _DROPPED:
            continue
        renamed[f"{_torchvision_layer(layer.replace('/', '_'))}.{_VALUES.get(value, value)}"] = tensor
    return renamed


def _torchvision_layer(layer: str) -> str:
    if layer in _CAFFE_LAYERS:
        return _CAFFE_LAYERS[layer]
    match = _CAFFE_BLOCK.fullmatch(layer)
    if match and match[3] in _CAFFE_PARTS:
        return f"layer{int(match[1]) - 1}.{int(match[2]) - 1}.{_CAFFE_PARTS[match[3]]}"
    return layer.replace("se_module.fc1", "conv4").replace("se_module.fc2", "conv5")


def load_vggface2(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """Return a network of VGGFace2 with the given weights, in evaluation mode.

    Args:
        weights: Arrays by name, in any form that :func:`torchvision_names` knows; convolutions may be stored as
            (h, w, inputs, outputs).
        name: One of ``VGGFACE2_NETWORKS``.

    Raises:
        WeightsError: A layer is missing, too many, or of another shape.
    """
    squeeze, size = VGGFACE2_NETWORKS[name]
    with torch.device("meta"):
        network = VggFace2Net(squeeze=squeeze, embedding_size=size)
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = torchvision_names(weights)
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        kind = f"lack {len(missing)} arrays" if missing else f"have {len(extra)} arrays too many"
        raise WeightsError(
            f"The weights {kind} of {name}, such as {(missing or extra)[0]}. "
            f"Expected {'a' if squeeze else 'no'} squeeze and excitation and {size} numbers; name another network."
        )
    state = {key: _fitted(given[key], tuple(value.shape), key=key) for key, value in wanted.items()}
    counts = {key: torch.tensor(0) for key in network.state_dict() if key.endswith("num_batches_tracked")}
    network.load_state_dict({**state, **counts}, assign=True)
    return network.eval().requires_grad_(False)


def _fitted(tensor: Tensor, shape: tuple[int, ...], *, key: str) -> Tensor:
    seen = tuple(tensor.shape)
    if seen != shape and len(seen) == len(shape) == 4:
        tensor = tensor.permute(3, 2, 0, 1)
    elif seen != shape and len(seen) == 2 and len(shape) == 4:  # a linear layer in place of a 1x1 convolution
        tensor = (tensor if seen == shape[:2] else tensor.T)[:, :, None, None]
    if tuple(tensor.shape) != shape:
        raise WeightsError(f"{key} has shape {seen}; expected {shape}. These are the weights of another network.")
    return tensor.to(torch.float32).contiguous()
