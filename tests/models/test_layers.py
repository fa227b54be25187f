from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import shaken
from keyhole.errors import SettingError, ShapeError, UnknownNameError
from keyhole.models.frozen import freeze
from keyhole.models.layers import Layer, Tapped, as_map, find_layer, layers, stage_ends, tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

SMALL = InputSpec((32, 32), (0.5,) * 3, (0.5,) * 3)
NAMES = ["layer1.0", "layer2.0", "layer3.0", "fc"]


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def plain(module: nn.Module, channels: int = 3, size_px: tuple[int, int] = (8, 8), classes: int = 3) -> Network:
    return Network("plain", module.eval(), InputSpec(size_px, (0.5,) * channels, (0.5,) * channels), classes)


def convnet(*after: nn.Module, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
        *after,
    )


# tap


def test_tapped_outputs_are_those_of_the_layers() -> None:
    module = build("resnet8", classes=5).module
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), tap(module, NAMES) as features:
        output = module(x)
        stem = torch.relu(module.bn1(module.conv1(x)))
        expected = {"layer1.0": module.layer1(stem)}
        expected["layer2.0"] = module.layer2(expected["layer1.0"])
        expected["layer3.0"] = module.layer3(expected["layer2.0"])
    assert list(features) == NAMES
    for name, value in expected.items():
        assert torch.equal(features[name], value)
    assert torch.equal(features["fc"], output)


def test_each_forward_pass_fills_the_features_anew() -> None:
    module = build("resnet8", classes=5).module
    with torch.no_grad(), tap(module, ["layer1"]) as features:
        module(torch.rand(2, 3, 32, 32))
        first = features["layer1"]
        module(torch.rand(1, 3, 16, 16))
    assert first.shape == (2, 16, 32, 32)
    assert features["layer1"].shape == (1, 16, 16, 16)


def test_hooks_are_gone_afterwards() -> None:
    module = build("resnet8", classes=5).module
    with tap(module, NAMES) as features:
        assert hooks_of(module) == len(NAMES)
    assert hooks_of(module) == 0
    module(torch.rand(1, 3, 32, 32))
    assert features == {}


def test_hooks_are_gone_after_an_exception_inside() -> None:
    module = build("resnet8", classes=5).module
    with pytest.raises(RuntimeError), tap(module, NAMES):
        module(torch.rand(1, 4, 32, 32))
    assert hooks_of(module) == 0


@pytest.mark.parametrize("unknown", ["layer1.7", "", "layer4"])
def test_an_unknown_layer_lists_the_nearest_and_leaves_no_hook(unknown: str) -> None:
    module = build("resnet8", classes=5).module
    with pytest.raises(UnknownNameError) as caught, tap(module, ["layer1", unknown]):
        pass
    assert hooks_of(module) == 0
    assert len(str(caught.value).splitlines()) == 1
    assert f"Unknown layer {unknown!r}" in str(caught.value)
    if unknown:
        assert "nearest known: layer" in str(caught.value)


def test_find_layer_gives_the_very_module() -> None:
    module = build("resnet8", classes=5).module
    assert find_layer(module, "layer2.0.conv1") is module.layer2[0].conv1


def test_tap_reduces_at_once() -> None:
    module = build("resnet8", classes=5).module
    with tap(module, ["layer1"], reduce=lambda feature: feature.mean(dim=(2, 3))) as features:
        module(torch.rand(2, 3, 32, 32))
    assert features["layer1"].shape == (2, 16)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_feature_is_what_the_layer_gave_whatever_comes_after_it(inplace: bool) -> None:
    module = convnet(inplace=inplace).eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), tap(module, ["1"]) as features:
        module(x)
        expected = module[1](module[0](x))
    assert expected.min() < 0
    assert torch.equal(features["1"], expected)


def test_gradients_reach_the_network_through_a_feature() -> None:
    module = build("resnet8", classes=5).module
    with tap(module, ["layer1"]) as features:
        module(torch.rand(1, 3, 32, 32))
    features["layer1"].sum().backward()
    assert module.conv1.weight.grad.abs().sum() > 0
    assert module.fc.weight.grad is None


class Pair(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.wrap = Wrap(wrap)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.wrap(y)
        return self.head(y)


class Wrap(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: [x, x + 1], lambda x: ((x, 1), 2)])
def test_of_a_tuple_the_first_tensor_is_taken(wrap: Callable[[Tensor], Any]) -> None:
    module = Pair(wrap)
    with torch.no_grad(), tap(module, ["inner", "wrap"]) as features:
        module(torch.rand(3, 4))
    assert torch.equal(features["wrap"], features["inner"])


@pytest.mark.parametrize("wrap", [lambda x: None, lambda x: {"a": x}, lambda x: ()])
def test_an_output_that_is_no_tensor_is_an_error_when_tapped(wrap: Callable[[Tensor], Any]) -> None:
    module = Pair(wrap)
    with pytest.raises(ShapeError, match=r"Layer wrap returned a \w+; expected a tensor"), tap(module, ["wrap"]):
        module(torch.rand(3, 4))
    assert hooks_of(module) == 0


def test_tap_on_a_transformer_gives_tokens() -> None:
    pytest.importorskip("timm")
    network = build("timm:vit_tiny_patch16_224", classes=5)
    with torch.no_grad(), tap(network.module, ["blocks.0", "blocks.11"]) as features:
        network(torch.rand(2, 3, 32, 32))
    assert features["blocks.11"].shape == (2, 197, 192)
    assert as_map(features["blocks.11"]).shape == (2, 192, 14, 14)


def test_tap_under_autocast() -> None:
    module = build("resnet8", classes=5).module
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), tap(module, ["layer1.0.conv1", "layer3"]) as features:
        module(torch.rand(2, 3, 32, 32))
    assert features["layer1.0.conv1"].dtype == torch.bfloat16
    assert features["layer3"].shape == (2, 64, 8, 8)


def compiled_whole(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def compiled_part(module: nn.Module) -> nn.Module:
    module.layer2.compile(backend="eager")
    return module


@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_place, compiled_part])
def test_tap_on_a_module_that_was_compiled_before(compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch.compiler.reset()
    original = build("resnet8", classes=5).module
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        with tap(original, [*NAMES, "layer2.0.conv1"]) as expected:
            original(x)
        module = compiled(original)
        module(x)
        with tap(module, [*NAMES, "layer2.0.conv1"]) as features:
            module(x)
    assert features.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(features[name], value)
    assert hooks_of(original) == 0


# Tapped


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_tapped_gives_the_same_values_compiled(backend: str) -> None:
    torch.compiler.reset()
    module = shaken(build("resnet8", classes=5)).module
    tapped = Tapped(module, NAMES)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output, features = tapped(x)
        tapped.compile(backend=backend, dynamic=False)
        for _ in range(2):
            output_again, features_again = tapped(x)
            torch.testing.assert_close(output_again, output)
            assert list(features_again) == NAMES
            for name in NAMES:
                torch.testing.assert_close(features_again[name], features[name])


def test_tapped_shares_its_weights_and_closes() -> None:
    module = build("resnet8", classes=5).module
    tapped = Tapped(module, ["layer1"])
    assert {id(p) for p in tapped.parameters()} == {id(p) for p in module.parameters()}
    tapped.close()
    assert hooks_of(module) == 0


def test_a_module_that_ran_by_itself_leaves_nothing_once_it_is_forgotten() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    tapped = Tapped(net, ["0"])
    net(torch.ones(5, 4))
    assert tapped._features
    tapped.forget()
    assert not tapped._features
    assert tapped(torch.ones(5, 4))[1].keys() == {"0"}


def test_two_taps_on_one_module_do_not_meet() -> None:
    module = build("resnet8", classes=5).module
    first, second = Tapped(module, ["layer1"]), Tapped(module, ["layer1", "layer3"])
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert list(first(x)[1]) == ["layer1"]
        assert list(second(x)[1]) == ["layer1", "layer3"]


# as_map


@pytest.mark.parametrize(
    ("shape", "mapped"),
    [
        ((2, 3, 5, 5), (2, 3, 5, 5)),
        ((2, 8, 4, 4), (2, 8, 4, 4)),
        ((2, 5, 5, 5), (2, 5, 5, 5)),
        ((2, 6, 4, 7), (2, 6, 4, 7)),
        ((2, 7, 7, 96), (2, 7, 7, 96)),
        ((2, 96, 1, 1), (2, 96, 1, 1)),
        ((2, 196, 8), (2, 8, 14, 14)),
        ((2, 197, 8), (2, 8, 14, 14)),
        ((2, 201, 8), (2, 8, 14, 14)),
        ((2, 1, 8), (2, 8, 1, 1)),
        ((2, 6, 8), (2, 8, 2, 2)),
        ((2, 48, 8), (2, 8, 48, 1)),
        ((2, 8), (2, 8, 1, 1)),
    ],
)
def test_every_feature_becomes_a_map(shape: tuple[int, ...], mapped: tuple[int, ...]) -> None:
    assert as_map(torch.zeros(shape)).shape == mapped


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_laid_out_row_by_row_without_those_in_front(prefix: int) -> None:
    tokens = torch.rand(2, prefix + 49, 3)
    found = as_map(tokens)
    for row in range(7):
        for column in range(7):
            assert torch.equal(found[:, :, row, column], tokens[:, prefix + 7 * row + column])


@pytest.mark.parametrize(
    ("image", "shape", "mapped"),
    [
        ((32, 32), (2, 7, 7, 96), (2, 96, 7, 7)),
        ((32, 32), (2, 1, 1, 96), (2, 96, 1, 1)),
        ((32, 32), (2, 96, 1, 1), (2, 96, 1, 1)),
        ((32, 32), (2, 5, 5, 5), (2, 5, 5, 5)),
        ((32, 32), (2, 4, 4, 7), (2, 7, 4, 4)),
        ((128, 64), (2, 64, 64, 32), (2, 64, 64, 32)),  # as many channels as rows
        ((64, 128), (2, 64, 32, 64), (2, 64, 32, 64)),  # as many as columns
        ((128, 64), (2, 64, 32, 64), (2, 64, 64, 32)),
        ((64, 128), (2, 32, 64, 64), (2, 64, 32, 64)),
        ((100, 75), (2, 64, 50, 38), (2, 64, 50, 38)),  # a form that rounding changed
        ((100, 75), (2, 13, 10, 96), (2, 96, 13, 10)),
        ((32, 100), (2, 512, 1, 25), (2, 512, 1, 25)),  # height alone was made smaller, as for a line of text
        ((256, 128), (2, 129, 8), (2, 8, 16, 8)),  # 121 of them would be a square
        ((128, 256), (2, 133, 8), (2, 8, 8, 16)),
        ((256, 192), (2, 197, 8), (2, 8, 16, 12)),
        ((256, 128), (2, 200, 8), (2, 8, 20, 10)),
        ((256, 128), (2, 150, 8), (2, 8, 150, 1)),
        ((256, 128), (2, 8), (2, 8, 1, 1)),
    ],
)
def test_the_form_of_the_image_tells_where_the_channels_are(
    image: tuple[int, int], shape: tuple[int, ...], mapped: tuple[int, ...]
) -> None:
    assert as_map(torch.zeros(shape), image).shape == mapped


def test_channels_in_the_last_place_are_brought_to_the_front() -> None:
    feature = torch.rand(2, 5, 5, 3)
    assert torch.equal(as_map(feature, (10, 10))[1, 2, 3, 4], feature[1, 3, 4, 2])


class ColorLast(nn.Module):
    """Blocks that give (n, h, w, c), as Swin's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))
        return answer


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (32, 32)])
def test_one_network_is_read_one_way_whatever_the_form_of_its_images(size: tuple[int, int]) -> None:
    small = (size[0] // 4, size[1] // 4)
    spec = InputSpec(size, (0.5,) * 3, (0.5,) * 3)
    first = Network("first", nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 1), nn.Flatten()), spec, 5)
    last = Network("last", ColorLast(16), spec, 5)
    for network, pattern in ((first, "0,1"), (last, "blocks.*.0")):
        names = [layer.name for layer in layers(network, pattern)]
        assert {(layer.channels, layer.size) for layer in layers(network, pattern)} == {(16, small)}
        images = torch.rand(2, 3, *size)
        with torch.no_grad(), tap(network.module, names) as raw:
            network.module(images)
        _, features = freeze(network, names)(images)
        for name, feature in features.items():
            order = (0, 1, 2, 3) if network is first else (0, 3, 1, 2)
            torch.testing.assert_close(feature, raw[name].permute(order))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4, 5, 6)])
def test_other_numbers_of_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        as_map(torch.zeros(shape))


# layers


@pytest.mark.parametrize(
    ("name", "size", "count", "first", "last", "ends"),
    [
        ("resnet50", 64, 16, "layer1.0", "layer4.2", ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]),
        ("vit_tiny_patch16_224", 224, 12, "blocks.0", "blocks.11", ["blocks.11"]),
        ("swin_tiny_patch4_window7_224", 224, 12, "layers.0.blocks.0", "layers.3.blocks.1", None),
        ("mobilenetv2_100", 64, 16, "blocks.1.0", "blocks.6.0", None),
        ("convnext_atto", 64, 12, "stages.0.blocks.0", "stages.3.blocks.1", None),
    ],
)
def test_residual_blocks_of_well_known_networks(
    name: str, size: int, count: int, first: str, last: str, ends: list[str] | None
) -> None:
    pytest.importorskip("timm")
    network = build(f"timm:{name}", classes=5, input=InputSpec((size, size), (0.5,) * 3, (0.5,) * 3))
    found = layers(network)
    assert (len(found), found[0].name, found[-1].name) == (count, first, last)
    assert len({layer.kind for layer in found}) == 1
    if ends:
        assert [layer.name for layer in stage_ends(found)] == ends


def test_repeated_blocks_of_a_network_without_additions() -> None:
    pytest.importorskip("timm")
    found = layers(build("timm:densenet121", classes=5, input=SMALL))
    assert [layer.name for layer in found if layer.kind == "DenseBlock"] == [
        f"features.denseblock{i}" for i in (1, 2, 3, 4)
    ]
    assert {layer.kind for layer in found} == {"DenseBlock", "DenseTransition"}


def test_layers_are_described() -> None:
    found = layers(build("resnet20", classes=5))
    assert len(found) == 9
    assert found[3] == Layer("layer2.0", "BasicBlock", 32, (16, 16), 9 * 32 * (16 + 32) + 16 * 32 + 6 * 32)
    assert [layer.size[0] for layer in found] == [32] * 3 + [16] * 3 + [8] * 3


@pytest.mark.parametrize(
    "after", [(), (nn.Softmax(dim=1),), (nn.Unflatten(1, (3, 1)), nn.Flatten())], ids=["none", "softmax", "reshape"]
)
def test_weighted_layers_of_a_plain_network_leave_out_the_output_layer(after: tuple[nn.Module, ...]) -> None:
    assert [layer.name for layer in layers(plain(convnet(*after)))] == ["0", "3"]


def test_a_pattern_takes_any_layers_in_the_order_in_which_they_run() -> None:
    network = build("resnet20", classes=5)
    assert [layer.name for layer in layers(network, "layer?.0")] == ["layer1.0", "layer2.0", "layer3.0"]
    assert [layer.name for layer in layers(network, "fc, layer1.?.conv2")] == [
        "layer1.0.conv2",
        "layer1.1.conv2",
        "layer1.2.conv2",
        "fc",
    ]
    assert layers(network, "fc")[0].size == (1, 1)


@pytest.mark.parametrize("pattern", ["nope*", "", ",", "Layer1"])
def test_a_pattern_without_a_layer_is_one_line(pattern: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        layers(build("resnet8", classes=5), pattern)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("module", [nn.Linear(192, 3), nn.Identity()])
def test_a_network_without_layers_to_choose_from(module: nn.Module) -> None:
    with pytest.raises(SettingError, match="plain has no layers to choose from"):
        layers(plain(nn.Sequential(nn.Flatten(), module)))


def test_looking_for_layers_changes_nothing() -> None:
    network = shaken(build("resnet8", classes=5))
    network.module.train()
    network.module.layer2.eval()
    modes = [part.training for part in network.module.modules()]
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    state = torch.get_rng_state()
    layers(network)
    layers(network, "fc")
    assert [part.training for part in network.module.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())
    assert hooks_of(network.module) == 0
    assert torch.equal(state, torch.get_rng_state())


def test_a_network_that_fails_is_left_as_it_was() -> None:
    network = plain(convnet(), channels=4)
    network.module.train()
    with pytest.raises(RuntimeError):
        layers(network)
    assert all(part.training for part in network.module.modules())
    assert hooks_of(network.module) == 0


def test_layers_of_a_network_in_half_precision() -> None:
    network = build("resnet8", classes=5)
    network.module.to(torch.bfloat16)
    assert len(layers(network)) == 3


class Residual(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.inplace:
            y += x
            return y
        return y + x


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_blocks_are_found_by_what_they_do(inplace: bool) -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(inplace), nn.ReLU(), Residual(inplace))
    network = plain(nn.Sequential(body, nn.Flatten(), nn.Linear(256, 3)))
    assert [layer.name for layer in layers(network)] == ["0.1", "0.3"]


class Biased(nn.Module):
    """Adds a parameter of its output's shape, as a position embedding is: no residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bias = nn.Parameter(torch.rand(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.bias


def test_adding_a_parameter_is_no_residual_block() -> None:
    network = plain(nn.Sequential(Biased(), Biased(), nn.Flatten(), nn.Linear(192, 3)))
    assert [layer.name for layer in layers(network)] == ["0.conv", "0", "1.conv", "1"]


def test_stage_ends_of_nothing_and_of_one() -> None:
    one = Layer("a", "Conv2d", 3, (4, 4), 1)
    assert stage_ends([]) == []
    assert stage_ends([one]) == [one]


def test_a_layer_that_does_not_exist_leaves_no_hook_on_the_others() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(UnknownNameError):
        Tapped(net, ["0", "nope"])
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("size", [(156, 97), (180, 125), (98, 38), (38, 98), (33, 33), (64, 32)])
def test_channels_of_a_network_of_convolutions_are_first_whatever_its_image(size: tuple[int, int]) -> None:
    network = build("resnet20", classes=10, input=InputSpec(size, (0.5,) * 3, (0.5,) * 3))
    sides = [tuple(-(-side // 2**stage) for side in size) for stage in range(3)]
    assert [(layer.channels, layer.size) for layer in layers(network)] == [
        (16 * 2**stage, sides[stage]) for stage in range(3) for _ in range(3)
    ]


@pytest.mark.parametrize(("size", "width"), [((384, 384), 96), ((256, 128), 16), ((256, 128), 32), ((64, 64), 48)])
def test_channels_of_layers_over_the_last_dimension_are_last(size: tuple[int, int], width: int) -> None:
    network = Network("net", ColorLast(width), InputSpec(size, (0.5,) * 3, (0.5,) * 3), 5)
    form = (size[0] // 4, size[1] // 4)
    assert {(layer.channels, layer.size) for layer in layers(network)} == {(width, form)}
    image = torch.rand(1, 3, *size)
    _, features = Tapped(network.module, ["blocks.0"], image=size)(image)
    module = network.module
    assert isinstance(module, ColorLast)
    expected = module.blocks[0](module.stem(image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(features["blocks.0"], expected)
