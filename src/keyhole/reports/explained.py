"""What the names of the package mean to a reader, in plain words."""

from __future__ import annotations

from keyhole.hints.selection import Rule

METRIC_NAMES = {
    "r2_cca": "R2-CCA",
    "linear_cka": "linear CKA",
    "debiased_cka": "debiased CKA",
    "rbf_cka": "RBF CKA",
    "procrustes": "Procrustes",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "consensus": "consensus",
}

METRIC_LIMITS = {
    "r2_cca": (
        "How well each independent direction of one layer can be predicted from the other, on average. Blind to any "
        "invertible linear change, and so to how strong a direction is: a direction of faint noise counts as much as "
        "the main one. With few images for the number of channels everything looks alike."
    ),
    "linear_cka": (
        "Whether two layers hold the same pairs of images close together. Blind to rotation and overall scale, and "
        "nearly blind to directions with little variance: a few strong ones decide. With few images and many channels "
        "it is too high."
    ),
    "debiased_cka": (
        "Linear CKA without the rise for few images; about 0, sometimes below, for layers that have nothing in common. "
        "Like linear CKA it sees mostly the few strongest directions."
    ),
    "rbf_cka": (
        "CKA with Gaussian kernels, so bent relations count too. Images farther apart than about the median distance "
        "look all equally far, so it is nearly blind to the large-scale arrangement; it depends on the kernel's width."
    ),
    "procrustes": (
        "How much of one layer is left over after the best rotation onto the other. Blind to rotation and overall "
        "scale; faint directions count more than in CKA and less than in R2-CCA."
    ),
    "svcca": (
        "The mean canonical correlation of the directions that carry 99 % of each layer. Blind to how strong a "
        "direction is among those kept, and to all that is left out; one at the edge may come and go with the images."
    ),
    "pwcca": (
        "Canonical correlations weighted by how much of a layer's channels each direction stands for, averaged over "
        "both ways round. It changes when a layer is rotated, and rises with few images for the number of channels."
    ),
    "consensus": (
        "The mean rank of each pair of layers under the metrics that were asked for. Only the order of the pairs is "
        "left: how large a difference is cannot be seen."
    ),
}

ALL_METRICS = (
    "No metric looks at labels or at accuracy: that two layers are alike does not say that either is good to learn "
    "from. All compare features averaged over the image or a coarse raster of it, so what differs only in its place is "
    "not seen."
)

_GROUPINGS = {
    "kmeans": "by k-means with layers as centers",
    "reverse": "by k-means with layers as centers",
    "segments": "as runs of consecutive layers",
    "agglomerative": "by merging the most alike",
}

_CONTROLS = {
    "stage-ends": "the last layers of the stages",
    "uniform": "the middles of equal parts of the depth",
    "random": "layers drawn at random",
    "all": "every layer",
    "last-only": "the deepest layer alone",
    "reverse": "the k-means centers, deepest first",
    "quality": "the consecutive layers with the highest quality by labels",
}

HINT_NAMES = {
    "center": "center",
    "last": "last layer",
    "informative": "layer that knows most about the classes",
}

TERM_NAMES = {
    "ce": "cross entropy (ce)",
    "kd": "softened logits of the teacher (kd)",
    "dkd": "softened logits, the class apart from the rest (dkd)",
    "dist": "correlations of softened logits (dist)",
    "ls": "standardized logits (ls)",
    "wttm": "logits of a teacher softened by a power (wttm)",
    "hint": "features of the hint layers (hint)",
    "at": "attention maps of the hint layers (at)",
    "vid": "surprise at the hint layers (vid)",
    "sp": "which images the hint layers find alike (sp)",
    "semckd": "features of all hint layers, by learned shares (semckd)",
    "crd": "contrast of the last layers (crd)",
    "embedding": "direction of the embedding (embedding)",
    "relations": "how alike the embeddings of a batch are (relations)",
    "seed": "how far likeness to earlier faces is from the teacher's (seed)",
    "askd": "attention maps of the hint layers, small against sharp (askd)",
    "margin": "people kept apart by an angle (margin)",
}


def grouping(rule: Rule) -> str:
    """Return how the layers were grouped, to stand after "grouped into 3 clusters"."""
    return _GROUPINGS.get(rule.clustering, f"by {rule.clustering}")


def control(rule: Rule) -> str:
    """Return what a control takes; empty for a choice by similarity."""
    return _CONTROLS.get(rule.clustering, "")


def metric(name: str) -> str:
    """Return the name of a metric as people write it."""
    return METRIC_NAMES.get(name, name)
