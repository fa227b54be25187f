"""bf16 on processors that have no instructions for it: products in fp32 of numbers rounded to bf16.

PyTorch computes convolutions and matrix products of bf16 one number at a time there, ten to seventy times as slowly as
in fp32. What such an instruction gives is the sum, in fp32, of products of bf16 numbers, rounded to bf16; a product of
two such numbers is exact in fp32. So rounding what goes into a product of fp32 and what comes out of it gives the same
numbers, but for the order of the sum, in about the time of fp32. Gradients are rounded likewise, as what goes forward
through a rounding goes back through one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_BF16, _FP32 = torch.bfloat16, torch.float32
_PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    [
        functional.conv1d, functional.conv2d, functional.conv3d,
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d,
        functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.addbmm, torch.baddbmm, torch.einsum,
        Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
        Tensor.addmm, Tensor.addbmm, Tensor.baddbmm,
    ]
)  # fmt: skip


def _asked() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported is not None and supported())


_INSTRUCTIONS = _asked()


def has_instructions() -> bool:
    """Return whether PyTorch's kernels for this processor multiply in bf16."""
    return _INSTRUCTIONS


class RoundedProducts(TorchFunctionMode):
    """While it is entered, products of bf16 on the CPU are made in fp32, of rounded numbers, and rounded.

    That concerns convolutions and matrix products of bf16 tensors, and those of any tensors that ``torch.autocast``
    takes to bf16. All else stays as it is, so do tensors of double precision and those of a GPU.

    Example:
        >>> image, weight = torch.rand(1, 4, 8, 8).bfloat16(), torch.rand(4, 4, 3, 3).bfloat16()
        >>> with RoundedProducts():
        ...     found = torch.conv2d(image, weight)
        >>> found.dtype, bool(((found - torch.conv2d(image, weight)).abs() <= found / 128).all())
        (torch.bfloat16, True)
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute what is asked for."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _concerned([*args, *kwargs.values()]):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        return found.to(_BF16)


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products of bf16 are fast on a device.

    It does nothing but on a processor without instructions for bf16, where it is :class:`RoundedProducts`.
    """
    return RoundedProducts() if device.type == "cpu" and not has_instructions() else nullcontext()


def convolution_backward(gradient: Tensor, feature: Tensor, weight: Tensor, *how: Any) -> tuple[Tensor | None, ...]:
    """Return what ``torch.ops.aten.convolution_backward`` does, as fast as in fp32 where tensors are of bf16.

    Args:
        gradient: Of the output.
        feature: What the convolution took, of the gradient's precision.
        weight: Its weight, of the gradient's precision.
        how: All further arguments of that function.

    Returns:
        Gradients of the feature, of the weight and of the bias; None for those that are not wanted.
    """
    found: tuple[Tensor | None, ...]
    if gradient.dtype != _BF16 or gradient.device.type != "cpu" or has_instructions():
        found = torch.ops.aten.convolution_backward(gradient, feature, weight, *how)
        return found
    found = torch.ops.aten.convolution_backward(gradient.to(_FP32), feature.to(_FP32), weight.to(_FP32), *how)
    return tuple(None if part is None else part.to(_BF16) for part in found)


def _concerned(values: list[Any]) -> bool:
    tensors = [value for value in _flat(values) if isinstance(value, Tensor)]
    if not tensors or any(value.device.type != "cpu" for value in tensors):
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == _BF16:
        return all(value.dtype in (_BF16, _FP32, torch.float16) for value in tensors)
    return all(value.dtype == _BF16 for value in tensors)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(_BF16).to(_FP32)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_rounded, value))
    return value
