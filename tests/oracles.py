"""Slow second implementations, one image and one number at a time, to hold the fast ones against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement, pairwise

import numpy as np
from torch import Tensor


def crop_and_flip(image: np.ndarray, pad_px: int, top: int, left: int, flip: int) -> np.ndarray:
    """Return one image (h, w, c) padded with black, cropped to its old size from (top, left), and perhaps mirrored."""
    height, width, channels = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            across = width - 1 - column if flip else column
            y, x = top + row - pad_px, left + across - pad_px
            if 0 <= y < height and 0 <= x < width:
                for channel in range(channels):
                    out[row, column, channel] = image[y, x, channel]
    return out


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Return temperature^2 * KL(teacher || student) of the softened probabilities, averaged over the images."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = _softmax(t, temperature), _softmax(s, temperature)
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


def _softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    powers = [math.exp((value - top) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def decoupled_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> float:
    """Return temperature^2 (alpha TCKD + beta NCKD), image by image, from the probabilities."""
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = _softmax(t, temperature), _softmax(s, temperature)
        total += alpha * _divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest_p, rest_q = ([value / (1 - r[label]) for k, value in enumerate(r) if k != label] for r in (p, q))
        total += beta * _divergence(rest_p, rest_q)
    return temperature**2 * total / len(student)


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def standardized(logits: Sequence[float]) -> list[float]:
    """Return logits minus their mean, over their sample standard deviation."""
    mean = sum(logits) / len(logits)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logits) / (len(logits) - 1))
    return [(value - mean) / deviation for value in logits]


def correlation_loss(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> float:
    """Return temperature^2 (beta mean(1 - r over classes) + gamma mean(1 - r over images)) of probabilities."""
    a = np.array([_softmax(row, temperature) for row in student.tolist()])
    b = np.array([_softmax(row, temperature) for row in teacher.tolist()])
    over_classes = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    over_images = [1 - np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]
    return float(temperature**2 * (beta * np.mean(over_classes) + gamma * np.mean(over_images)))


def transformed_teacher_loss(student: Tensor, teacher: Tensor, exponent: float) -> float:
    """Return the mean of sum(p^e) KL(p^e / sum(p^e) || q)."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        powers = [value**exponent for value in _softmax(t, 1.0)]
        total += sum(powers) * _divergence([value / sum(powers) for value in powers], _softmax(s, 1.0))
    return total / len(student)


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> float:
    """Return the mean squared difference of the two tables of products, each row of unit length."""
    tables = []
    for feature in (student.double().flatten(1).numpy(), teacher.double().flatten(1).numpy()):
        table = [[float(sum(a * b for a, b in zip(x, y, strict=True))) for y in feature] for x in feature]
        tables.append([[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in table])
    pairs = [(a, b) for x, y in zip(*tables, strict=True) for a, b in zip(x, y, strict=True)]
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def variational_loss(mean: Tensor, deviation: Tensor, teacher: Tensor) -> float:
    """Return the mean of (t - m)^2 / (2 s^2) + log s."""
    a, b = _same_size(mean, teacher)
    n, channels, height, width = a.shape
    total = 0.0
    for c in range(channels):
        s = float(deviation[c])
        for x, y in zip(a[:, c].ravel(), b[:, c].ravel(), strict=True):
            total += (float(y) - float(x)) ** 2 / (2 * s * s) + math.log(s)
    return total / (n * channels * height * width)


def contrastive_loss(
    vectors: Sequence[np.ndarray], memories: Sequence[np.ndarray], drawn: np.ndarray, count: int, temperature: float
) -> float:
    """Return the two noise-contrastive losses, the student against the teacher's memory and the other way round.

    ``drawn`` holds for each image its own number and those of the negatives; the normalization is the mean score.
    """
    total = 0.0
    images, others = drawn.shape[0], drawn.shape[1] - 1
    for own, memory in zip(vectors, reversed(memories), strict=True):
        scores = np.array([[math.exp(own[i] @ memory[k] / temperature) for k in drawn[i]] for i in range(images)])
        scores /= scores.mean() * count
        noise = others / count
        for row in scores:
            total -= math.log(row[0] / (row[0] + noise))
            total -= sum(math.log(noise / (score + noise)) for score in row[1:])
    return total / images


def associated_loss(
    features: Sequence[Sequence[np.ndarray]],
    embeddings: Sequence[Sequence[Sequence[np.ndarray]]],
    differences: np.ndarray,
) -> float:
    """Return the loss of learned shares, image by image.

    Args:
        features: Of the student's layers and of the teacher's.
        embeddings: Of the student's layers and of the teacher's: weight, bias, weight, bias of two linear layers.
        differences: Mean squared difference by image, student layer and teacher layer.
    """
    images, students, teachers = differences.shape
    total = 0.0
    for n in range(images):
        queries, keys = (
            [_unit_embedding(feature, n, layers) for feature, layers in zip(side, own, strict=True)]
            for side, own in zip(features, embeddings, strict=True)
        )
        for s in range(students):
            powers = [math.exp(sum(a * b for a, b in zip(queries[s], key, strict=True))) for key in keys]
            total += sum(powers[t] / sum(powers) * float(differences[n, s, t]) for t in range(teachers))
    return total / images / students


def _unit_embedding(feature: np.ndarray, image: int, layers: Sequence[np.ndarray]) -> list[float]:
    alike = np.array([float((feature[image] * other).sum()) for other in feature])
    first, first_bias, second, second_bias = layers
    hidden = [max(0.0, float(row @ alike + b)) for row, b in zip(first, first_bias, strict=True)]
    out = [float(row @ np.array(hidden) + b) for row, b in zip(second, second_bias, strict=True)]
    length = math.sqrt(sum(value**2 for value in out))
    return [value / length for value in out]


def average_to(feature: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a map (n, c, h, w) averaged down; each cell is the mean of the pixels that it touches."""
    n, c, h, w = feature.shape
    out = np.zeros((n, c, height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * h // height, -(-(i + 1) * h // height))
            columns = slice(j * w // width, -(-(j + 1) * w // width))
            out[:, :, i, j] = feature[:, :, rows, columns].mean(axis=(2, 3))
    return out


def hint_loss(student: Tensor, teacher: Tensor) -> float:
    """Return the mean squared difference of two maps at their smaller size."""
    a, b = _same_size(student, teacher)
    differences = [(float(x) - float(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return sum(differences) / len(differences)


def attention_loss(student: Tensor, teacher: Tensor) -> float:
    """Return the mean squared difference of the two normalized energy maps, image by image."""
    a, b = _same_size(student, teacher)
    differences = []
    for x, y in zip(a, b, strict=True):
        differences += [(p - q) ** 2 for p, q in zip(_energy(x), _energy(y), strict=True)]
    return sum(differences) / len(differences)


def _energy(feature: np.ndarray) -> list[float]:
    channels, height, width = feature.shape
    pixels = [feature[:, i, j] for i in range(height) for j in range(width)]
    energy = [sum(float(value) ** 2 for value in pixel) / channels for pixel in pixels]
    length = math.sqrt(sum(value**2 for value in energy))
    return [value / length for value in energy]


def _same_size(student: Tensor, teacher: Tensor) -> tuple[np.ndarray, np.ndarray]:
    a, b = student.detach().double().numpy(), teacher.detach().double().numpy()
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return average_to(a, height, width), average_to(b, height, width)


# ---------------------------------------------------------------------------------------------------------------------
# Similarity of layers, from the definitions: n x n matrices, orthonormal bases and loops over pairs of inputs.
# ---------------------------------------------------------------------------------------------------------------------


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of Gram matrices centered from both sides."""
    n = len(x)
    center = np.eye(n) - np.ones((n, n)) / n
    k, m = (center @ (value @ value.T) @ center for value in (x, y))
    return float(np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the alignment of U-centered Gram matrices: Szekely and Rizzo (2014), definition 2 and equation 7."""
    k, m = u_centered(x @ x.T), u_centered(y @ y.T)
    return float((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()))


def u_centered(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel matrix with a zero diagonal and rows that sum to zero, entry by entry."""
    n = len(kernel)
    bare = kernel - np.diag(np.diag(kernel))
    rows, total = bare.sum(1), bare.sum()
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                out[i, j] = bare[i, j] - (rows[i] + rows[j]) / (n - 2) + total / ((n - 1) * (n - 2))
    return out


def rbf_cka(x: np.ndarray, y: np.ndarray, batches: Sequence[range], bandwidth: float = 1.0) -> float:
    """Return CKA with Gaussian kernels over minibatches; the first batch sets the widths."""
    widths = [bandwidth * middle_distance(value[list(batches[0])]) for value in (x, y)]
    return rbf_cka_of_widths(x, y, batches, widths)


def rbf_cka_of_widths(x: np.ndarray, y: np.ndarray, batches: Sequence[range], widths: Sequence[float]) -> float:
    """Return CKA with Gaussian kernels of given widths, one pair of inputs at a time."""
    cross = own_x = own_y = 0.0
    for batch in batches:
        n = len(batch)
        k, m = (u_centered(_gaussian(value[list(batch)], width)) for value, width in zip((x, y), widths, strict=True))
        weight = n / (n * (n - 3))
        cross, own_x, own_y = (
            cross + weight * float((k * m).sum()),
            own_x + weight * float((k * k).sum()),
            own_y + weight * float((m * m).sum()),
        )
    return cross / math.sqrt(own_x * own_y)


def middle_distance(x: np.ndarray) -> float:
    """Return the (lower) median distance between two different inputs."""
    distances = sorted(math.dist(x[i], x[j]) for i in range(len(x)) for j in range(i))
    return distances[(len(distances) - 1) // 2]


def _gaussian(x: np.ndarray, width: float) -> np.ndarray:
    n = len(x)
    return np.array([[math.exp(-(math.dist(x[i], x[j]) ** 2) / (2 * width**2)) for j in range(n)] for i in range(n)])


def r2_cca(x: np.ndarray, y: np.ndarray) -> float:
    """Return the mean squared canonical correlation from orthonormal bases of the two centered column spaces."""
    bases = []
    for value in (x, y):
        left, lengths, _ = np.linalg.svd(value - value.mean(0), full_matrices=False)
        bases.append(left[:, lengths > 1e-7 * lengths.max(initial=0.0)])
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float((correlations**2).sum() / min(x.shape[1], y.shape[1]))


def svcca(x: np.ndarray, y: np.ndarray, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of the fewest principal directions that carry a part of the variance."""
    bases = []
    for z in (x, y):
        left, values, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        bases.append(left[:, : int(np.searchsorted(share, variance * (1 - 1e-12))) + 1])
    found = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(found.sum() / min(base.shape[1] for base in bases))


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Return the canonical correlations weighted by the summed projections of x's channels on their directions."""
    x, y = x - x.mean(0), y - y.mean(0)
    bases = []
    for z in (x, y):
        left, values, _ = np.linalg.svd(z, full_matrices=False)
        bases.append(left[:, values**2 > 1e-10 * values[0] ** 2])
    turn, correlations, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    above = below = 0.0
    for k, correlation in enumerate(correlations):
        direction = bases[0] @ turn[:, k]
        weight = sum(abs(float(direction @ x[:, j])) for j in range(x.shape[1]))
        above, below = above + weight * float(correlation), below + weight
    return above / below


def procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """Return 1 - d^2 / 2, d the distance of the normalized layers after the rotation that scipy finds."""
    from scipy.linalg import orthogonal_procrustes

    width = max(x.shape[1], y.shape[1])
    a, b = (np.pad(value - value.mean(0), ((0, 0), (0, width - value.shape[1]))) for value in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = orthogonal_procrustes(a, b)
    return float(1 - np.linalg.norm(a @ rotation - b) ** 2 / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Clusters and matchings, by trying everything.
# ---------------------------------------------------------------------------------------------------------------------


def best_segments_cost(distance: np.ndarray, count: int) -> float:
    """Return the smallest total distance to medoids over all ways to cut the layers into ``count`` runs."""
    layers = len(distance)
    return min(
        sum(medoid_cost(distance, range(a, b)) for a, b in pairwise((0, *cuts, layers)))
        for cuts in combinations(range(1, layers), count - 1)
    )


def medoid_cost(distance: np.ndarray, members: Sequence[int]) -> float:
    """Return the total distance of the members to the one of them that lies best."""
    return min(sum(float(distance[center, i]) for i in members) for center in members)


def silhouette(distance: np.ndarray, labels: Sequence[int]) -> float:
    """Return the mean of (b - a) / max(a, b) over layers; a layer alone in its cluster counts 0."""
    values = []
    for i, own in enumerate(labels):
        means = {
            label: [float(distance[i, j]) for j in range(len(labels)) if labels[j] == label and j != i]
            for label in set(labels)
        }
        if not means[own]:
            values.append(0.0)
            continue
        inside = sum(means[own]) / len(means[own])
        outside = min(sum(found) / len(found) for label, found in means.items() if label != own)
        values.append((outside - inside) / max(inside, outside))
    return sum(values) / len(values)


def best_depth_cost(depths: Sequence[float], layers: int) -> float:
    """Return the smallest total difference of relative depth over all assignments that never cross."""
    pick = combinations if len(depths) <= layers else combinations_with_replacement
    wanted = sorted(depths)
    return min(
        sum(abs((place + 1) / layers - depth) for place, depth in zip(places, wanted, strict=True))
        for places in pick(range(layers), len(depths))
    )


def quality(x: np.ndarray, labels: Sequence[int]) -> tuple[float, float, float]:
    """Return separation, information and efficiency of a layer, from loops over pairs of images."""
    classes = sorted(set(labels))
    members = {k: [i for i, label in enumerate(labels) if label == k] for k in classes}

    def alike(i: int, j: int) -> float:
        lengths = math.sqrt(sum(x[i] ** 2)) * math.sqrt(sum(x[j] ** 2))
        return abs(float(sum(x[i] * x[j]))) / lengths if lengths else 0.0

    within = [[alike(i, j) for i, j in combinations(own, 2)] for own in members.values() if len(own) > 1]
    between = [[alike(i, j) for i in members[a] for j in members[b]] for a in classes for b in classes if a != b]
    separation = np.mean([np.mean(values) for values in within]) - np.mean([np.mean(values) for values in between])

    spectra = []
    for own in members.values():
        if len(own) > 1:
            centered = x[own] - x[own].mean(axis=0)
            values = np.sort(np.linalg.eigvalsh(centered.T @ centered).clip(0))[::-1]
            spectra.append(values / values.sum() if values.sum() else np.eye(1, len(values))[0])
    entropies = [-sum(float(p) * math.log(p) for p in shares if p > 1e-15) for shares in spectra]
    information = (1 - np.mean([min(values) for values in within])) * np.mean(entropies) / math.log(5)

    nearest = [
        min(math.dist(x[i], x[j]) for i in own for j in range(len(x)) if labels[j] != k) for k, own in members.items()
    ]
    norms = [np.mean([math.sqrt(sum(x[i] ** 2)) for i in own]) for own in members.values()]
    varying = np.linalg.matrix_rank(x, tol=1e-6 * np.linalg.norm(x, 2))
    efficiency = 2 * np.mean(nearest) / np.mean(norms) * (len(x) / math.pi) ** (1 / varying)
    return float(separation), float(information), float(efficiency)


def best_monotone_cost(costs: np.ndarray) -> float:
    """Return the smallest total cost over all assignments of rows to columns that never cross."""
    rows, columns = costs.shape
    pick = combinations if rows <= columns else combinations_with_replacement
    return min(sum(float(costs[i, place]) for i, place in enumerate(places)) for places in pick(range(columns), rows))


def mass(hints: Sequence[int], similarities: np.ndarray) -> list[float]:
    """Return how many layers each hint stands for, over their mean."""
    counts = [0] * len(hints)
    for layer in range(len(similarities)):
        best = 0
        for k, hint in enumerate(hints):
            if similarities[layer, hint] > similarities[layer, hints[best]]:
                best = k
        counts[hints.index(layer) if layer in hints else best] += 1
    return [count * len(hints) / sum(counts) for count in counts]


def rarity(hints: Sequence[int], similarities: np.ndarray) -> list[float]:
    """Return how little each hint is like the other hints, over the mean."""
    values = []
    for hint in hints:
        others = [float(similarities[hint, other]) for other in hints if other != hint]
        values.append(max(0.0, 1 - sum(others) / len(others)))
    return [value * len(values) / sum(values) for value in values]
