"""The CIFAR residual networks of He et al. (2016), in the form in which distillation results are published.

Three stages of basic blocks at full, half and quarter resolution. A shortcut that changes
channels or size is a 1x1 convolution with batch norm. Module names are the ones of the weights in circulation
(``conv1``, ``bn1``, ``layer1.0.conv1``, ``layer2.0.downsample.0``, ``fc``), so published state
dicts load as they are.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from keyhole.errors import SettingError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut: (n, c, h, w) -> (n, channels, h/stride, w/stride)."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != channels:
            conv = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, after the last rectifier."""
        out = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn2(self.conv2(out)).add_(shortcut), inplace=True)


class CifarResNet(nn.Module):
    """Residual network for small images: (n, inputs, h, w) -> (n, classes).

    Args:
        depth: Number of weighted layers, 6 b + 2 for b blocks a stage.
        classes: Number of outputs.
        channels: Channels of the stem and of the three stages.
        inputs: Channels of the image, 3 for color and 1 for gray.

    Raises:
        SettingError: The depth is not 6 b + 2.

    Reference:
        He et al. (2016), Deep Residual Learning for Image Recognition, section 4.2,
        https://arxiv.org/abs/1512.03385

    Example:
        >>> import torch
        >>> net = CifarResNet(20)
        >>> sum(p.numel() for p in net.parameters())
        278324
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        depth: int,
        classes: int = 100,
        *,
        channels: tuple[int, int, int, int] = (16, 16, 32, 64),
        inputs: int = 3,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise SettingError(f"A CIFAR ResNet has 6 b + 2 layers (8, 14, 20, ...); got depth {depth}.")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(inputs, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[1], blocks, stride=1)
        self.layer2 = _stage(channels[1], channels[2], blocks, stride=2)
        self.layer3 = _stage(channels[2], channels[3], blocks, stride=2)
        self.fc = nn.Linear(channels[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


# name -> (depth, channels); the x4 forms are those of https://github.com/HobbitLong/RepDistiller
CIFAR_RESNETS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    **{f"resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": (depth, (32, 64, 128, 256)) for depth in (8, 32)},
}
