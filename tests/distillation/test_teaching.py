from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from keyhole.distillation import teaching
from keyhole.distillation.teaching import Keep, Teaching
from keyhole.models.layers import tap
from keyhole.models.network import InputSpec, Network
from keyhole.models.zoo import build

NAMES = ["layer1.0", "layer3.0"]
CPU = torch.device("cpu")


@pytest.fixture
def network() -> Network:
    return build("resnet8", classes=5, input=InputSpec((16, 16), (0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize("images", [1, 2, 3, 10])
@pytest.mark.parametrize("places", [0, 1, 3])
def test_an_answer_in_parts_is_that_of_the_network(
    network: Network, images: int, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "_PART_MACS", 1.0)
    seen = torch.randn(images, 3, 16, 16)
    with torch.no_grad(), tap(network.module, NAMES) as expected:
        logits = network.module(seen)
    workers = ThreadPoolExecutor(places) if places else None
    asked = Teaching(network, NAMES, device=CPU, precision="fp32", workers=workers, places=places)
    found = [take() for take in [asked.ask(seen) for _ in range(3)]]
    for answer, features in found:
        torch.testing.assert_close(answer, logits, rtol=1e-3, atol=1e-4)
        assert list(features) == NAMES
        for name, feature in features.items():
            torch.testing.assert_close(feature, expected[name], rtol=1e-3, atol=1e-4)
        assert not answer.requires_grad


def test_workers_have_one_set_of_weights_between_them(network: Network) -> None:
    with ThreadPoolExecutor(3) as workers:
        asked = Teaching(network, NAMES, device=CPU, precision="fp32", workers=workers, places=3)
        modules = [asked._free.get() for _ in range(3)]
    places = [{p.data_ptr() for p in (*module.parameters(), *module.buffers())} for module in modules]
    assert len(places[0]) > 10
    assert places[0] == places[1] == places[2]
    assert len(set(map(id, modules))) == 3


def test_a_small_batch_is_answered_whole_and_a_large_one_in_four_parts(network: Network) -> None:
    for macs, expected in ((0, 1), (1e9 / 8, 1), (2e9 / 8, 2), (3e9 / 8, 3), (1e12, 4)):
        with ThreadPoolExecutor(1) as workers:
            asked = Teaching(network, NAMES, device=CPU, precision="fp32", workers=workers)
            asked._macs = int(macs)
            sizes: list[int] = []
            whole = asked._answer
            asked._answer = lambda images, whole=whole, sizes=sizes: sizes.append(len(images)) or whole(images)  # type: ignore[method-assign, misc]
            asked.ask(torch.randn(8, 3, 16, 16))()
        assert sum(sizes) == 8
        assert len(sizes) == expected


def test_workers_answer_at_once_without_being_waited_for(network: Network) -> None:
    begun = Event()
    network.module.register_forward_pre_hook(lambda *_: begun.set())
    with ThreadPoolExecutor(1) as workers:
        asked = Teaching(network, NAMES, device=CPU, precision="fp32", workers=workers)
        begun.clear()
        asked.ask(torch.randn(2, 3, 16, 16))
        assert begun.wait(10)


def test_what_goes_wrong_in_a_worker_is_told_to_the_asker(network: Network) -> None:
    with ThreadPoolExecutor(1) as workers:
        asked = Teaching(network, NAMES, device=CPU, precision="fp32", workers=workers)
        take = asked.ask(torch.randn(2, 4, 16, 16))
        with pytest.raises(RuntimeError, match="channels"):
            take()
        assert asked.ask(torch.randn(2, 3, 16, 16))()[0].shape == (2, 5)  # and the next question is answered


def test_what_comes_again_is_looked_at_once(network: Network) -> None:
    looked: list[int] = []
    asked = Teaching(network, NAMES, device=CPU, precision="fp32", keep=Keep(6, 2**24))
    answer = asked._answer
    asked._answer = lambda images: looked.append(len(images)) or answer(images)  # type: ignore[method-assign, func-returns-value]
    images = torch.randn(6, 3, 16, 16)
    plain = Teaching(network, NAMES, device=CPU, precision="fp32").ask(images)()
    for rows in ([3, 1], [1, 5, 3], [0, 1, 2, 3, 4, 5], [5, 0]):
        views = torch.tensor(rows)
        logits, features = asked.ask(images[views], views)()
        torch.testing.assert_close(logits, plain[0][views], rtol=1e-4, atol=1e-5)
        for name in NAMES:
            torch.testing.assert_close(features[name], plain[1][name][views], rtol=1e-4, atol=1e-5)
    assert looked == [2, 1, 3]
    asked.ask(images)()  # without numbers nothing is known of them
    assert looked == [2, 1, 3, 6]


def test_images_are_made_for_those_alone_that_are_asked_about(network: Network) -> None:
    made: list[int] = []
    images = torch.randn(6, 3, 16, 16)

    def show(rows: Tensor | None) -> Tensor:
        made.append(6 if rows is None else int(rows.sum()))
        return images if rows is None else images[rows]

    asked = Teaching(network, NAMES, device=CPU, precision="fp32", keep=Keep(8, 2**24))
    views = torch.arange(6)
    asked.ask(images[:2], views[:2])()
    first, second = asked.ask(show, views)()[0], asked.ask(show, views)()[0]
    assert torch.equal(first, second)
    asked.ask(show)()
    assert made == [4, 6]
    torch.testing.assert_close(first, Teaching(network, NAMES, device=CPU, precision="fp32").ask(images)()[0])


def test_answers_that_were_asked_for_ahead_are_kept_as_well(network: Network) -> None:
    asked = Teaching(network, NAMES, device=CPU, precision="fp32", keep=Keep(4, 2**24))
    images, views = torch.randn(4, 3, 16, 16), torch.arange(4)
    ahead = [asked.ask(images[:3], views[:3]), asked.ask(images[1:], views[1:]), asked.ask(images, views)]
    found = [take()[0] for take in ahead]
    plain = Teaching(network, NAMES, device=CPU, precision="fp32").ask(images)()[0]
    for rows, each in zip((slice(3), slice(1, 4), slice(4)), found, strict=True):
        torch.testing.assert_close(each, plain[rows], rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_where_memory_does_not_suffice(network: Network) -> None:
    asked = Teaching(network, NAMES, device=CPU, precision="fp32", keep=Keep(2, 1000))
    images, views = torch.randn(2, 3, 16, 16), torch.arange(2)
    ahead = asked.ask(images, views)
    first, second = asked.ask(images, views)(), ahead()
    assert torch.equal(first[0], second[0])
    assert not asked._kept.keeps
    assert asked._kept._parts == {}
