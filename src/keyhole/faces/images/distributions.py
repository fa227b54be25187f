"""How resolutions are spread over a training set or a camera: distributions of degradations.

Each of them draws sizes; what else happens to a picture is the same for all of them: ``like`` gives it, ``methods``
lets the resamplers vary, ``varied`` blur, noise and codec, and ``share`` leaves some images as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from keyhole.errors import SettingError, unknown_name
from keyhole.faces.images.degradation import Degradation, degradation_of, parse_settings
from keyhole.faces.images.resampling import MAX_SIZE_PX, find_method

CROP_PX = 112
_CROP = Degradation(CROP_PX)
_UNTOUCHED = Degradation(MAX_SIZE_PX)
_SIZE_ROLE, _METHOD_ROLE, _SHARE_ROLE = 11, 12, 13  # streams of their own, so that one choice does not move another
_VARIED = {"blur": 14, "noise": 15, "jpeg": 16, "webp": 17}  # streams of what may vary from image to image


@dataclass(frozen=True)
class Spread:
    """A setting of the camera that varies from image to image.

    Attributes:
        low: Its least value.
        high: Its greatest; every value between as likely, in steps of 0.1, or of 1 for the quality of a codec.
        share: Share of the degraded images that have it, 0 to 1; the others go without.
    """

    low: float
    high: float
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Distribution(ABC):
    """What all distributions have.

    Attributes:
        like: Everything but the size; its ``face_px`` is not used.
        methods: Resamplers of which one is drawn for shrinking and another, independently, for enlarging; with none,
            those of ``like``.
        share: Share of the images that are degraded, 0 to 1; the others keep their pixels.
        varied: What else varies from image to image, by name: ``blur``, ``noise``, ``jpeg`` or ``webp``. An image that
            both codecs come to goes through ``webp``.
    """

    like: Degradation = _CROP
    methods: tuple[str, ...] = ()
    share: float = 1.0
    varied: tuple[tuple[str, Spread], ...] = ()

    def __post_init__(self) -> None:
        for name, spread in self.varied:
            if name not in _VARIED:
                raise unknown_name("setting that varies", name, _VARIED)
            if not spread.low <= spread.high or not 0 <= spread.share <= 1:
                raise SettingError(f"{name} varies from {spread.low} to {spread.high} in a share of {spread.share}; "
                                   "expected the smaller one first, and a share of 0 to 1.")  # fmt: skip
            for value in (spread.low, spread.high):
                _with(self.like, name, value)
        for method in self.methods:
            find_method(method)
        if not 0 <= self.share <= 1:
            raise SettingError(f"share is {self.share}, expected 0 to 1.")

    @abstractmethod
    def sizes(self, uniform: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the sizes at which the distribution has passed the given shares, which lie in [0, 1)."""

    def draw(self, n: int, seed: int) -> tuple[Degradation, ...]:
        """Return so many degradations; the first ones do not depend on ``n``.

        Args:
            n: How many.
            seed: 0 or more.

        Raises:
            SettingError: ``seed`` or ``n`` is negative.
        """
        if seed < 0 or n < 0:
            raise SettingError(f"{n} draws with seed {seed} were asked for, expected 0 or more of both.")
        sizes = self.sizes(np.random.default_rng((_SIZE_ROLE, seed)).random(n)).tolist()
        drawn = [replace(self.like, face_px=size) for size in sizes]
        if self.methods:
            chosen = np.random.default_rng((_METHOD_ROLE, seed)).integers(len(self.methods), size=(n, 2)).tolist()
            drawn = [
                replace(each, down=self.methods[down], up=self.methods[up])
                for each, (down, up) in zip(drawn, chosen, strict=True)
            ]
        for name, spread in sorted(self.varied, key=lambda one: list(_VARIED).index(one[0])):  # webp comes last
            random = np.random.default_rng((_VARIED[name], seed)).random((n, 2))
            values = spread.low + (spread.high - spread.low) * random[:, 0]
            has = random[:, 1] < spread.share
            drawn = [
                _with(each, name, value) if own else each
                for each, value, own in zip(drawn, values.tolist(), has.tolist(), strict=True)
            ]
        kept = np.random.default_rng((_SHARE_ROLE, seed)).random(n) >= self.share
        return tuple(_UNTOUCHED if keep else each for each, keep in zip(drawn, kept.tolist(), strict=True))


def _with(how: Degradation, name: str, value: float) -> Degradation:
    if name == "blur":
        return replace(how, blur_sigma_px=round(value, 1))
    if name == "noise":
        return replace(how, noise_sigma=round(value, 1))
    return replace(how, codec=name, quality=round(value))


@dataclass(frozen=True)
class FixedSizes(Distribution):
    """Some sizes, each as likely as the others.

    Attributes:
        face_px: The sizes.

    Example:
        >>> {each.face_px for each in FixedSizes((8, 16)).draw(50, seed=0)} == {8, 16}
        True
    """

    face_px: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self.face_px)

    def sizes(self, uniform: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return one of the sizes for each share."""
        places: Int[np.ndarray, " n"] = (uniform * len(self.face_px)).astype(int)
        return np.asarray(self.face_px).take(places)


@dataclass(frozen=True)
class UniformRatio(Distribution):
    """A side that is a share of the crop's 112 pixels, every share between two as likely.

    Attributes:
        low: Smallest ratio, above 0.
        high: Largest ratio, at most 1.

    Example:
        >>> UniformRatio(0.2, 1.0).sizes(np.array([0.0, 0.5]))
        array([22, 67])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.high <= 1:
            raise SettingError(f"The ratios are {self.low} and {self.high}, expected 0 < low <= high <= 1.")

    def sizes(self, uniform: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the ratio at each share, times the side of the crop, rounded, at least 1."""
        ratios = self.low + (self.high - self.low) * uniform
        return np.rint(ratios * CROP_PX).clip(1).astype(int)


@dataclass(frozen=True)
class LogUniform(Distribution):
    """A size between two, every octave as likely as the others.

    Attributes:
        low: Smallest size in pixels.
        high: Largest size in pixels, drawn as well.

    Example:
        >>> LogUniform(8, 64).sizes(np.array([0.0, 0.999]))
        array([ 8, 64])
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes((self.low, self.high))
        if self.low > self.high:
            raise SettingError(f"The sizes are {self.low} and {self.high} px, expected the smaller one first.")

    def sizes(self, uniform: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the size at each share, cut to whole pixels."""
        return np.floor(self.low * ((self.high + 1) / self.low) ** uniform).astype(int)


@dataclass(frozen=True)
class Histogram(Distribution):
    """Sizes as often as they were observed.

    Attributes:
        face_px: The sizes.
        counts: How often each was seen.

    Example:
        >>> Histogram.of([12.2, 12.0, 30.4])
        Histogram(like=..., face_px=(12, 30), counts=(2, 1))
    """

    face_px: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self.face_px)
        if len(self.counts) != len(self.face_px) or min(self.counts) < 0 or sum(self.counts) < 1:
            raise SettingError(
                f"{len(self.face_px)} sizes came with the counts {self.counts}, expected one count for each, "
                "0 or more, not all 0."
            )

    @classmethod
    def of(cls, observed_px: Iterable[float]) -> Histogram:
        """Return the histogram of observed sizes, each rounded to whole pixels.

        Raises:
            SettingError: There are none, or one is below half a pixel or above 4096.
        """
        counted = sorted(Counter(round(size) for size in observed_px).items())
        return cls(tuple(size for size, _ in counted), tuple(count for _, count in counted))

    def sizes(self, uniform: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the size at which the observed share has passed each given share."""
        edges = np.cumsum(self.counts) / sum(self.counts)
        return np.asarray(self.face_px)[np.searchsorted(edges, uniform, side="right")]


def parse_distribution(text: str) -> Distribution:
    """Return the distribution that a text describes.

    The form is ``KIND:SIZES`` or ``KIND:SIZES;SETTINGS``, with the settings of a degradation, ``methods=a+b`` and
    ``share=0.5``. What varies from image to image has two values, and perhaps the share that has it::

        fixed:8,12,16
        uniform-ratio:0.2-1;methods=cv2-area+cv2-cubic,share=0.2
        log-uniform:8-64;down=torch-bicubic-antialias,jpeg=70
        log-uniform:8-64;blur=0.2-1@0.3,noise=1-6@0.3,jpeg=30-95@0.5
        histogram:12=40,16=25

    Args:
        text: Such a text.

    Raises:
        SettingError: The text is not of this form, or a value is outside its range.
        UnknownNameError: There is no such kind, setting or resampler.

    Example:
        >>> parse_distribution("log-uniform:8-64;jpeg=70").draw(1, seed=0)[0].codec
        'jpeg'
    """
    head, _, tail = text.partition(";")
    kind, _, sizes = head.strip().partition(":")
    if kind not in DISTRIBUTIONS:
        raise unknown_name("distribution", kind, DISTRIBUTIONS)
    given = re.findall(r"(?:^|,)\s*(methods|share)=([^,]*)", tail)
    extras = dict(given)
    tail = re.sub(r"(^|,)\s*(methods|share)=[^,]*", "", tail)
    varied = tuple((name, _spread(spread)) for name, spread in re.findall(_VARYING, tail))
    settings = parse_settings(re.sub(_VARYING, "", tail))
    if "face_px" in settings:
        raise SettingError(f"{text!r} sets face_px, and the sizes stand before the semicolon; expected one of the two.")
    _check_once((*varied, *given), settings, seen=text)
    settings.setdefault("face_px", CROP_PX)
    try:
        drawn = DISTRIBUTIONS[kind](sizes)
        share = float(extras.get("share", 1.0))
    except (ValueError, TypeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{text!r} is no distribution; expected such as {_FORMS[kind]}.") from error
    methods = tuple(filter(None, extras.get("methods", "").split("+")))
    like = degradation_of(settings, seen=tail)
    return replace(drawn, like=like, methods=methods, share=share, varied=varied)


# name=LOW-HIGH, perhaps @SHARE; or name=VALUE@SHARE
_VARYING = r"(?:^|,)\s*(\w+)=([0-9.]+-[0-9.]+(?:@[0-9.]+)?|[0-9.]+@[0-9.]+)(?=\s*(?:,|$))"


def _check_once(given: Sequence[tuple[str, object]], settings: Mapping[str, object], *, seen: str) -> None:
    names = [name for name, _ in given]
    fixed = {"blur": "blur_sigma_px", "noise": "noise_sigma", "jpeg": "codec", "webp": "codec"}
    twice = next((name for name in names if names.count(name) > 1 or fixed.get(name) in settings), None)
    if twice is not None:
        raise SettingError(f"{seen!r} sets {twice} twice, or beside a codec that all images go through; give it once.")


def _spread(text: str) -> Spread:
    values, _, share = text.partition("@")
    low, _, high = values.partition("-")
    try:
        return Spread(float(low), float(high or low), float(share or 1.0))
    except ValueError as error:
        raise SettingError(f"{text!r} is no range; expected such as 30-95@0.5.") from error


def _check_sizes(sizes: tuple[int, ...]) -> None:
    if not sizes or not all(1 <= size <= MAX_SIZE_PX for size in sizes):
        raise SettingError(f"The sizes are {sizes}, expected at least one, each from 1 to {MAX_SIZE_PX} px.")


def _fixed(text: str) -> Distribution:
    return FixedSizes(tuple(int(size) for size in text.split(",")))


def _uniform_ratio(text: str) -> Distribution:
    low, high = (float(ratio) for ratio in text.split("-"))
    return UniformRatio(low, high)


def _log_uniform(text: str) -> Distribution:
    low, high = (int(size) for size in text.split("-"))
    return LogUniform(low, high)


def _histogram(text: str) -> Distribution:
    pairs = [tuple(int(number) for number in pair.split("=")) for pair in text.split(",")]
    sizes, counts = zip(*pairs, strict=True)
    return Histogram(sizes, counts)


_FORMS = {
    "fixed": "fixed:8,12,16",
    "uniform-ratio": "uniform-ratio:0.2-1",
    "log-uniform": "log-uniform:8-64",
    "histogram": "histogram:12=40,16=25",
}
DISTRIBUTIONS = {
    "fixed": _fixed,
    "uniform-ratio": _uniform_ratio,
    "log-uniform": _log_uniform,
    "histogram": _histogram,
}
