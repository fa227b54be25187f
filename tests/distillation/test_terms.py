from __future__ import annotations

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from keyhole.distillation.adapters import HintAdapter, VariationalHead
from keyhole.distillation.arm import Arm, loss_text
from keyhole.distillation.embeddings import attention_similarity_loss
from keyhole.distillation.kinds import TERMS, HintPair, Setting, View
from keyhole.distillation.losses import (
    attention_loss,
    decoupled_loss,
    similarity_preserving_loss,
    variational_loss,
)
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.terms import Term, build_term, check_terms
from keyhole.errors import KeyholeError, SettingError, UnknownNameError
from keyhole.models.network import InputSpec


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("ce", {"ce": 1.0}),
        ("kd", {"kd": 1.0}),
        ("ce,kd", {"ce": 0.1, "kd": 0.9}),
        ("kd,ce", {"kd": 0.9, "ce": 0.1}),
        ("ce=0.5,kd", {"ce": 0.5, "kd": 1.0}),
        ("ce,ls", {"ce": 0.1, "ls": 9.0}),
        ("ls,ce", {"ls": 9.0, "ce": 0.1}),
        ("ce,ls=9", {"ce": 1.0, "ls": 9.0}),
        ("ce,ls,hint", {"ce": 1.0, "ls": 9.0, "hint": 100.0}),
        ("ce,kd,ls", {"ce": 1.0, "kd": 1.0, "ls": 9.0}),
        ("margin", {"margin": 1.0}),
        ("margin,hint", {"margin": 1.0, "hint": 100.0}),
        ("embedding,margin", {"embedding": 1.0, "margin": 0.02}),
        ("margin,relations", {"margin": 0.02, "relations": 30.0}),
        ("relations=1,margin,askd", {"relations": 1.0, "margin": 0.02, "askd": 5.0}),
        ("embedding,relations,margin=0.5", {"embedding": 1.0, "relations": 30.0, "margin": 0.5}),
        ("ce=0.5,kd=0.25", {"ce": 0.5, "kd": 0.25}),
        ("ce,kd,hint", {"ce": 1.0, "kd": 1.0, "hint": 100.0}),
        ("ce,at", {"ce": 1.0, "at": 1000.0}),
        (" ce = 0.5 , hint= 5e1,", {"ce": 0.5, "hint": 50.0}),
        ("ce,kd=0", {"ce": 1.0, "kd": 0.0}),
        ("ce,dkd,ls,vid", {"ce": 1.0, "dkd": 1.0, "ls": 9.0, "vid": 1.0}),
        ("ce,kd,semckd", {"ce": 1.0, "kd": 1.0, "semckd": 400.0}),
        ("wttm,crd,sp,dist", {"wttm": 4.0, "crd": 0.8, "sp": 3000.0, "dist": 2.0}),
        ("wttm(exponent=0.3), dkd ( beta = 2 ) = 0.5", {"wttm": 4.0, "dkd": 0.5}),
    ],
)
def test_terms_and_their_weights(text: str, weights: dict[str, float]) -> None:
    terms = parse_terms(text, temperature=3.0)
    assert {term.name: term.weight for term in terms} == weights
    assert [term.name for term in terms] == list(weights)
    assert {term.temperature for term in terms if term.name in ("kd", "dkd", "dist", "ls")} <= {3.0}
    assert {term.temperature for term in terms if term.name not in ("kd", "dkd", "dist", "ls")} <= {None}


def test_a_setting_of_a_term_reaches_its_loss_and_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    labels = torch.arange(6) % 4
    view = View(logits, {}, taught, {}, labels, torch.arange(6))
    given: dict[str, dict[str, float]] = {
        "dkd": {},
        "dkd(beta=2)": {"beta": 2.0},
        "dkd(alpha=3,beta=2)": {"alpha": 3.0, "beta": 2.0},
    }
    found = [build_term(parse_terms(text)[0], Setting())(view).item() for text in given]
    assert found == pytest.approx([decoupled_loss(logits, taught, labels, **knobs).item() for knobs in given.values()])
    assert len({round(value, 4) for value in found}) == 3
    spec = InputSpec((8, 8), (0.5,), (0.5,))
    told = [loss_text(Arm("x", "resnet8", spec, parse_terms(text))) for text in given]
    assert told == ["1 dkd 4.0", "1 dkd(beta 2) 4.0", "1 dkd(alpha 3, beta 2) 4.0"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dkd(gamma=2)", "Unknown setting of term dkd 'gamma'"),
        ("kd(beta=2)", "Unknown setting of term kd 'beta'"),
        ("dkd(beta=two)", "beta of term dkd is 'two'; expected a number"),
        ("dkd(beta=-1)", "beta of term dkd is -1.0; expected a number >= 0"),
        ("dkd(beta=nan)", "expected a number >= 0"),
        ("dkd(beta)", r"Term 'dkd\(beta\)' has no settings in brackets; expected such as dkd\(alpha=1,beta=2\)=0.5"),
        ("ce,dkd(alpha=1,beta=2", r"Term 'dkd\(alpha=1' has no settings"),
        ("dkd)", r"Term 'dkd\)' has no settings"),
        ("dist(beta=1, gamma=2, beta=3)", "beta of term dist is given twice; expected each setting once"),
        ("dkd(alpha=1,)", r"Term 'dkd\(alpha=1,\)' has no settings"),
        ("dkd(alpha=1,beta=)", "beta of term dkd is ''; expected a number"),
        ("dkd(alpha=1,gamma=2)", "Unknown setting of term dkd 'gamma'"),
    ],
)
def test_settings_that_make_no_sense(text: str, told: str) -> None:
    with pytest.raises(KeyholeError, match=told):
        parse_terms(text)


def test_margin_beside_any_cosine_of_embeddings_pulls_about_as_hard() -> None:
    beside = [name for name, kind in TERMS.items() if kind.embeds and kind.teacher]
    assert beside == ["embedding", "relations", "seed"]
    assert [parse_terms(f"{name},margin")[1].weight for name in beside] == [0.02] * 3


def test_equal_terms_weigh_one_where_no_weight_is_given() -> None:
    assert [term.weight for term in parse_terms("ce,kd,hint=5,at", equal=True)] == [1, 1, 5, 1]
    for text in ("ce,kd", "ce,ls", "embedding,margin"):
        assert [term.weight for term in parse_terms(text, equal=True)] == [1, 1]


@pytest.mark.parametrize("text", ["", ",", "ce,ce", "ce,kd,ce=2", "ce=a", "ce=-1", "ce=nan", "ce=inf", "kd=1=2"])
def test_terms_that_make_no_sense(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_terms(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "near"), [("hints", "hint"), ("CE", "ce"), ("=5", "ce"), ("ce,kdd", "kd")])
def test_an_unknown_term_lists_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match="Unknown term") as caught:
        parse_terms(text)
    assert near in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_are_above_zero(temperature: float) -> None:
    with pytest.raises(SettingError, match="expected a weight >= 0 and a temperature > 0"):
        Term("kd", 1.0, temperature)


def test_what_each_term_needs() -> None:
    terms = [Term(name, 1.0) for name in TERMS]
    assert {term.name for term in terms if not term.needs_teacher} == {"ce", "margin"}
    assert {term.name for term in terms if term.needs_hints} == {"hint", "at", "vid", "sp", "semckd", "askd"}
    assert {term.name for term in terms if term.needs_labels} == {"ce", "dkd", "crd", "margin"}
    assert {name for name, kind in TERMS.items() if kind.embeds} == {"embedding", "relations", "seed", "margin"}


@pytest.mark.parametrize(
    ("text", "teacher", "hints", "words"),
    [
        ("ce,kd", False, False, "Term kd needs a teacher"),
        ("hint", False, True, "Term hint needs a teacher"),
        ("ce,kd,at", True, False, "Term at needs hints"),
        ("ce,kd", True, True, "Hints serve none of the terms ce,kd"),
    ],
)
def test_what_is_missing_is_named(text: str, teacher: bool, hints: bool, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check_terms(parse_terms(text), teacher=teacher, hints=hints)


@pytest.mark.parametrize(
    ("text", "teacher", "hints"),
    [("ce", False, False), ("ce", True, False), ("ce,kd", True, False), ("hint", True, True)],
)
def test_what_is_enough(text: str, teacher: bool, hints: bool) -> None:
    check_terms(parse_terms(text), teacher=teacher, hints=hints)


@pytest.mark.parametrize(
    ("shape", "mapped"), [((2, 5, 4, 6), (2, 7, 4, 6)), ((2, 17, 5), (2, 7, 4, 4)), ((2, 5), (2, 7, 1, 1))]
)
def test_an_adapter_changes_channels_alone(shape: tuple[int, ...], mapped: tuple[int, ...]) -> None:
    adapter = HintAdapter(5, 7)
    assert adapter(torch.randn(shape)).shape == mapped
    assert sum(p.numel() for p in adapter.parameters()) == 5 * 7 + 2 * 7


def test_an_adapted_feature_is_normalized_over_the_images() -> None:
    adapted = HintAdapter(5, 7)(3 + 2 * torch.randn(64, 5, 4, 4))
    torch.testing.assert_close(adapted.mean(dim=(0, 2, 3)), torch.zeros(7), atol=1e-4, rtol=0)
    torch.testing.assert_close(adapted.var(dim=(0, 2, 3)), torch.ones(7), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("own", "wanted"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 2), (4, 4)), ((4, 4), (4, 4))])
def test_vid_predicts_from_a_feature_of_the_size_that_is_compared(
    own: tuple[int, int], wanted: tuple[int, int]
) -> None:
    head, student, teacher = VariationalHead(3, 5), torch.randn(6, 3, *own), torch.randn(6, 5, *wanted)
    size = (min(own[0], wanted[0]), min(own[1], wanted[1]))
    seen: list[torch.Size] = []
    head.predict.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[2:]))
    found = head(student, teacher)
    assert seen == [size]
    mean = head.predict(adaptive_avg_pool2d(student, size))
    expected = variational_loss(mean, head.deviation, adaptive_avg_pool2d(teacher, size))
    torch.testing.assert_close(found, expected)


def test_vid_compares_tokens_and_vectors_with_maps() -> None:
    head, teacher = VariationalHead(3, 4), torch.randn(6, 4, 4, 4, requires_grad=True)
    found = head(torch.randn(6, 17, 3), teacher) + head(torch.randn(6, 3), teacher)
    found.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", ["hint", "at", "vid", "sp", "askd"])
def test_hints_are_weighed(name: str) -> None:
    channels, places = ((3, 4), (5, 2)), (("t0", "s0"), ("t1", "s1"))
    view = View(
        torch.zeros(6, 2),
        {"s0": torch.randn(6, 3, 4, 4), "s1": torch.randn(6, 5, 2, 2)},
        None,
        {"t0": torch.randn(6, 4, 4, 4), "t1": torch.randn(6, 2, 4, 4)},
        torch.zeros(6, dtype=torch.int64),
        torch.arange(6),
    )

    def value(*weights: float) -> float:
        torch.manual_seed(1)
        pairs = tuple(HintPair(*place, weight) for place, weight in zip(places, weights, strict=True))
        return build_term(Term(name, 1.0), Setting(pairs, channels))(view).item()

    first, second = value(1, 0), value(0, 1)
    assert value(1, 1) == pytest.approx(first + second, rel=1e-5)
    assert value(0.5, 1.5) == pytest.approx(0.5 * first + 1.5 * second, rel=1e-5)
    assert value(2, 2) == pytest.approx(2 * value(1, 1), rel=1e-5)


@pytest.mark.parametrize(("name", "published"), [("at", 3), ("sp", 1), ("askd", 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_term_weighs_the_same_with_any_number_of_hints(name: str, published: int, count: int) -> None:
    student, teacher = torch.randn(6, 3, 4, 4), torch.randn(6, 4, 4, 4)
    pairs = tuple(HintPair(f"t{i}", f"s{i}") for i in range(count))
    features = {pair.student: student for pair in pairs}, {pair.teacher: teacher for pair in pairs}
    view = View(torch.zeros(6, 2), features[0], None, features[1], torch.zeros(6, dtype=torch.int64), torch.arange(6))
    loss = {"at": attention_loss, "sp": similarity_preserving_loss, "askd": attention_similarity_loss}[name]
    found = build_term(Term(name, 1.0), Setting(pairs, [(3, 4)] * count))(view)
    assert found.item() == pytest.approx(published * loss(student, teacher).item(), rel=1e-5)


def test_three_adapted_hints_are_their_mean() -> None:
    pairs = tuple(HintPair(f"t{i}", f"s{i}") for i in range(3))
    student = {pair.student: torch.randn(6, 3, 4, 4) for pair in pairs}
    teacher = {pair.teacher: torch.randn(6, 4, 4, 4) for pair in pairs}
    view = View(torch.zeros(6, 2), student, None, teacher, torch.zeros(6, dtype=torch.int64), torch.arange(6))
    term = build_term(Term("hint", 1.0), Setting(pairs, [(3, 4)] * 3))
    adapters = [part for part in term.modules() if isinstance(part, HintAdapter)]
    each = [
        (adapter(student[pair.student]) - teacher[pair.teacher]).square().mean()
        for adapter, pair in zip(adapters, pairs, strict=True)
    ]
    torch.testing.assert_close(term(view), torch.stack(each).mean())


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weights_of_hints_are_numbers_from_zero(weight: float) -> None:
    with pytest.raises(SettingError, match="Hint t0 has the weight"):
        HintPair("t0", "s0", weight)


def test_blanks_do_not_count_and_cost_nothing() -> None:
    assert parse_terms(" ce = 1, dkd ( alpha = 2 , beta=4 ) = 3 ,kd") == parse_terms("ce=1,dkd(alpha=2,beta=4)=3,kd")
    with pytest.raises(SettingError, match="Weight '5 0' of term kd is no number"):
        parse_terms("kd = 5 0")
    with pytest.raises(SettingError, match="no settings in brackets"):
        parse_terms("a" + " " * 100_000 + "(")  # read in a time that grows with its length alone
    with pytest.raises(SettingError, match="no settings in brackets"):
        parse_terms("(," * 100_000)


@pytest.mark.parametrize("count", [1, 3])
def test_hints_of_vid_weigh_as_three(count: int) -> None:
    student, teacher = torch.randn(6, 3, 4, 4), torch.randn(6, 4, 4, 4)
    pairs = tuple(HintPair(f"t{i}", f"s{i}") for i in range(count))
    features = {pair.student: student for pair in pairs}, {pair.teacher: teacher for pair in pairs}
    view = View(torch.zeros(6, 2), features[0], None, features[1], torch.zeros(6, dtype=torch.int64), torch.arange(6))
    term = build_term(Term("vid", 1.0), Setting(pairs, [(3, 4)] * count))
    heads = [part for part in term.modules() if isinstance(part, VariationalHead)]
    expected = 3 * torch.stack([head(student, teacher) for head in heads]).mean()
    torch.testing.assert_close(term(view), expected)


@pytest.mark.parametrize("name", ["crd", "margin"])
def test_what_a_term_draws_comes_from_its_seed(name: str) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        setting = Setting((HintPair("t", "s"),), [(3, 4)], labels=torch.arange(20) % 4, seed=seed, outputs=8, classes=4)
        torch.manual_seed(0)
        return build_term(Term(name, 1.0), setting).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items())
