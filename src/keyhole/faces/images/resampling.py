"""The resamplers of Pillow, OpenCV and PyTorch, each as two small matrices over a whole batch.

The three libraries give different small pictures under the same word: Pillow always averages over what it
shrinks and rounds to whole gray levels between its two passes; OpenCV does not average, except with ``area``;
PyTorch averages only where antialiasing is asked for, and rounds once, at the end. A method here is named after the
library and the library's own word, and gives its picture within one gray level.

All arithmetic is exact, so the result depends neither on the batch, nor on the number of threads, nor on the device.
Weights are multiples of 2^-k, with k such that every sum of products is a whole number of units below 2^24, which
float32 holds exactly in any order of summation. Pillow's passes are done in float64 in Pillow's own units of 2^-22 and
are equal to Pillow's, except the last one of an enlargement: a difference of one gray level anywhere else could grow to
two in the next pass.

For training, ``torch-bicubic-antialias`` is Pillow's bicubic kernel rounded once instead of twice, at twice the speed.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from keyhole.errors import SettingError, ShapeError, unknown_name
from keyhole.faces.images import kernels

CHANNELS = 3
CHUNK = 8  # images of 112 x 112 at a time: their floats stay within a core's second cache
MAX_SIZE_PX = 4096
_EXACT_BITS = 24  # of a float32
_PIXEL_BITS = 8
_HALVES_BITS = 9  # whole gray levels plus one half
_FRACTION_BITS = 11  # OpenCV's own precision
_EIGHTHS = 1.5 * 2**20  # adding and subtracting it rounds a float32 to a multiple of 1/8
_PILLOW_BITS = 22  # PRECISION_BITS in Pillow's Resample.c
_PADDED_TO = 8  # small pictures of different sizes share one product when padded to a multiple of it
_HALVED_FROM_PX = 24  # from here on two blocks down the columns are faster than one


_Task = TypeVar("_Task")


@dataclass(frozen=True)
class Method:
    """One way to resample an axis, and whether the library rounds to whole gray levels after the first."""

    axis: kernels.Axis
    rounds_between: bool


@dataclass(frozen=True)
class Block:
    """The weights from a run of pixels to a run of pixels."""

    source: slice
    target: slice
    weights: Float[Tensor, "a b"]


@dataclass(frozen=True)
class Passes:
    """The two passes of a method from one size to another: along the rows, then down the columns."""

    from_px: int
    to_px: int
    across: tuple[Block, ...]
    down: tuple[Block, ...]
    rounds_between: bool


class Workspace:
    """Memory that is used again and again: fresh memory costs as much as the arithmetic on it.

    What :meth:`take` returns holds until the same thread takes that name again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, Tensor] = {}

    @classmethod
    def of(cls, device: torch.device) -> Workspace:
        """Return this thread's memory on a device, some megabytes."""
        kept = _THREAD.__dict__
        if str(device) not in kept:
            kept[str(device)] = cls(device)
        found: Workspace = kept[str(device)]
        return found

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor of that shape with anything in it; it holds until the same name is taken again."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = torch.empty(size, dtype=dtype, device=self._device)
        return self._kept[name][:size].view(shape)


_THREAD = threading.local()


def run_each(action: Callable[[_Task], None], tasks: Iterable[_Task], *, device: torch.device) -> None:
    """Do independent tasks, side by side on as many threads as torch may use.

    Threads within a product of matrices this small wait for each other most of the time, and for ever on a machine
    that is busy otherwise; so each task keeps to one thread.

    Args:
        action: What to do with a task.
        tasks: The tasks; what they write is apart.
        device: Where they compute; only the processor needs threads.
    """
    threads = torch.get_num_threads()
    waiting = list(tasks)
    if device.type != "cpu" or threads == 1:
        for task in waiting:
            action(task)
        return
    torch.set_num_threads(1)
    try:
        if len(waiting) < 2:
            for task in waiting:
                action(task)
        else:
            for _ in _pool(threads, os.getpid()).map(action, waiting):
                pass
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a forked one has none of its parent's."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def resample(crops: UInt8[Tensor, "n s s 3"], size_px: int, method: str) -> UInt8[Tensor, "n t t 3"]:
    """Return square pictures at another size, as the named library would make them, within one gray level.

    The same pixels come out for any batch size and on any device.

    Args:
        crops: Square RGB pictures.
        size_px: The side of the result.
        method: A name from ``METHODS``, such as ``"pil-bicubic"`` or ``"cv2-area"``.

    Raises:
        ShapeError: The pictures are not square RGB of type uint8.
        SettingError: ``size_px`` is not from 1 to 4096.
        UnknownNameError: There is no such method.

    Example:
        >>> resample(torch.tensor([[0, 200], [100, 100]], dtype=torch.uint8).expand(3, 2, 2).movedim(0, -1)[None], 1,
        ...     "pil-box").tolist()
        [[[[100, 100, 100]]]]
    """
    side = check_crops(crops)
    passes = passes_of(method, side, size_px, device=crops.device)
    out = torch.empty((len(crops), size_px, size_px, CHANNELS), dtype=torch.uint8, device=crops.device)

    def chunk(start: int) -> None:
        part = crops[start : start + CHUNK]
        to_pixels(run_passes(part, passes, Workspace.of(crops.device)), out[start : start + CHUNK])

    run_each(chunk, range(0, len(crops), CHUNK), device=crops.device)
    return out


def resampling_matrix(method: str, from_px: int, to_px: int) -> Float[np.ndarray, "t s"]:
    """Return the weights of a method along one axis; each row sums to 1.

    Args:
        method: A name from ``METHODS``.
        from_px: Pixels along the axis before.
        to_px: Pixels along the axis after.

    Raises:
        SettingError: A size is not from 1 to 4096.
        UnknownNameError: There is no such method.

    Example:
        >>> resampling_matrix("cv2-area", 4, 2)
        array([[0.5, 0.5, 0. , 0. ],
               [0. , 0. , 0.5, 0.5]])
    """
    for size in (from_px, to_px):
        if not 1 <= size <= MAX_SIZE_PX:
            raise SettingError(
                f"A picture of {size} px was asked for, expected 1 to {MAX_SIZE_PX}; choose another size."
            )
    chosen = find_method(method)
    return np.eye(to_px) if from_px == to_px else chosen.axis(from_px, to_px)


def find_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in METHODS:
        raise unknown_name("resampler", name, METHODS)
    return METHODS[name]


def check_crops(crops: Tensor) -> int:
    """Return the side of a batch of square RGB pictures.

    Raises:
        ShapeError: It is something else.
    """
    shape = tuple(crops.shape)
    if crops.dtype != torch.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != CHANNELS or shape[1] < 1:
        raise ShapeError(
            f"Crops are a uint8 tensor of n x side x side x 3 (RGB), got {crops.dtype} {shape}; crop squares first."
        )
    return int(shape[1])


@lru_cache(maxsize=2048)
def passes_of(method: str, from_px: int, to_px: int, *, device: torch.device, blur_sigma_px: float = 0.0) -> Passes:
    """Return the two passes of a method, blurred first where asked.

    Args:
        method: A name from ``METHODS``.
        from_px: Side before.
        to_px: Side after.
        device: Where the weights shall lie.
        blur_sigma_px: Width of a Gaussian blur before the resampling, in pixels of the picture before; it is folded
            into the weights, so nothing is rounded between the blur and the first pass.

    Raises:
        SettingError: A size is not from 1 to 4096.
        UnknownNameError: There is no such method.
    """
    first, second = _weights(method, from_px, to_px, blur_sigma_px)
    rounds = METHODS[method].rounds_between
    columns_first = to_px < from_px and not rounds
    return Passes(
        from_px,
        to_px,
        across=_across(second if columns_first else first, device),
        down=_down(first if columns_first else second, device),
        rounds_between=rounds,
    )


def _weights(method: str, from_px: int, to_px: int, blur_sigma_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the first and of the second pass, in units that keep the sums exact."""
    weights = resampling_matrix(method, from_px, to_px)
    if blur_sigma_px:
        weights = weights @ _gaussian(from_px, blur_sigma_px)
    headroom = math.ceil(math.log2(np.abs(weights).sum(axis=1).max() - 1e-9))
    if not METHODS[method].rounds_between:
        first = _whole_units(weights, bits=_EXACT_BITS - _PIXEL_BITS - headroom)
        return first, _whole_units(weights, bits=_FRACTION_BITS)
    first = np.floor(np.abs(weights) * 2**_PILLOW_BITS + 0.5) * np.sign(weights) / 2**_PILLOW_BITS
    if to_px <= from_px:
        return first, first
    return first, _whole_units(weights, bits=_EXACT_BITS - _HALVES_BITS - headroom)


@dataclass(frozen=True)
class Trip:
    """A way to a smaller size and back, by methods that round once."""

    size_px: int
    down: str
    up: str
    blur_sigma_px: float = 0.0


def run_trips(
    crops: UInt8[Tensor, "n s s 3"], rows: Sequence[int], trips: Sequence[Trip], *, out: UInt8[Tensor, "n s s 3"]
) -> None:
    """Write some crops after a trip each, to any sizes in one go: what two calls of :func:`run_passes` would give.

    Small pictures are padded with zeros to the largest; zeros change no sum. The channels are pulled apart where the
    pictures are small.

    Args:
        crops: Square RGB pictures.
        rows: Which of them.
        trips: One for each of these; they had better be of similar sizes.
        out: Where the results go, in the places that the crops have.
    """
    count, side, work = len(rows), crops.shape[1], Workspace.of(crops.device)
    inner = -(-max(trip.size_px for trip in trips) // _PADDED_TO) * _PADDED_TO
    there = _stacked([_padded(trip, side, inner, back=False, device=crops.device) for trip in trips])
    back = _stacked([_padded(trip, side, inner, back=True, device=crops.device) for trip in trips])
    pixels = work.take("pixels", (count, side, CHANNELS * side))
    for place, row in enumerate(rows):
        pixels[place].copy_(crops[row].flatten(1))
    lined = torch.bmm(there[:, 0], pixels, out=work.take("first", (count, inner, CHANNELS * side)))
    planes = work.take("planes", (count, inner, CHANNELS, side))
    planes.copy_(_to_halves(lined).view(count, inner, side, CHANNELS).movedim(3, 2))
    lines = planes.view(count, inner * CHANNELS, side)
    small = torch.bmm(lines, there[:, 1].mT, out=work.take("small planes", (count, inner * CHANNELS, inner)))
    torch.bmm(small.floor_().clamp_(0, 255), back[:, 0].mT, out=lines)
    lined.view(count, inner, side, CHANNELS).copy_(_to_halves(planes).movedim(2, 3))
    torch.bmm(back[:, 1], lined, out=pixels)
    to_pixels(pixels, out, rows)


def _stacked(weights: list[Tensor]) -> Tensor:
    if all(each is weights[0] for each in weights):
        return weights[0].expand(len(weights), -1, -1, -1)
    return torch.stack(weights)


@lru_cache(maxsize=1024)
def _padded(trip: Trip, side: int, inner: int, *, back: bool, device: torch.device) -> Tensor:
    """Return the weights of the first and the second pass of one way, with zeros beyond the small picture."""
    blur = 0.0 if back else trip.blur_sigma_px
    method, sizes = (trip.up, (trip.size_px, side)) if back else (trip.down, (side, trip.size_px))
    padded = torch.zeros((2, side, inner) if back else (2, inner, side))
    for place, weights in enumerate(_weights(method, *sizes, blur)):
        padded[place, : weights.shape[0], : weights.shape[1]] = torch.from_numpy(weights)
    return padded.to(device)


def run_passes(pictures: UInt8[Tensor, "n s s 3"], passes: Passes, work: Workspace) -> Float[Tensor, "n t v"]:
    """Return resampled gray levels plus one half, so that cutting off the fraction rounds; not clipped yet.

    Args:
        pictures: Square RGB pictures of the size that the passes start from.
        passes: From :func:`passes_of`.
        work: Memory of the caller; holds the result until it is used again.
    """
    count, wide, narrow = len(pictures), CHANNELS * passes.from_px, CHANNELS * passes.to_px
    if passes.rounds_between:
        doubles = work.take("doubles", (count, passes.from_px, wide), torch.float64).copy_(pictures.flatten(2))
        columns = work.take("exact", (count, passes.from_px, narrow), torch.float64)
        _run_across(doubles, passes.across, columns).add_(0.5).floor_().clamp_(0, 255).add_(0.5)
        if passes.to_px > passes.from_px:
            out = work.take("pixels", (count, passes.to_px, narrow))
            return _run_down(work.take("first", columns.shape).copy_(columns), passes.down, out)
        return _run_down(columns, passes.down, work.take("doubles", (count, passes.to_px, narrow), torch.float64))
    pixels = work.take("pixels", (count, passes.from_px, wide)).copy_(pictures.flatten(2))
    if passes.to_px < passes.from_px:  # columns first: fewer products, and the order makes no difference here
        rows = _run_down(pixels, passes.down, work.take("first", (count, passes.to_px, wide)))
        return _run_across(_to_halves(rows), passes.across, work.take("pixels", (count, passes.to_px, narrow)))
    columns = _run_across(pixels, passes.across, work.take("first", (count, passes.from_px, narrow)))
    return _run_down(_to_halves(columns), passes.down, work.take("pixels", (count, passes.to_px, narrow)))


def _to_halves(values: Tensor) -> Tensor:
    return values.add_(_EIGHTHS).sub_(_EIGHTHS - 0.5)


def _run_across(values: Tensor, blocks: tuple[Block, ...], out: Tensor) -> Tensor:
    rows, result = values.flatten(0, 1), out.flatten(0, 1)
    for block in blocks:
        torch.mm(rows[:, block.source], block.weights, out=result[:, block.target])
    return out


def _run_down(values: Tensor, blocks: tuple[Block, ...], out: Tensor) -> Tensor:
    for block in blocks:
        weights = block.weights.expand(len(values), -1, -1)
        torch.bmm(weights, values[:, block.source], out=out[:, block.target])
    return out


def to_pixels(values: Float[Tensor, "n s w"], out: UInt8[Tensor, "m s s 3"], rows: Sequence[int] | None = None) -> None:
    """Write what :func:`run_passes` returned as pixels, to some rows of ``out`` or to all; ``values`` is used up."""
    values.clamp_(0, 255)
    pixels = out.view(len(out), *values.shape[1:])
    if values.device.type != "cpu":
        pixels[slice(None) if rows is None else torch.tensor(rows)] = values.to(torch.uint8)
        return
    source, target = values.numpy(), pixels.numpy()  # numpy's conversion is three times as fast as torch's
    if rows is None:
        np.copyto(target, source, casting="unsafe")
        return
    for place, row in enumerate(rows):
        np.copyto(target[row], source[place], casting="unsafe")


def _across(weights: np.ndarray, device: torch.device) -> tuple[Block, ...]:
    """Cut a banded matrix into blocks, each repeated for the three channels of a pixel.

    Rows of pixels hold red, green and blue in turn. Pulling them apart costs more than multiplying by a matrix that
    is zero between channels, as long as the blocks follow the band.
    """
    best = min((_split(weights, parts) for parts in (1, 2, 3, 4, 6, 8)), key=_cost)
    blocks = []
    for first, last, low, high in best:
        dense = np.kron(weights[first:last, low:high].T, np.eye(CHANNELS, dtype=weights.dtype))
        source, target = slice(CHANNELS * low, CHANNELS * high), slice(CHANNELS * first, CHANNELS * last)
        blocks.append(Block(source, target, torch.from_numpy(dense).to(device)))
    return tuple(blocks)


def _down(weights: np.ndarray, device: torch.device) -> tuple[Block, ...]:
    parts = 2 if min(weights.shape) >= _HALVED_FROM_PX else 1
    return tuple(
        Block(slice(low, high), slice(first, last), torch.from_numpy(weights[first:last, low:high].copy()).to(device))
        for first, last, low, high in _split(weights, parts)
    )


_Part = tuple[int, int, int, int]


def _split(weights: np.ndarray, parts: int) -> list[_Part]:
    edges = np.linspace(0, len(weights), min(parts, len(weights)) + 1).round().astype(int).tolist()
    split = []
    for first, last in pairwise(edges):
        used = np.flatnonzero(np.abs(weights[first:last]).sum(axis=0))
        split.append((first, last, int(used[0]), int(used[-1]) + 1))
    return split


def _cost(split: list[_Part]) -> float:
    """Return products per row of pixels, with what one more call costs in products."""
    return sum((last - first) * (high - low) + 300.0 for first, last, low, high in split)


def _whole_units(weights: np.ndarray, *, bits: int) -> np.ndarray:
    """Round weights to multiples of 2^-bits so that each row still sums to 1, with the largest remainders."""
    scaled = weights * 2**bits
    whole = np.floor(scaled)
    missing = np.rint(2**bits - whole.sum(axis=1)).astype(int)
    order = np.argsort(whole - scaled, axis=1, kind="stable")
    raised = np.arange(weights.shape[1]) < missing[:, None]
    np.put_along_axis(whole, order, np.take_along_axis(whole, order, axis=1) + raised, axis=1)
    return cast(np.ndarray, (whole / 2**bits).astype(np.float32))


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """Return a Gaussian blur as a matrix; what lies beyond the border is the border's pixel."""
    reach = max(1, math.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return kernels.gather(np.repeat([kernel / kernel.sum()], size, axis=0), np.arange(size) - reach, size)


METHODS: dict[str, Method] = {
    "pil-nearest": Method(kernels.nearest_center, rounds_between=True),
    "pil-box": Method(kernels.averaged(kernels.box, 0.5), rounds_between=True),
    "pil-bilinear": Method(kernels.averaged(kernels.triangle, 1.0), rounds_between=True),
    "pil-hamming": Method(kernels.averaged(kernels.hamming, 1.0), rounds_between=True),
    "pil-bicubic": Method(kernels.averaged(kernels.cubic(-0.5), 2.0), rounds_between=True),
    "pil-lanczos": Method(kernels.averaged(kernels.lanczos(3), 3.0), rounds_between=True),
    "cv2-nearest": Method(kernels.nearest_corner_opencv, rounds_between=False),
    "cv2-linear": Method(kernels.sampled(kernels.triangle, 2), rounds_between=False),
    "cv2-area": Method(kernels.area, rounds_between=False),
    "cv2-cubic": Method(kernels.sampled(kernels.cubic(-0.75), 4), rounds_between=False),
    "cv2-lanczos4": Method(kernels.sampled(kernels.lanczos(4), 8), rounds_between=False),
    "torch-nearest": Method(kernels.nearest_corner_torch, rounds_between=False),
    "torch-area": Method(kernels.whole_area, rounds_between=False),
    "torch-bilinear": Method(kernels.sampled(kernels.triangle, 2), rounds_between=False),
    "torch-bilinear-antialias": Method(kernels.averaged(kernels.triangle, 1.0), rounds_between=False),
    "torch-bicubic": Method(kernels.sampled(kernels.cubic(-0.75), 4), rounds_between=False),
    "torch-bicubic-antialias": Method(kernels.averaged(kernels.cubic(-0.5), 2.0), rounds_between=False),
}
