"""EdgeFace: an EdgeNeXt of timm whose linear layers, the last one too, are products of two thin ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from keyhole.errors import WeightsError
from keyhole.libraries import optional

# name -> (network of timm, rank of a linear layer as a share of its smaller side; None leaves the layers whole)
EDGEFACES: dict[str, tuple[str, float | None]] = {
    "edgeface-xxs": ("edgenext_xx_small", None),
    "edgeface-xs": ("edgenext_x_small", 0.6),
    "edgeface-s": ("edgenext_small", 0.5),
}


class LowRankLinear(nn.Module):
    """A linear layer that is the product of two: inputs -> rank -> outputs, the bias in the second."""

    def __init__(self, inputs: int, outputs: int, *, rank: int, bias: bool) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of both layers."""
        out: Tensor = self.linear2(self.linear1(x))
        return out


def edgeface(name: str) -> nn.Module:
    """Return an EdgeFace without weights: (n, 3, 112, 112) -> (n, 512).

    Args:
        name: ``edgeface-xxs``, ``edgeface-xs`` (gamma 0.6) or ``edgeface-s`` (gamma 0.5).

    Raises:
        SettingError: timm is not installed.

    Reference:
        George et al. (2024), EdgeFace, section on low rank linear modules, https://arxiv.org/abs/2307.01838

    Example:
        >>> round(sum(p.numel() for p in edgeface("edgeface-xs").parameters()) / 1e6, 2)
        1.77
    """
    timm = optional("timm", user=name, packages="timm torchvision")
    backbone, share = EDGEFACES[name]
    network: nn.Module = timm.create_model(backbone, num_classes=512)
    if share is not None:
        _thin(network, share)
    return network


def _thin(module: nn.Module, share: float) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            rank = max(2, int(min(child.in_features, child.out_features) * share))
            bias = child.bias is not None
            setattr(module, name, LowRankLinear(child.in_features, child.out_features, rank=rank, bias=bias))
        else:
            _thin(child, share)


def load_edgeface(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """Return an EdgeFace with the given state dict, in evaluation mode.

    Raises:
        SettingError: timm is not installed.
        WeightsError: Names or shapes are another network's.
    """
    network = edgeface(name)
    plain = {key.removeprefix("model."): value for key, value in weights.items()}
    try:
        network.load_state_dict(plain)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"The weights are not those of {name} ({reason}). Name another network.") from error
    return network.eval()
