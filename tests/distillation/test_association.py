"""How much each student layer takes from each teacher layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import oracles
from keyhole.distillation.association import Association
from keyhole.distillation.kinds import HintPair, Setting, View
from keyhole.distillation.terms import Term, build_term
from keyhole.errors import ShapeError

STUDENT, TEACHER = (3, 5), (4, 2, 6)
SIZES = ((8, 4), (8, 4, 2))


BATCH = 12


def made(batch: int = BATCH) -> tuple[Association, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    associate = Association(STUDENT, TEACHER, batch_size=batch)
    features = [
        [torch.randn(batch, c, side, side) for c, side in zip(channels, sizes, strict=True)]
        for channels, sizes in zip((STUDENT, TEACHER), SIZES, strict=True)
    ]
    return associate, *features


def weights(embedding: nn.Module) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in embedding.parameters()]


def test_the_loss_is_that_of_the_oracle() -> None:
    associate, student, teacher = made()
    differences = np.zeros((BATCH, len(STUDENT), len(TEACHER)))
    for s, own in enumerate(student):
        for t, hint in enumerate(teacher):
            side = min(own.shape[2], hint.shape[2])
            small, wanted = (oracles.average_to(each.double().numpy(), side, side) for each in (own, hint))
            project: nn.Module = associate.projections[s * len(TEACHER) + t]
            with torch.no_grad():
                projected = project(torch.from_numpy(small).float()).double().numpy()
            differences[:, s, t] = ((projected - wanted) ** 2).mean(axis=(1, 2, 3))
    expected = oracles.associated_loss(
        [[each.double().numpy() for each in side] for side in (student, teacher)],
        [[weights(each) for each in side] for side in (associate.queries, associate.keys)],
        differences,
    )
    assert associate(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_a_projection_has_three_convolutions_over_twice_the_teachers_channels() -> None:
    associate, student, _ = made()
    project: nn.Module = associate.projections[len(TEACHER)]
    first, second, third = (tensor for tensor in project.parameters() if tensor.ndim == 4)
    shapes = [tuple(tensor.shape) for tensor in (first, second, third)]
    assert shapes == [(8, 5, 1, 1), (8, 8, 3, 3), (4, 8, 1, 1)]

    def normed(x: Tensor) -> Tensor:
        return functional.relu(
            (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        )

    inner = normed(functional.conv2d(student[1], first))
    inner = normed(functional.conv2d(inner, second, padding=1))
    torch.testing.assert_close(project(student[1]), functional.conv2d(inner, third), rtol=1e-4, atol=1e-5)


def test_shares_are_parts_of_the_teachers_layers() -> None:
    associate, student, teacher = made()
    shares = associate.shares(student, teacher).detach()
    assert shares.shape == (BATCH, 2, 3)
    torch.testing.assert_close(shares.sum(2), torch.ones(BATCH, 2))
    assert float(shares.min()) > 0
    assert len({tuple(row) for row in shares.flatten(0, 1).tolist()}) == 2 * BATCH  # of its own for each image
    alone = Association(STUDENT, TEACHER[:1], batch_size=BATCH)
    torch.testing.assert_close(alone.shares(student, teacher[:1]), torch.ones(BATCH, 2, 1))


def test_shares_do_not_notice_a_rotation_of_the_channels() -> None:
    associate, student, teacher = made()
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turned = [torch.einsum("nchw,cd->ndhw", student[0], turn), student[1]]
    torch.testing.assert_close(
        associate.shares(turned, teacher), associate.shares(student, teacher), rtol=1e-3, atol=1e-4
    )


def test_the_gradient_reaches_the_student_and_all_that_is_learned_but_not_the_teacher() -> None:
    associate, student, teacher = made()
    for feature in (*student, *teacher):
        feature.requires_grad_()
    associate(student, teacher).backward()
    assert all(feature.grad is None for feature in teacher)
    for tensor in (*student, *associate.parameters()):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0


def test_shares_move_to_the_layer_that_can_be_learned() -> None:
    associate, student, _ = made()
    student = student[:1]
    associate = Association(STUDENT[:1], (3, 3), batch_size=BATCH)
    teacher = [student[0].clone(), 3 * torch.randn(BATCH, 3, 8, 8)]  # the second has nothing to do with the student
    optimizer = torch.optim.Adam(associate.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = associate(student, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert float(associate.shares(student, teacher).detach()[:, 0, 0].mean()) > 0.8


def test_vectors_and_tokens_are_associated_too() -> None:
    associate = Association((3, 5), (4,), batch_size=4)
    found = associate([torch.randn(4, 3), torch.randn(4, 17, 5)], [torch.randn(4, 4, 8, 8)])
    assert found.isfinite()


def test_what_does_not_fit() -> None:
    associate, student, teacher = made()
    with pytest.raises(ShapeError, match="5 images and the association was built for 12"):
        associate([each[:5] for each in student], [each[:5] for each in teacher])
    with pytest.raises(ShapeError, match="0 student and 1 teacher layers"):
        Association([], [3], batch_size=4)


def test_the_term_associates_every_student_layer_with_every_teacher_layer_once() -> None:
    pairs = (HintPair("t0", "s0"), HintPair("t1", "s1"), HintPair("t2", "s1"))
    channels = ((3, 4), (5, 2), (5, 6))
    torch.manual_seed(0)
    term = build_term(Term("semckd", 1.0), Setting(pairs, channels, batch_size=BATCH))
    associate, student, teacher = made()
    view = View(
        torch.zeros(BATCH, 2),
        {"s0": student[0], "s1": student[1]},
        None,
        {f"t{i}": hint for i, hint in enumerate(teacher)},
        torch.zeros(BATCH, dtype=torch.int64),
        torch.arange(BATCH),
    )
    torch.testing.assert_close(term(view), associate(student, teacher))
