from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from keyhole.data.splits import MemorySplit
from keyhole.distillation.evaluation import Accuracy, evaluate
from keyhole.errors import DataError, DivergenceError
from keyhole.models.network import InputSpec, Network


class Table(nn.Module):
    """Logits from a table; which row is written into the first pixel of the image."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.rows[(x[:, 0, 0, 0] * 255).round().long()])


def asked(rows: list[list[float]], labels: list[int]) -> tuple[Network, MemorySplit]:
    classes = len(rows[0])
    pixels = torch.arange(len(rows), dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 1).contiguous()
    network = Network("table", Table(rows), InputSpec((2, 2), (0.0,), (1.0,)), classes)
    names = tuple(str(k) for k in range(classes))
    return network, MemorySplit(pixels, torch.tensor(labels), torch.arange(len(rows)), names)


ROWS = [
    [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0],  # best 0, then 5, 4, 3, 2
    [0.0, 9.0, 2.0, 3.0, 4.0, 5.0, 1.0],  # best 1, then 5, 4, 3, 2
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5],  # best 5, then 4, 3, 2, 1
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5],
]


@pytest.mark.parametrize(
    ("labels", "top1", "top5"),
    [([0, 1, 5, 5], 1.0, 1.0), ([0, 2, 1, 6], 0.25, 0.75), ([1, 0, 0, 6], 0.0, 0.0), ([2, 2, 1, 1], 0.0, 1.0)],
)
@pytest.mark.parametrize("batch_size", [1, 3, 250])
def test_accuracy_worked_by_hand(labels: list[int], top1: float, top5: float, batch_size: int) -> None:
    network, split = asked(ROWS, labels)
    assert evaluate(network, split, batch_size=batch_size) == Accuracy(top1, top5, 4)


def test_fewer_than_five_classes() -> None:
    network, split = asked([[1.0, 2.0, 3.0]] * 4, [2, 2, 1, 0])
    assert evaluate(network, split) == Accuracy(0.5, 1.0, 4)


def test_the_mode_of_each_part_is_left_as_it_was() -> None:
    network, split = asked(ROWS, [0, 1, 5, 5])
    network.module.train()
    network.module.dropout.eval()
    evaluate(network, split)
    assert network.module.training
    assert not network.module.dropout.training


def test_dropout_is_off() -> None:
    network, split = asked(ROWS, [0, 1, 5, 5])
    network.module.train()
    assert evaluate(network, split).top1 == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_and_the_mode_is_left(value: float) -> None:
    network, split = asked([*ROWS[:3], [value] + [0.0] * 6], [0, 1, 5, 5])
    network.module.train()
    with pytest.raises(DivergenceError, match="table gave NaN or infinite logits"):
        evaluate(network, split)
    assert network.module.training


def test_images_without_labels() -> None:
    network, split = asked(ROWS, [-1, -1, -1, -1])
    with pytest.raises(DataError, match="the images have no labels"):
        evaluate(network, replace(split, classes=()))


def test_no_images() -> None:
    network, split = asked(ROWS, [0, 1, 5, 5])
    with pytest.raises(DataError, match="there are no images"):
        evaluate(network, split.subset([]))


def test_more_classes_than_outputs() -> None:
    network, split = asked(ROWS, [0, 1, 5, 5])
    with pytest.raises(DataError, match="The data has 8 classes and table 7 outputs"):
        evaluate(network, replace(split, classes=tuple("abcdefgh")))


def test_half_precision_gives_nearly_the_same() -> None:
    from keyhole.models.zoo import build

    network = build("resnet8", classes=10)
    split = MemorySplit(
        torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8),
        torch.arange(64) % 10,
        torch.arange(64),
        tuple("abcdefghij"),
    )
    seen: list[torch.dtype] = []
    network.module.conv1.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    full, half = (evaluate(network, split, precision=precision) for precision in ("fp32", "bf16"))
    assert seen == [torch.float32, torch.bfloat16]
    assert half.top5 == pytest.approx(full.top5, abs=0.1)
    assert network.module.conv1.weight.dtype == torch.float32


def test_progress_sees_each_batch() -> None:
    network, split = asked(ROWS, [0, 1, 5, 5])
    seen: list[tuple[str, int, int]] = []

    def progress(items, *, label, total, done=0):  # type: ignore[no-untyped-def]
        for item in items:
            seen.append((label, total, len(item.labels)))
            yield item

    evaluate(network, split, batch_size=3, progress=progress)
    assert seen == [("evaluate table", 2, 3), ("evaluate table", 2, 1)]
