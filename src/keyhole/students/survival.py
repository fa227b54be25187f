"""Which layers of a teacher keep what they say of a face when its pixels go, and hints that prefer them.

The method takes the center of each cluster of like layers. Across resolutions a center may be a layer that falls apart
on small images: what it teaches cannot be learnt from them. So each layer is also measured by how alike its views of
the sharp and of the small image of the same faces are, and inside a cluster the layer is taken that is both central and
survives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from keyhole.errors import SettingError
from keyhole.hints.choice import Hints
from keyhole.hints.metrics import linear_cka
from keyhole.hints.moments import ObserveConfig, observe
from keyhole.models.network import Network
from keyhole.progress import Progress, silent
from keyhole.students.views import FaceViews


def layer_survival(
    teacher: Network,
    faces: FaceViews,
    names: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    look: ObserveConfig | None = None,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Return for each layer how alike it sees faces sharp and as the camera delivers them, 0 to 1.

    Linear CKA between the layer's features (averaged over the image) of the sharp faces and of the small ones; 1 is a
    layer that loses nothing. No labels are needed; the cost is two passes of the teacher.

    Args:
        teacher: The teacher.
        faces: The faces, and the camera.
        names: Layers, dotted paths.
        samples: How many faces, drawn from the seed; all where there are fewer.
        seed: Of the faces and of the camera.
        look: How to look; the defaults when missing.
        device: Where to run the teacher.
        progress: Wraps the batches.

    Raises:
        SettingError: There are fewer than two faces.
        DivergenceError: A feature is NaN or infinite.

    Reference:
        Kornblith et al. (2019), https://arxiv.org/abs/1905.00414, equation 4, here of one layer under two views.
    """
    random = np.random.default_rng([seed, 6])
    chosen = faces.subset(torch.from_numpy(random.permutation(len(faces))[:samples].copy()))
    if len(chosen) < 2:
        raise SettingError(f"There are {len(chosen)} faces to look at; expected at least 2.")
    views = (chosen, replace(chosen, small_seed=seed))
    sharp, small = (
        observe(teacher, view, names, config=look, features=True, device=device, progress=progress) for view in views
    )
    return {name: linear_cka(sharp.features(i), small.features(i)) for i, name in enumerate(names)}


def surviving_hints(found: Hints, survival: dict[str, float]) -> tuple[str, ...]:
    """Return the layer of each cluster that is most central and survives best, by the product of the two, by depth.

    How central a layer is, is its mean similarity to the layers of its cluster, itself among them.

    Args:
        found: Clusters and similarities, of :func:`keyhole.hints.choice.choose_hints`.
        survival: Of each layer, of :func:`layer_survival`.

    Raises:
        SettingError: The layers were chosen without clusters.
    """
    clusters = found.choices[found.metric].clusters
    if not clusters:
        raise SettingError(f"Layers were chosen by {found.rule.clustering}, which makes no clusters; take kmeans.")
    position = {layer.name: k for k, layer in enumerate(found.layers)}
    matrix = found.similarities[found.metric]
    chosen = []
    for members in clusters:
        scores = [_score(name, members, position, matrix, survival) for name in members]
        chosen.append(members[int(np.argmax(scores))])
    return tuple(sorted(chosen, key=position.__getitem__))  # in the order of depth, as student stages are


def _score(
    name: str,
    members: Sequence[str],
    position: dict[str, int],
    matrix: Float[np.ndarray, "l l"],
    survival: dict[str, float],
) -> float:
    rows = [position[member] for member in members]
    return float(matrix[position[name], rows].mean()) * survival[name]
