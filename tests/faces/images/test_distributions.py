from __future__ import annotations

import math

import numpy as np
import pytest

from keyhole.errors import KeyholeError, SettingError, UnknownNameError
from keyhole.faces.images.degradation import Degradation
from keyhole.faces.images.distributions import (
    DISTRIBUTIONS,
    Distribution,
    FixedSizes,
    Histogram,
    LogUniform,
    Spread,
    UniformRatio,
    parse_distribution,
)

ALL: list[Distribution] = [
    FixedSizes((8, 12, 16)),
    UniformRatio(0.2, 1.0),
    LogUniform(8, 64),
    Histogram((10, 20, 40), (1, 0, 3)),
]
TEXTS = ["fixed:8,12,16", "uniform-ratio:0.2-1.0", "log-uniform:8-64", "histogram:10=1,20=0,40=3"]


def sizes(distribution: Distribution, n: int = 4000) -> np.ndarray:
    return np.array([each.face_px for each in distribution.draw(n, seed=1)])


def test_fixed_sizes_are_drawn_alike() -> None:
    found, counts = np.unique(sizes(ALL[0]), return_counts=True)
    assert found.tolist() == [8, 12, 16]
    assert np.abs(counts / 4000 - 1 / 3).max() < 0.03


def test_a_uniform_ratio_is_uniform() -> None:
    ratios = sizes(ALL[1]) / 112
    assert 22 / 112 <= ratios.min() < 0.21
    assert ratios.max() == 1
    assert ratios.mean() == pytest.approx(0.6, abs=0.02)
    assert ratios.std() == pytest.approx(0.8 / math.sqrt(12), abs=0.01)


def test_a_log_uniform_gives_every_octave_its_share() -> None:
    drawn = sizes(ALL[2])
    assert (drawn.min(), drawn.max()) == (8, 64)
    octaves = [((drawn >= low) & (drawn < 2 * low)).mean() for low in (8, 16, 32)]
    whole = math.log(65 / 8)
    assert octaves == pytest.approx([math.log(2) / whole] * 3, abs=0.03)


def test_a_histogram_draws_what_was_observed() -> None:
    found, counts = np.unique(sizes(ALL[3]), return_counts=True)
    assert found.tolist() == [10, 40]
    assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)
    assert Histogram.of([9.6, 10.4, 40.0]) == Histogram((10, 40), (2, 1))


@pytest.mark.parametrize("distribution", ALL)
def test_draws_follow_from_the_seed_and_not_from_how_many(distribution: Distribution) -> None:
    drawn = distribution.draw(50, seed=7)
    assert distribution.draw(50, seed=7) == drawn
    assert distribution.draw(20, seed=7) == drawn[:20]
    assert distribution.draw(50, seed=8) != drawn
    assert distribution.draw(0, seed=7) == ()


def test_everything_but_the_size_is_as_told() -> None:
    like = Degradation(1, down="cv2-area", codec="jpeg", quality=70)
    drawn = FixedSizes((8,), like=like).draw(3, seed=0)
    assert drawn == (Degradation(8, down="cv2-area", codec="jpeg", quality=70),) * 3


def test_methods_are_drawn_for_both_ways_and_do_not_move_the_sizes() -> None:
    plain = LogUniform(8, 64).draw(400, seed=2)
    varied = LogUniform(8, 64, methods=("cv2-area", "pil-box")).draw(400, seed=2)
    assert [each.face_px for each in varied] == [each.face_px for each in plain]
    pairs = {(each.down, each.up) for each in varied}
    assert len(pairs) == 4


def test_a_share_is_left_alone() -> None:
    drawn = FixedSizes((8,), share=0.25).draw(2000, seed=0)
    degraded = [each for each in drawn if each.face_px == 8]
    assert len(degraded) / 2000 == pytest.approx(0.25, abs=0.03)
    assert all(each.face_px >= 112 for each in drawn if each not in degraded)


@pytest.mark.parametrize(("text", "distribution"), list(zip(TEXTS, ALL, strict=True)))
def test_texts(text: str, distribution: Distribution) -> None:
    assert parse_distribution(text) == distribution


def test_a_text_with_everything() -> None:
    parsed = parse_distribution("log-uniform:8-64;methods=cv2-area+pil-box, share=0.5,noise=2,jpeg=70")
    like = Degradation(112, noise_sigma=2.0, codec="jpeg", quality=70)
    assert parsed == LogUniform(8, 64, like=like, methods=("cv2-area", "pil-box"), share=0.5)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("loguniform:8-64", UnknownNameError, "Unknown distribution 'loguniform'; nearest known: log-uniform"),
        ("log-uniform:8", SettingError, "'log-uniform:8' is no distribution; expected such as log-uniform:8-64."),
        ("fixed:", SettingError, "expected such as fixed:8,12,16."),
        ("histogram:12", SettingError, "expected such as histogram:12=40,16=25."),
        ("fixed:0", SettingError, "The sizes are (0,), expected at least one, each from 1 to 4096 px."),
        ("log-uniform:64-8", SettingError, "The sizes are 64 and 8 px, expected the smaller one first."),
        ("uniform-ratio:0-1", SettingError, "The ratios are 0.0 and 1.0, expected 0 < low <= high <= 1."),
        ("histogram:8=0", SettingError, "1 sizes came with the counts (0,)"),
        ("fixed:8;share=2", SettingError, "share is 2.0, expected 0 to 1."),
        ("fixed:8;methods=pil-cubic", UnknownNameError, "Unknown resampler 'pil-cubic'"),
        ("fixed:8;sharp=1", UnknownNameError, "Unknown setting 'sharp'"),
    ],
)
def test_texts_that_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_distribution(text)
    assert message in str(caught.value)


def test_draws_that_are_refused() -> None:
    with pytest.raises(SettingError, match="3 draws with seed -1 were asked for, expected 0 or more of both"):
        ALL[0].draw(3, seed=-1)
    with pytest.raises(SettingError, match=r"The sizes are \(\)"):
        Histogram.of([])


def test_every_kind_has_a_text() -> None:
    assert [text.partition(":")[0] for text in TEXTS] == list(DISTRIBUTIONS)


def test_blur_noise_and_codec_vary_from_image_to_image() -> None:
    camera = parse_distribution("log-uniform:8-64;blur=0.2-1@0.3,noise=2@0.5, jpeg=30-95@0.5,share=0.8")
    assert camera.varied == (("blur", Spread(0.2, 1, 0.3)), ("noise", Spread(2, 2, 0.5)), ("jpeg", Spread(30, 95, 0.5)))
    drawn = [each for each in camera.draw(4000, 7) if each.face_px <= 64]
    assert 0.77 < len(drawn) / 4000 < 0.83
    blurs = [each.blur_sigma_px for each in drawn if each.blur_sigma_px]
    assert (min(blurs), max(blurs)) == (0.2, 1.0)
    assert 0.27 < len(blurs) / len(drawn) < 0.33
    assert {each.noise_sigma for each in drawn} == {0.0, 2.0}
    assert {each.codec for each in drawn} == {"jpeg", None}
    qualities = [each.quality or 0 for each in drawn if each.codec == "jpeg"]
    assert (min(qualities), max(qualities)) == (30, 95)
    assert 0.47 < len(qualities) / len(drawn) < 0.53
    # each choice has random numbers of its own
    plain = parse_distribution("log-uniform:8-64;share=0.8").draw(4000, 7)
    assert [each.face_px for each in plain] == [each.face_px for each in camera.draw(4000, 7)]
    assert camera.draw(10, 7) == camera.draw(4000, 7)[:10]


def test_no_choice_moves_another() -> None:
    def drawn(text: str) -> tuple[Degradation, ...]:
        return parse_distribution(text).draw(4000, seed=5)

    values = drawn("uniform-ratio:0.1-0.9;methods=cv2-area+pil-box,blur=0.5-4,noise=1-20,jpeg=10-90")
    some = drawn("fixed:8;blur=1@0.5,noise=1@0.5,jpeg=50@0.5")
    columns = {
        "size": [each.face_px for each in values],
        "down": [each.down == "pil-box" for each in values],
        "up": [each.up == "pil-box" for each in values],
        "blur": [each.blur_sigma_px for each in values],
        "noise": [each.noise_sigma for each in values],
        "jpeg": [each.quality for each in values],
        "webp": [each.quality for each in drawn("fixed:8;webp=10-90")],
        "any blur": [each.blur_sigma_px > 0 for each in some],
        "any noise": [each.noise_sigma > 0 for each in some],
        "any jpeg": [each.codec is not None for each in some],
        "any webp": [each.codec is not None for each in drawn("fixed:8;webp=50@0.5")],
        "share": [each.face_px == 8 for each in drawn("fixed:8;share=0.5")],
    }
    correlations = np.corrcoef(np.array(list(columns.values()), float)) - np.eye(len(columns))
    one, other = np.unravel_index(np.abs(correlations).argmax(), correlations.shape)
    names = list(columns)
    assert np.abs(correlations).max() < 0.05, f"{names[one]} and {names[other]}"


@pytest.mark.parametrize("codecs", ["jpeg=30@0.5,webp=60@0.5", "webp=60@0.5,jpeg=30@0.5"])
def test_an_image_that_both_codecs_come_to_goes_through_webp(codecs: str) -> None:
    both = [each.codec for each in parse_distribution(f"fixed:8;{codecs}").draw(400, 5)]
    jpeg = [each.codec for each in parse_distribution("fixed:8;jpeg=30@0.5").draw(400, 5)]
    webp = [each.codec for each in parse_distribution("fixed:8;webp=60@0.5").draw(400, 5)]
    assert both == [by_webp or by_jpeg for by_jpeg, by_webp in zip(jpeg, webp, strict=True)]
    assert sum(one is not None and other is not None for one, other in zip(jpeg, webp, strict=True)) > 50


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fixed:8;blur=1-0.5", "the smaller one first"),
        ("fixed:8;jpeg=0-50", "quality is 0"),
        ("fixed:8;noise=1-300", "noise_sigma is 300"),
        ("fixed:8;jpeg=50-90@2", "a share of 0 to 1"),
        ("fixed:8;down=1-2", "Unknown setting that varies 'down'"),
        ("fixed:8;blur=1.2.3-2", "is no range"),
        ("fixed:8;blur=0.2-1@0.3,blur=2-3@0.5", "sets blur twice"),
        ("fixed:8;jpeg=70,jpeg=30-95@0.5", "sets jpeg twice"),
        ("fixed:8;share=0.5,share=0.6", "sets share twice"),
        ("fixed:8;methods=pil-box,methods=cv2-area", "sets methods twice"),
        ("fixed:12;face_px=40", "sets face_px, and the sizes stand before the semicolon"),
        ("fixed:8;webp=70,jpeg=30-95@0.5", "beside a codec"),
    ],
)
def test_ranges_that_make_no_sense(text: str, words: str) -> None:
    with pytest.raises(KeyholeError, match=words) as caught:
        parse_distribution(text)
    assert len(str(caught.value).splitlines()) == 1
