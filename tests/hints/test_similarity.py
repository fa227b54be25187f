"""Similarities from the sums of one pass against the plain functions on features captured here with hooks."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import compress, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracles
from keyhole.data.splits import MemorySplit
from keyhole.errors import DivergenceError, SettingError, UnknownNameError
from keyhole.hints import metrics
from keyhole.hints.moments import Moments, ObserveConfig, block_bounds, observe
from keyhole.hints.similarity import METRICS, consensus, similarity
from keyhole.models.network import InputSpec, Network

SPEC = InputSpec((6, 6), (0.4, 0.5, 0.6), (0.3, 0.2, 0.25))
NAMES = ("first", "second", "third", "narrow")
SLIM = {"first": 3, "second": 4, "third": 3}  # so narrow that sums take less room than features


class Stack(nn.Module):
    """Four layers of different widths, the last a vector."""

    def __init__(self, first: int = 5, second: int = 9, third: int = 7) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, first, 3, padding=1)
        self.second = nn.Conv2d(first, second, 3, stride=2)
        self.third = nn.Conv2d(second, third, 1)
        self.narrow = nn.Linear(third, 1)
        self.head = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.third(self.second(x).tanh()).relu()
        return self.head(self.narrow(x.mean((2, 3))))


def network(**widths: int) -> Network:
    torch.manual_seed(1)
    return Network("stack", Stack(**widths).eval(), SPEC, 4)


def images(count: int, seed: int = 0) -> MemorySplit:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    none = torch.zeros(count, dtype=torch.int64)
    return MemorySplit(torch.from_numpy(pixels), none, torch.arange(count), classes=())


@torch.no_grad()
def captured(net: Network, split: MemorySplit, names: tuple[str, ...], grid: int = 1) -> dict[str, Tensor]:
    """Pooled features, all images at once, by hooks of this test's own."""
    kept: dict[str, Tensor] = {}
    modules = dict(net.module.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: kept.__setitem__(name, output.clone()))
        for name in names
    ]
    net(split.pixels.permute(0, 3, 1, 2).float() / 255)
    for handle in handles:
        handle.remove()
    return {name: pooled(feature, grid) for name, feature in kept.items()}


def pooled(feature: Tensor, grid: int) -> Tensor:
    if feature.ndim == 2:  # the same value stands in each cell
        return feature.repeat_interleave(grid * grid, dim=1)
    averages = oracles.average_to(feature.double().numpy(), grid, grid)
    return torch.from_numpy(averages).flatten(1)


def plain(metric: str, x: Tensor, y: Tensor, minibatch: int = 250) -> float:
    if metric == "rbf_cka":
        return metrics.rbf_cka(x, y, minibatch=minibatch)
    if metric == "pwcca":
        return (metrics.pwcca(x, y) + metrics.pwcca(y, x)) / 2
    return float(getattr(metrics, metric)(x, y))


def all_pairs(metric: str, features: dict[str, Tensor], minibatch: int = 250) -> np.ndarray:
    values = list(features.values())
    return np.array([[plain(metric, x, y, minibatch) for y in values] for x in values])


def kind(moments: Moments) -> str:
    return type(moments.products).__name__


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("count", "grid", "kept"),
    [
        (400, 1, "_KeptFeatures"),
        (160, 2, "_KeptFeatures"),
        (480, 1, "_KeptSums"),
    ],
)
def test_all_pairs_equal_the_plain_function(metric: str, count: int, grid: int, kept: str) -> None:
    net, split = network(**(SLIM if kept == "_KeptSums" else {})), images(count)
    block = count // 20
    moments = observe(net, split, NAMES, config=ObserveConfig(grid=grid, batch_size=block, memory_mib=64))
    assert kind(moments) == kept
    found = similarity(moments, metric)
    expected = all_pairs(metric, captured(net, split, NAMES, grid), minibatch=block)
    assert found.shape == (1, 4, 4)
    np.testing.assert_allclose(found[0], expected, atol=5e-5 if metric == "rbf_cka" else 2e-6)
    np.testing.assert_array_equal(found[0], found[0].T)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "kept"), [(400, "_KeptFeatures"), (480, "_KeptSums")])
def test_parts_equal_the_plain_function_on_their_images(metric: str, count: int, kept: str) -> None:
    net, split = network(**(SLIM if kept == "_KeptSums" else {})), images(count)
    block = count // 20
    moments = observe(net, split, NAMES, config=ObserveConfig(batch_size=block))
    assert kind(moments) == kept
    features = captured(net, split, NAMES)
    parts = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    parts[:, 3] = True
    found = similarity(moments, metric, parts=parts)
    alone = similarity(moments, metric, parts=parts[:1])
    np.testing.assert_allclose(alone[0], found[0], atol=1e-12)
    for row, part in enumerate(parts):
        where = torch.repeat_interleave(part, block)
        chosen = {name: value[where] for name, value in features.items()}
        if metric == "rbf_cka":  # the first minibatch of all images sets the widths, whatever the part
            every = [range(b * block, (b + 1) * block) for b in range(20)]
            expected = by_minibatch(features, every, part.tolist())
        else:
            expected = all_pairs(metric, chosen)
        np.testing.assert_allclose(found[row], expected, atol=5e-5 if metric == "rbf_cka" else 2e-6)


def by_minibatch(features: dict[str, Tensor], batches: list[range], inside: Sequence[bool] | None = None) -> np.ndarray:
    """CKA with Gaussian kernels over some of the minibatches; the first of all sets the widths."""
    widths = [metrics.median_distance(value[: len(batches[0])]) for value in features.values()]
    sums = 0.0
    for batch in compress(batches, inside or [True] * len(batches)):
        kernels = [
            metrics.gaussian_kernel(value[batch.start : batch.stop].double(), width)
            for value, width in zip(features.values(), widths, strict=True)
        ]
        hsic = [[float(metrics.unbiased_hsic(k, m)) for m in kernels] for k in kernels]
        sums = sums + len(batch) * np.array(hsic)
    own = np.sqrt(np.diag(sums))
    return np.asarray(sums / np.outer(own, own))


def test_the_gaussian_sums_equal_a_loop_over_pairs_of_images() -> None:
    net, split = network(), images(80)
    moments = observe(net, split, ("first", "third"), config=ObserveConfig(batch_size=4, bandwidth=0.7))
    x, y = (value.numpy() for value in captured(net, split, ("first", "third")).values())
    expected = oracles.rbf_cka(x, y, [range(4 * k, 4 * k + 4) for k in range(20)], bandwidth=0.7)
    assert similarity(moments, "rbf_cka")[0, 0, 1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "rbf_cka"])
@pytest.mark.parametrize("batch_size", [7, 11, 64, 1000])
@pytest.mark.parametrize(("count", "kept"), [(333, "_KeptFeatures"), (507, "_KeptSums")])
def test_the_batch_size_changes_nothing(metric: str, batch_size: int, count: int, kept: str) -> None:
    net, split = network(**(SLIM if kept == "_KeptSums" else {})), images(count)
    moments = observe(net, split, NAMES, config=ObserveConfig(batch_size=batch_size))
    assert kind(moments) == kept
    assert int(moments.counts.sum()) == count
    expected = all_pairs(metric, captured(net, split, NAMES))
    np.testing.assert_allclose(similarity(moments, metric)[0], expected, atol=2e-6)


def test_a_block_is_cut_into_nearly_equal_minibatches_weighted_by_their_size() -> None:
    net, split = network(), images(190)  # blocks of 9 or 10 images, and minibatches of 4 or 5
    moments = observe(net, split, NAMES, config=ObserveConfig(batch_size=5))
    batches = []
    for first, last in pairwise(block_bounds(190)):
        middle = first + round((last - first) / 2)
        batches += [range(first, middle), range(middle, last)]
    assert {len(batch) for batch in batches} == {4, 5}
    expected = by_minibatch(captured(net, split, NAMES), batches)
    np.testing.assert_allclose(similarity(moments, "rbf_cka")[0], expected, atol=5e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [4, 7, 9, 23, 79])
def test_a_handful_of_images(metric: str, count: int) -> None:
    net, split = network(), images(count)
    moments = observe(net, split, NAMES)
    assert len(moments.counts) == min(20, count // 4)
    assert float(moments.counts.min()) >= 4
    found = similarity(moments, metric)[0]
    if metric != "rbf_cka":
        # with few images correlations are nearly all 1, and which directions share them is left to rounding
        rounding = 1e-2 if metric == "pwcca" else 2e-5
        np.testing.assert_allclose(found, all_pairs(metric, captured(net, split, NAMES)), atol=rounding)


@pytest.mark.parametrize("count", [2, 3])
def test_two_and_three_images(count: int) -> None:
    net, split = network(), images(count)
    moments = observe(net, split, NAMES)
    for metric in ("r2_cca", "linear_cka", "procrustes"):
        expected = all_pairs(metric, captured(net, split, NAMES))
        np.testing.assert_allclose(similarity(moments, metric)[0], expected, atol=1e-5)
    for metric in ("debiased_cka", "rbf_cka"):
        with pytest.raises(SettingError, match="at least 4 images"):
            similarity(moments, metric)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_an_error(count: int) -> None:
    with pytest.raises(SettingError, match=f"at least 2 images; got {count}"):
        observe(network(), images(count), NAMES)


@pytest.mark.parametrize("count", [*range(2, 60), 79, 80, 81, 399, 10_000])
def test_blocks_cover_all_images_and_hold_four_each(count: int) -> None:
    bounds = block_bounds(count)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, count)
    assert len(sizes) == max(1, min(20, count // 4))
    assert sizes.min() >= min(4, count)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("widths", "count", "kept"), [({"third": 300}, 1200, "_KeptFeatures"), ({"third": 75}, 4000, "_KeptSums")]
)
def test_what_is_spilled_to_disk_is_what_would_stay_in_memory(widths: dict[str, int], count: int, kept: str) -> None:
    net, split = network(**widths), images(count)
    found = [observe(net, split, NAMES, config=ObserveConfig(memory_mib=mib, rbf=False)) for mib in (1, 1024)]
    assert [kind(moments) for moments in found] == [kept, kept]
    spilled, held = found
    assert not spilled.seconds.keys() ^ {"tapped_forward", "sums"}
    channels, blocks = slice(0, held.starts[-1]), torch.eye(20, dtype=torch.float64)
    there, here = (moments.products.between(channels, channels, blocks) for moments in found)
    assert torch.equal(there, here)
    for metric in ("linear_cka", "debiased_cka"):
        assert np.array_equal(similarity(spilled, metric), similarity(held, metric))
    if kept == "_KeptFeatures":
        expected = all_pairs("linear_cka", captured(net, split, NAMES))
        np.testing.assert_allclose(similarity(spilled, "linear_cka")[0], expected, atol=2e-6)


def test_a_spill_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    moments = observe(network(third=300), images(1200), NAMES, config=ObserveConfig(memory_mib=1, rbf=False))
    assert list(tmp_path.iterdir()) == []
    assert np.isfinite(similarity(moments, "linear_cka")).all()


def test_no_room_to_spill_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "below"))
    with pytest.raises(SettingError, match="Cannot spill 1 MiB") as caught:
        observe(network(third=300), images(1200), NAMES, config=ObserveConfig(memory_mib=1))
    assert "--memory" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bf16_is_close() -> None:
    net, split = network(), images(400)
    exact, rough = (observe(net, split, NAMES, config=ObserveConfig(precision=p)) for p in ("fp32", "bf16"))
    assert not np.array_equal(similarity(exact, "linear_cka"), similarity(rough, "linear_cka"))
    for metric in METRICS:
        np.testing.assert_allclose(similarity(rough, metric), similarity(exact, metric), atol=0.03)


def test_nan_weights_name_the_first_layer_that_is_broken() -> None:
    net = network()
    with torch.no_grad():
        net.module.get_submodule("second").weight[0, 0, 0, 0] = torch.nan  # type: ignore[index, operator, union-attr]
    with pytest.raises(DivergenceError, match="Layer second ") as caught:
        observe(net, images(40), NAMES)
    assert "\n" not in str(caught.value)


def test_an_unknown_layer_and_metric() -> None:
    net, split = network(), images(40)
    with pytest.raises(UnknownNameError, match="'secnd'; nearest known: second"):
        observe(net, split, ["secnd"])
    moments = observe(net, split, NAMES, config=ObserveConfig(rbf=False))
    with pytest.raises(UnknownNameError, match="linear_cka"):
        similarity(moments, "linear")
    with pytest.raises(SettingError, match="rbf=True"):
        similarity(moments, "rbf_cka")


@pytest.mark.parametrize("setting", [{"grid": 0}, {"batch_size": 3}, {"memory_mib": 0}, {"bandwidth": 0.0}])
def test_settings_out_of_range(setting: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="expected at least 1, 4, 1 and above 0"):
        ObserveConfig(**setting)  # type: ignore[arg-type]


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(SettingError, match="fp16"):
        observe(network(), images(40), NAMES, config=ObserveConfig(precision="fp16"))


def test_looking_leaves_the_network_as_it_was() -> None:
    net = network()
    net.module.train()
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    observe(net, images(40), NAMES)
    assert net.module.training
    assert all(torch.equal(value, before[name]) for name, value in net.module.state_dict().items())
    assert not any(module._forward_hooks for module in net.module.modules())


class Gate(nn.Module):
    """A layer that is constant on all dark images: a rectifier that hardly ever opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = nn.Identity()
        self.free = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.gated(torch.relu(x - 0.5) + 0.1)
        return (shifted + self.free(x)).mean((2, 3))


@pytest.mark.parametrize("metric", METRICS)
def test_a_layer_that_is_constant_in_a_part_is_like_nothing_there(metric: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (400, 4, 4, 3), dtype=np.uint8)
    pixels[:40] += 120  # two of the blocks are bright
    split = MemorySplit(torch.from_numpy(pixels), torch.zeros(400, dtype=torch.int64), torch.arange(400), classes=())
    net = Network("gate", Gate(), InputSpec((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 3)
    moments = observe(net, split, ("gated", "free"), config=ObserveConfig(batch_size=20))
    parts = torch.ones(2, 20, dtype=torch.bool)
    parts[1, :2] = False
    bright, dark = similarity(moments, metric, parts=parts)
    assert bright[0, 0] == pytest.approx(1, abs=1e-6)
    assert dark[1, 1] == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(dark[0], [0, 0])
    np.testing.assert_array_equal(dark[:, 0], [0, 0])


def test_a_dead_layer_in_every_image() -> None:
    net = network()
    with torch.no_grad():
        for parameter in net.module.get_submodule("second").parameters():
            parameter.zero_()
    moments = observe(net, images(200), ("first", "second"), config=ObserveConfig(batch_size=10))
    for metric in METRICS:
        np.testing.assert_allclose(similarity(moments, metric)[0], [[1, 0], [0, 0]], atol=1e-6)


class Wide(nn.Module):
    """Blocks as wide as those of a ResNet-50, nearly without arithmetic."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, width, 1) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([block(x).mean((2, 3))[:, :1] for block in self.blocks], dim=1)


@pytest.mark.parametrize(
    "widths",
    [
        pytest.param([256, 2048, 512]),
        pytest.param([256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3, marks=pytest.mark.slow),
    ],
)
def test_blocks_as_wide_as_those_of_a_resnet50(widths: list[int]) -> None:
    net, split = Network("wide", Wide(widths).eval(), SPEC, len(widths)), images(60)
    names = tuple(f"blocks.{k}" for k in range(len(widths)))
    moments = observe(net, split, names, config=ObserveConfig(memory_mib=1 if len(widths) < 5 else 64))
    assert kind(moments) == "_KeptFeatures"
    found = similarity(moments, "linear_cka")[0]
    x, y = captured(net, split, names[:2]).values()
    assert found[0, 1] == pytest.approx(plain("linear_cka", x, y), abs=1e-5)
    np.testing.assert_allclose(np.diag(found), 1)


def test_a_vision_transformer() -> None:
    timm = pytest.importorskip("timm")
    assert timm
    from keyhole.models.layers import layers
    from keyhole.models.zoo import build

    net = build("timm:vit_tiny_patch16_224", classes=10)
    names = [layer.name for layer in layers(net)]
    assert len(names) == 12
    moments = observe(net, images(8), names)
    found = similarity(moments, "debiased_cka")[0]
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
    assert found[0, 1] > found[0, 11]


def test_consensus_is_the_mean_rank_by_hand() -> None:
    a = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])  # ranks 1, 0, 0.5 of pairs (0,1), (0,2), (1,2)
    b = np.array([[1, 0.3, 0.3], [0.3, 1, 0.8], [0.3, 0.8, 1]])  # ranks 0.25, 0.25, 1
    expected = np.array([[1, 0.625, 0.125], [0.625, 1, 0.75], [0.125, 0.75, 1]])
    np.testing.assert_allclose(consensus([a, b]), expected)


def test_consensus_does_not_notice_a_monotone_transform() -> None:
    random = np.random.default_rng(0)
    values = [random.uniform(0.1, 1, size=(7, 7)) for _ in range(3)]
    matrices = [(value + value.T) / 2 for value in values]
    changed = [matrices[0] ** 9, np.log(matrices[1]), -1 / matrices[2]]
    np.testing.assert_array_equal(consensus(matrices), consensus(changed))
    assert not np.array_equal(consensus(matrices), consensus([matrices[0], *[m.T[::-1] for m in matrices[1:]]]))


def test_consensus_of_one_or_two_layers() -> None:
    np.testing.assert_array_equal(consensus([np.array([[0.4]])]), [[1]])
    np.testing.assert_array_equal(consensus([np.array([[1, 0.4], [0.4, 1]])]), [[1, 0], [0, 1]])


def test_the_gaussian_sums_can_be_left_out() -> None:
    with_them, without = (
        observe(network(), images(100), NAMES, config=ObserveConfig(rbf=rbf)) for rbf in (True, False)
    )
    assert with_them.rbf is not None
    assert without.rbf is None
    assert torch.equal(with_them.norms, without.norms)
