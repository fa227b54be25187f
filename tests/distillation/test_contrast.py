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
    torch.manual_seed(0)  # of the embeddings
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
    student, teacher, indices = torch.randn(2, 3), torch.randn(2, 4), torch.tensor([6, 1])
    sides = (("student", student), ("teacher", teacher))
    before = {name: getattr(made, f"{name}_memory").clone() for name, _ in sides}
    with torch.no_grad():
        vectors = {name: functional.normalize(getattr(made, name)(feature), dim=1) for name, feature in sides}
    made(student, teacher, indices).backward()
    rest = [0, 2, 3, 4, 5, 7]
    for name, _ in sides:
        memory = getattr(made, f"{name}_memory")
        expected = functional.normalize(0.5 * before[name][indices] + 0.5 * vectors[name], dim=1)
        torch.testing.assert_close(memory[indices], expected)
        assert torch.equal(memory[rest], before[name][rest])


def test_the_second_step_is_normalized_like_the_first_and_sees_what_the_first_remembered() -> None:
    made = contrast()
    indices = torch.tensor([0, 5, 3])
    first = [torch.randn(3, 3), torch.randn(3, 4)]
    made(*first, indices).backward()
    student, teacher = torch.randn(3, 3), torch.randn(3, 4)
    drawn = torch.cat([indices[:, None], made.draw(indices)], dim=1)
    noise, expected = 5 / 7, 0.0
    with torch.no_grad():
        for side, memory, feature, scale in (
            (made.student, made.teacher_memory, student, made.normalization[0]),
            (made.teacher, made.student_memory, teacher, made.normalization[1]),
        ):
            vectors = functional.normalize(side(feature), dim=1)
            for i, row in enumerate(drawn.tolist()):
                scores = [float(torch.exp(vectors[i] @ memory[k] / 0.07) / scale) for k in row]
                expected -= np.log(scores[0] / (scores[0] + noise))
                expected -= sum(np.log(noise / (score + noise)) for score in scores[1:])
    assert made(student, teacher, indices).item() == pytest.approx(expected / 3, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 3, 4, 4), (3, 3, 2, 2), (3, 3)])
def test_features_of_every_form_are_contrasted(shape: tuple[int, ...]) -> None:
    loss = contrast()(torch.randn(shape, requires_grad=True), torch.randn(3, 4, 2, 2), torch.tensor([0, 5, 3]))
    loss.backward()
    assert bool(loss.isfinite())


def test_half_precision_is_computed_in_full() -> None:
    student, teacher, indices = torch.randn(3, 3), torch.randn(3, 4), torch.tensor([0, 5, 3])
    full = contrast()(student, teacher, indices).item()
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast()(student, teacher, indices)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 2**62, 2**63 - 1])
def test_every_seed_draws(seed: int) -> None:
    assert contrast(seed=seed).draw(torch.tensor([0])).shape == (1, 5)


def test_a_restored_one_draws_as_the_old_one_would() -> None:
    made, other = contrast(), contrast()
    indices = torch.tensor([0, 3])
    for _ in range(3):
        made(torch.randn(2, 3), torch.randn(2, 4), indices).backward()
    other.draw(indices)
    other.load_state_dict(made.state_dict())
    assert torch.equal(made.draw(indices), other.draw(indices))


def test_looking_without_learning_changes_nothing() -> None:
    made = contrast()
    made(torch.randn(2, 3), torch.randn(2, 4), torch.tensor([0, 1])).backward()
    check_looking_changes_nothing(made)


def test_looking_before_the_first_step_changes_nothing() -> None:
    check_looking_changes_nothing(contrast())


def check_looking_changes_nothing(made: Contrast) -> None:
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
