"""Losses of embeddings, each against a slow second version or a case worked by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from keyhole.distillation.embeddings import (
    MarginSoftmax,
    SimilarityQueue,
    attention_similarity_loss,
    embedding_loss,
    relation_loss,
)
from keyhole.errors import SettingError, ShapeError
from keyhole.models.layers import as_map


def two(count: int = 6, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator), torch.randn(count, size, generator=generator)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_embedding_loss_equals_a_loop() -> None:
    student, teacher = two()
    expected = np.mean([1 - cosine(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    assert embedding_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert embedding_loss(teacher, -2 * teacher).item() == pytest.approx(2)


def test_relation_loss_equals_a_loop() -> None:
    student, teacher = two()
    gaps = [
        (cosine(student[i].numpy(), teacher[j].numpy()) - cosine(teacher[i].numpy(), teacher[j].numpy())) ** 2
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert relation_loss(student, teacher).item() == pytest.approx(np.mean(gaps), rel=1e-5)
    assert relation_loss(student[:1], teacher[:1]).item() == 0


def test_attention_similarity_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(3, 4, 6, 6, generator=generator), torch.randn(3, 4, 3, 3, generator=generator)
    expected = []
    for s, t in zip(student.double(), teacher.double(), strict=True):
        pooled = s.reshape(4, 3, 2, 3, 2).mean(dim=(2, 4))
        place = cosine(pooled.square().mean(0).flatten().numpy(), t.square().mean(0).flatten().numpy())
        channel = cosine(pooled.square().mean((1, 2)).numpy(), t.square().mean((1, 2)).numpy())
        expected.append(1 - (place + channel) / 2)
    assert attention_similarity_loss(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-4)
    tokens, wider = torch.rand(4, 17, 6), torch.rand(4, 17, 9)  # of a small and a larger transformer
    found = attention_similarity_loss(tokens, wider)
    assert found.item() == pytest.approx(attention_similarity_loss(as_map(tokens), as_map(wider)).item())
    other = attention_similarity_loss(student[:, :3], teacher)  # other channels: places alone
    pooled = student[:, :3].reshape(3, 3, 3, 2, 3, 2).mean(dim=(3, 5))
    places = [
        1 - cosine(s.square().mean(0).flatten().numpy(), t.square().mean(0).flatten().numpy())
        for s, t in zip(pooled, teacher, strict=True)
    ]
    assert other.item() == pytest.approx(np.mean(places), rel=1e-4)


@pytest.mark.parametrize("loss", [embedding_loss, relation_loss, attention_similarity_loss])
def test_gradients_are_right_and_the_teacher_gets_none(loss) -> None:  # type: ignore[no-untyped-def]
    shape = (3, 2, 4, 4) if loss is attention_similarity_loss else (3, 4)
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(shape, generator=generator).requires_grad_()
    teacher = torch.randn(shape, generator=generator).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    step = torch.randn(shape, generator=generator) * 1e-2
    with torch.no_grad():
        slope = (loss(student + step, teacher) - loss(student - step, teacher)).item() / 2
    assert slope == pytest.approx((student.grad * step).sum().item(), rel=0.05, abs=1e-5)


def test_margin_softmax_equals_its_formula() -> None:
    embeddings, _ = two(5, 4)
    people = torch.tensor([0, 2, 1, -1, 2])
    head = MarginSoftmax(4, 3, margin=0.4, scale=16.0, seed=1)
    losses = []
    for embedding, person in zip(embeddings.numpy(), people.tolist(), strict=True):
        if person < 0:
            continue
        angles = [math.acos(cosine(embedding, w)) for w in head.weight.detach().numpy()]
        logits = [16 * math.cos(a + 0.4 * (k == person)) for k, a in enumerate(angles)]
        if angles[person] > math.pi - 0.4:
            logits[person] = 16 * (math.cos(angles[person]) - 0.4 * math.sin(0.4))
        losses.append(math.log(sum(math.exp(x) for x in logits)) - logits[person])
    assert head(embeddings, people).item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert head(embeddings, torch.full((5,), -1)).item() == 0


def test_a_margin_makes_it_harder_and_the_loss_rises_with_the_angle() -> None:
    """The other person lies at a right angle to all embeddings, so that only the own angle changes."""
    angles = torch.linspace(0, math.pi, 200)
    embeddings = torch.stack([angles.cos(), angles.sin(), torch.zeros(200)], dim=1)
    values = {}
    for margin in (0.0, 0.5):
        head = MarginSoftmax(3, 2, margin=margin, scale=8.0)
        head.weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        values[margin] = [head(embedding[None], torch.tensor([0])).item() for embedding in embeddings]
        assert all(later >= earlier - 1e-6 for earlier, later in pairwise(values[margin]))
    assert all(harder > plain for harder, plain in zip(values[0.5], values[0.0], strict=True))


def test_similarity_queue_equals_loops_over_what_it_has_seen() -> None:
    generator = torch.Generator().manual_seed(3)
    batches = [[torch.randn(4, 5, generator=generator) for _ in "st"] for _ in range(4)]
    queue, seen = SimilarityQueue(5, length=6, temperature=0.2), []
    for student, teacher in batches:
        others = [*teacher.numpy(), *seen]
        losses = []
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
            asked, given_ = ([math.exp(cosine(one, other) / 0.2) for other in others] for one in (t, s))
            losses.append(-sum(a / sum(asked) * math.log(g / sum(given_)) for a, g in zip(asked, given_, strict=True)))
        assert queue(student, teacher).item() == pytest.approx(np.mean(losses), rel=1e-4)
        seen = [*seen, *teacher.numpy()][-6:]
    assert int(queue.filled) == 6
    kept = {tuple(np.round(row, 4)) for row in queue.queue.numpy()}
    assert kept == {tuple(np.round(row / np.linalg.norm(row), 4)) for row in seen}


def test_similarity_queue_learns_nothing_from_being_looked_at() -> None:
    queue = SimilarityQueue(3, length=4)
    images = torch.eye(3)
    with torch.no_grad():
        queue(images, images)
    queue.eval()(images, images)
    assert int(queue.filled) == 0
    student = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    queue.train()(student, images).backward()
    assert int(queue.filled) == 3
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    other = SimilarityQueue(3, length=4)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other(student, images), queue(student, images))


def test_people_come_apart_under_the_usual_rate() -> None:
    """Weight vectors are short enough to be turned by the optimizer that students have."""
    generator = torch.Generator().manual_seed(7)
    people = torch.arange(6)
    embeddings = functional.normalize(torch.randn(6, 32, generator=generator))
    head = MarginSoftmax(32, 6)
    before = functional.normalize(head.weight.detach(), dim=1)
    optimizer = torch.optim.SGD(head.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        head(embeddings, people).backward()
        optimizer.step()
    after = functional.normalize(head.weight.detach(), dim=1)
    assert (before * after).sum(dim=1).max() < 0.7  # each turned by more than 45 degrees
    assert torch.equal((embeddings @ after.T).argmax(dim=1), people)  # to its own person


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(SettingError, match="queue of 0 at temperature"):
        SimilarityQueue(4, length=0)
    with pytest.raises(ShapeError, match=r"\(2, 3\) and teacher \(2, 4\) must have one shape"):
        embedding_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="come from 2 and 3 images"):
        attention_similarity_loss(torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4))
    for settings in ({"margin": -0.1}, {"margin": 2.0}, {"scale": 0.0}, {"people": 1}):
        with pytest.raises(SettingError, match="expected 0 to pi / 2, above 0, and at least 2 people"):
            MarginSoftmax(**{"size": 4, "people": 3, **settings})  # type: ignore[arg-type]


def test_a_margin_is_the_published_one_where_none_is_given() -> None:
    embeddings, people = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    found = MarginSoftmax(4, 3)(embeddings, people)
    assert found.item() == MarginSoftmax(4, 3, margin=0.5, scale=64.0)(embeddings, people).item()
