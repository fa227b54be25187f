from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import oracles
from keyhole.distillation.contrast import Contrast
from keyhole.errors import ShapeError

LABELS = torch.tensor([0, 0, 2, 1, -1, 2, 2, 0])


def contrast(negatives: int = 5, seed: int = 0) -> Contrast:
    torch.manual_seed(0)
    return Contrast(3, 4, LABELS, negatives=negatives, size=6, seed=seed)


@pytest.mark.parametrize("negatives", [1, 5, 40])
def test_the_loss_is_that_of_the_oracle(negatives: int) -> None:
    made = contrast(negatives)
    student, teacher, indices = torch.randn(3, 3, 2, 2), torch.randn(3, 4, 5, 5), torch.tensor([0, 5, 3])
    drawn = torch.cat([indices[:, None], made.draw(indices)], dim=1)
    with torch.no_grad():
        vectors = [
            functional.normalize(part(feature.mean((2, 3))), dim=1).double().numpy()
            for part, feature in ((made.student, student), (made.teacher, teacher))
        ]
    memories = [made.student_memory.double().numpy().copy(), made.teacher_memory.double().numpy().copy()]
    expected = oracles.contrastive_loss(vectors, memories, drawn.numpy(), 7, 0.07)
    assert made(student, teacher, indices).item() == pytest.approx(expected, rel=1e-4)


def test_both_ways_to_multiply_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from keyhole.distillation import contrast as module

    vectors, memory, chosen = torch.randn(3, 6), torch.randn(50, 6), torch.randint(50, (3, 4))
    few = module._products(vectors, memory, chosen)
    many = module._products(vectors, memory, chosen.repeat(1, 3))
    torch.testing.assert_close(few.repeat(1, 3), many)


def test_negatives_are_images_of_other_classes_and_all_of_them_are_drawn() -> None:
    made = contrast(negatives=4000)
    indices = torch.tensor([0, 2, 3, 5])
    drawn = made.draw(indices)
    for index, row in zip(indices.tolist(), drawn.tolist(), strict=True):
        allowed = {k for k, label in enumerate(LABELS.tolist()) if label not in (-1, int(LABELS[index]))}
        assert set(row) == allowed
        counts = np.array([row.count(k) for k in sorted(allowed)])
        assert counts.min() > 0.85 * 4000 / len(allowed)  # uniform: five standard deviations


def test_draws_depend_on_the_seed_and_the_step_alone() -> None:
    a, b, other = contrast(), contrast(), contrast(seed=1)
    indices = torch.tensor([0, 3])
    torch.rand(5)
    first = a.draw(indices)
    assert torch.equal(first, b.draw(indices))
    assert not torch.equal(first, other.draw(indices))
    a(torch.randn(2, 3), torch.randn(2, 4), indices).backward()
    assert not torch.equal(first, a.draw(indices))
    assert torch.equal(first, b.draw(indices))


def test_the_memory_keeps_half_of_the_old_vector_of_the_images_seen() -> None:
    made = contrast()
    before = made.teacher_memory.clone()
    teacher, indices = torch.randn(2, 4), torch.tensor([6, 1])
    with torch.no_grad():
        vectors = functional.normalize(made.teacher(teacher), dim=1)
    made(torch.randn(2, 3), teacher, indices).backward()
    expected = functional.normalize(0.5 * before[indices] + 0.5 * vectors, dim=1)
    torch.testing.assert_close(made.teacher_memory[indices], expected)
    rest = [0, 2, 3, 4, 5, 7]
    assert torch.equal(made.teacher_memory[rest], before[rest])


def test_looking_without_learning_changes_nothing() -> None:
    made = contrast()
    made(torch.randn(2, 3), torch.randn(2, 4), torch.tensor([0, 1])).backward()
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        made(torch.randn(2, 3), torch.randn(2, 4), torch.tensor([2, 3]))
    made.eval()
    made(torch.randn(2, 3), torch.randn(2, 4), torch.tensor([2, 3]))
    assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())


def test_the_student_learns_to_be_told_from_others() -> None:
    torch.manual_seed(0)
    labels = torch.arange(40) % 4
    teacher = torch.randn(40, 8)
    student = torch.randn(40, 5, requires_grad=True)
    made = Contrast(5, 8, labels, negatives=30, size=16)
    optimizer = torch.optim.SGD([student, *made.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = made(student, teacher, torch.arange(40))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    made = contrast()
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    made(student, teacher, torch.tensor([0, 3])).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in made.parameters())


def test_one_class_leaves_nothing_to_contrast() -> None:
    with pytest.raises(ShapeError, match="at least two classes; got one"):
        Contrast(3, 4, torch.tensor([1, 1, -1]))
