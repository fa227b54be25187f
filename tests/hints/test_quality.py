"""How good layers are to learn from, by the labels."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

import oracles
from keyhole.data.splits import MemorySplit
from keyhole.errors import DataError, SettingError, ShapeError
from keyhole.hints import quality as module
from keyhole.hints.choice import ChoiceConfig, choose_hints
from keyhole.hints.moments import ObserveConfig, observe
from keyhole.hints.quality import Quality, feature_quality, layer_quality
from keyhole.hints.selection import Rule, select, stability
from keyhole.models.layers import Layer, layers, tap
from keyhole.models.network import Network


def drawn(seed: int, count: int, channels: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    x = random.normal(size=(count, channels)) + 2 * random.normal(size=(classes, channels))[labels]
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


@pytest.mark.parametrize(("count", "channels", "classes"), [(40, 3, 4), (30, 12, 3), (12, 20, 2), (25, 5, 24)])
@pytest.mark.parametrize("rectified", [False, True])
def test_quality_is_that_of_the_oracle(count: int, channels: int, classes: int, rectified: bool) -> None:
    x, labels = drawn(count, count, channels, classes)
    if rectified:
        x = x.relu()
        x[:, 0] = 0  # a channel that is dead
        x[3] = 0  # an image that the layer does not see
    expected = oracles.quality(x.double().numpy(), labels.tolist())
    assert astuple(feature_quality(x, labels)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_images_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = drawn(0, 60, 4, 3)
    whole = feature_quality(x, labels)
    monkeypatch.setattr(module, "_ROWS", 7)
    assert astuple(feature_quality(x, labels)) == pytest.approx(astuple(whole), rel=1e-6)


def test_quality_notices_neither_scale_nor_rotation_nor_order() -> None:
    x, labels = drawn(1, 50, 4, 3)
    expected = pytest.approx(astuple(feature_quality(x, labels)), rel=1e-3)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    mixed = torch.randperm(50)
    assert astuple(feature_quality(100 * x @ turn, 5 - labels)) == expected
    assert astuple(feature_quality(x[mixed], labels[mixed])) == expected


def test_a_case_by_hand() -> None:
    # two classes at right angles, whose images differ in length alone: |cos| 1 within, 0 between, nearest 1 and 1
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = feature_quality(x, torch.tensor([0, 0, 1, 1]))
    assert found.separation == pytest.approx(1)
    assert found.information == 0
    assert found.efficiency == pytest.approx(2 * 2**0.5 / 2 * (4 / np.pi) ** 0.5, rel=1e-6)
    assert found.total == pytest.approx(1)
    assert Quality(0.5, 0.25, 4.0).total == pytest.approx(1.5)


def test_layers_that_say_nothing() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert astuple(feature_quality(torch.zeros(4, 3), labels)) == (0, 0, 0)
    assert feature_quality(torch.ones(4, 3), labels).total == pytest.approx(0, abs=1e-3)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(ShapeError, match="4 features and 3 labels"):
        feature_quality(torch.ones(4, 3), torch.tensor([0, 1, 1]))
    for labels in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(SettingError, match="Raise --samples"):
            feature_quality(torch.ones(3, 2), torch.tensor(labels))


def test_layers_are_judged_by_what_the_network_gave(toy_teacher: Network, toy_split: MemorySplit) -> None:
    names = [layer.name for layer in layers(toy_teacher)]
    config = ObserveConfig(batch_size=10, precision="fp32")
    moments = observe(toy_teacher, toy_split, names, config=config, labels=True, features=True)
    with torch.no_grad(), tap(toy_teacher.module, names) as features:
        toy_teacher(toy_split.pixels.permute(0, 3, 1, 2) / 255)
    found = layer_quality(moments)
    assert len(found) == len(names)
    for score, feature in zip(found, features.values(), strict=True):
        expected = oracles.quality(feature.mean((2, 3)).double().numpy(), toy_split.labels.tolist())
        assert astuple(score) == pytest.approx(expected, rel=2e-3, abs=1e-5)
    with pytest.raises(SettingError, match="kept no labels"):
        layer_quality(observe(toy_teacher, toy_split, names, config=config, features=True))
    sums = observe(toy_teacher, toy_split.subset(torch.arange(48).repeat(200)), names[:1], config=config, labels=True)
    with pytest.raises(SettingError, match="kept sums and no features"):
        layer_quality(sums)


STAGES = [Layer(f"block{i}", "Block", 8, (size, size), 10) for i, size in enumerate((32, 32, 16, 16, 8, 8, 8))]


@pytest.mark.parametrize(
    ("count", "quality", "expected"),
    [
        (1, [1, 2, 3, 9, 3, 2, 1], (3,)),
        (3, [1, 2, 3, 9, 4, 2, 1], (2, 3, 4)),
        (2, [5, 5, 0, 0, 5, 5, 0], (4, 5)),  # of equals the deepest
        (None, [0, 0, 0, 0, 1, 1, 1], (4, 5, 6)),  # as many as stages
        (7, [1] * 7, tuple(range(7))),
    ],
)
def test_the_best_consecutive_layers_are_chosen(
    count: int | None, quality: list[float], expected: tuple[int, ...]
) -> None:
    found = select(STAGES, None, Rule("quality", count=count), quality=np.array(quality, float))
    assert found.hints == expected
    assert (found.clusters, found.silhouettes) == (None, {})


def test_choosing_by_quality_needs_labels(toy_teacher: Network, toy_split: MemorySplit) -> None:
    with pytest.raises(SettingError, match="needs that of each layer, from labels"):
        select(STAGES, None, Rule("quality"))
    with pytest.raises(DataError, match="needs labeled images"):
        choose_hints(toy_teacher, replace(toy_split, classes=()), Rule("quality"))
    moments = observe(toy_teacher, toy_split, [layer.name for layer in layers(toy_teacher)])
    with pytest.raises(SettingError, match="quality looks at no similarity"):
        stability(layers(toy_teacher), moments, ["r2_cca"], Rule("quality", count=2))


def test_hints_by_quality(toy_teacher: Network, toy_split: MemorySplit) -> None:
    config = ChoiceConfig(draws=5, bare=False)
    look = ObserveConfig(precision="fp32", batch_size=10)
    found = choose_hints(toy_teacher, toy_split, Rule("quality", count=2), config=config, look=look)
    names = [layer.name for layer in layers(toy_teacher)]
    totals = [found.quality[name]["quality"] for name in names]
    best = max(range(len(names) - 1), key=lambda i: totals[i] + totals[i + 1])
    assert found.hints == tuple(names[best : best + 2])
    told = found.to_json()["quality"]
    assert list(told) == names
    assert set(told[names[0]]) == {"quality", "separation", "information", "efficiency"}
    assert found.similarities["linear_cka"].shape == (len(names),) * 2
    assert found.choices["r2_cca"].stability == {}
    assert choose_hints(toy_teacher, toy_split, Rule(count=2), config=config, look=look).quality == {}
