"""How alike the layers of two networks are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keyhole.data.splits import Split
from keyhole.hints.metrics import ratio
from keyhole.hints.moments import ObserveConfig, observe
from keyhole.models.network import Network
from keyhole.progress import Progress, silent


def likeness(
    networks: tuple[Network, Network],
    layers: tuple[Sequence[str], Sequence[str]],
    images: Split,
    *,
    config: ObserveConfig | None = None,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "l m"]:
    """Return the linear CKA of each layer of one network with each layer of another, from 0 to 1.

    Features are averaged over the image, as for the choice of hints. The cost is one pass of each network; the features
    of both are kept while they are compared.

    Args:
        networks: The two networks; each sees the images as it expects them.
        layers: The layers of the first and of the second, dotted paths.
        images: The images, seen as a test sees them.
        config: How to look; the defaults when missing.
        device: Where to run the networks.
        progress: Wraps the batches.

    Raises:
        SettingError: Fewer than two images.
        UnknownNameError: A layer does not exist.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, equation 4 with the feature form of section 3.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.models.zoo import build
        >>> spec, train = default_input("digits"), open_data("digits").train
        >>> nets = build("resnet14", classes=10, input=spec), build("resnet8", classes=10, input=spec)
        >>> likeness(nets, (["layer1.0", "layer3.1"], ["layer3.0"]), train.subset(range(50))).shape
        (2, 1)
    """
    sides: list[list[Tensor]] = []
    for network, names in zip(networks, layers, strict=True):
        moments = observe(network, images, names, config=config, features=True, device=device, progress=progress)
        sides.append([_centered(moments.features(i)) for i in range(len(names))])
    ours, others = sides
    lengths = [[(x.T @ x).norm() for x in side] for side in sides]
    return np.array(
        [
            [ratio((x.T @ y).square().sum(), a * b) for y, b in zip(others, lengths[1], strict=True)]
            for x, a in zip(ours, lengths[0], strict=True)
        ]
    )


def _centered(features: Tensor) -> Tensor:
    double = features.double()
    return double - double.mean(0)
