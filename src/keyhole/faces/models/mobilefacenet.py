"""MobileFaceNet of Chen et al. (2018), with the module names of the weights in circulation."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import WeightsError

# expansion, channels, blocks, stride of the first block; Table 1 of the paper
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


class MobileFaceNet(nn.Module):
    """Face embedding network for 112 x 112 pixels: (n, 3, 112, 112) -> (n, 128).

    Reference:
        Chen et al. (2018), MobileFaceNets, Table 1, https://arxiv.org/abs/1804.07573; here with ReLU6 in place of PReLU
        and with batch norm on the embedding, as in the weights in circulation.

    Example:
        >>> import torch
        >>> MobileFaceNet().eval()(torch.zeros(1, 3, 112, 112)).shape
        torch.Size([1, 128])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, kernel=3, stride=2)
        self.dw_conv = _Separable(64)
        blocks: list[nn.Module] = []
        inputs = 64
        for expansion, channels, count, stride in _STAGES:
            for index in range(count):
                blocks.append(_Bottleneck(inputs, channels, stride=stride if index == 0 else 1, expansion=expansion))
                inputs = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv(inputs, 512, kernel=1)
        self.gdconv = _WeightedPool(512, side=7)
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm2d(128)

    def forward(self, x: Float[Tensor, "n 3 112 112"]) -> Float[Tensor, "n 128"]:
        """Return the embeddings, not yet of unit length."""
        x = self.features(self.dw_conv(self.conv1(x)))
        embedding: Tensor = self.bn(self.conv3(self.gdconv(self.conv2(x))))
        return embedding.flatten(1)


def _conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class _Separable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.depthwise(x)))
        return functional.relu(self.bn2(self.pointwise(x)))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _conv(inputs, wide, kernel=1),
            _conv(wide, wide, kernel=3, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class _WeightedPool(nn.Module):
    """Global depthwise convolution: a learned weight for every place, where average pooling weighs all alike."""

    def __init__(self, channels: int, *, side: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.depthwise(x))
        return out


def load_mobilefacenet(weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a MobileFaceNet with the given state dict, in evaluation mode.

    Raises:
        WeightsError: Names or shapes are another network's.
    """
    network = MobileFaceNet()
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"The weights are not those of a MobileFaceNet ({reason}). Name another network.") from error
    return network.eval()
