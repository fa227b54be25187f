"""bf16 on processors for which PyTorch has no kernels for it: products in fp32 of the same numbers, rounded to bf16.

PyTorch computes convolutions and matrix products of bf16 one number at a time there, ten to seventy times as slowly as
in fp32. What a kernel gives is the sum, in fp32, of products of bf16 numbers, rounded to bf16; a product of two such
numbers is exact in fp32. So what fp32 gives of the same numbers, rounded, is the same but for the order of the sum, and
takes little longer than fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_BF16, _FP32 = torch.bfloat16, torch.float32
_ATEN = torch.ops.aten
_PRODUCTS = frozenset(
    [
        _ATEN.convolution.default, _ATEN.convolution_backward.default, _ATEN.mm.default, _ATEN.bmm.default,
        _ATEN.addmm.default, _ATEN.baddbmm.default, _ATEN.addbmm.default,
    ]
)  # fmt: skip
_ATTENTION = frozenset(
    [
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
    ]
)


def _kernels() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported is not None and supported())


_KERNELS = _kernels()


def has_kernels() -> bool:
    """Return whether PyTorch has kernels for products of bf16 on this processor.

    Where it has, the processor may still lack instructions for them, and take longer than in fp32, but not ten times.
    """
    return _KERNELS


class ProductsInFp32(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its __init_subclass__
    """While it is entered, products of bf16 tensors on the CPU are made in fp32, and rounded to bf16.

    Those are convolutions, matrix products and attention, whoever asks for them, and in a backward pass within it their
    gradients. Everything else stays as it is.

    Example:
        >>> image, weight = torch.rand(1, 4, 8, 8).bfloat16(), torch.rand(4, 4, 3, 3).bfloat16()
        >>> with ProductsInFp32():
        ...     found = torch.conv2d(image, weight)
        >>> found.dtype, bool(((found - torch.conv2d(image, weight)).abs() <= found / 128).all())
        (torch.bfloat16, True)
    """

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code run within it, whose products then come here one by one."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute what is asked for."""
        kwargs = kwargs or {}
        if func in _PRODUCTS and _all_bf16(args):
            found = func(*map(_widened, args), **kwargs)
            return tuple(map(_narrowed, found)) if isinstance(found, tuple) else _narrowed(found)
        if func in _ATTENTION and _all_bf16(args[:3]):
            found = func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})
            if len(found) == 2:  # forward; the logarithms of its sums stay in fp32
                return _narrowed(found[0]), found[1]
            return tuple(map(_narrowed, found))
        if torch.is_inference_mode_enabled():  # where functions of several products come whole
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products of bf16 are fast on a device; a backward pass needs one of its own.

    It does nothing but on a processor for which there are no kernels of bf16, where it is :class:`ProductsInFp32`.
    """
    if device.type != "cpu" or has_kernels():
        return nullcontext()
    mode: AbstractContextManager[Any] = ProductsInFp32()  # type: ignore[no-untyped-call]
    return mode


def _all_bf16(values: Iterable[Any]) -> bool:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return bool(tensors) and all(
        value.dtype == _BF16 and value.device.type == "cpu" and value.layout == torch.strided for value in tensors
    )


def _widened(value: Any) -> Any:
    return value.to(_FP32) if isinstance(value, Tensor) and value.dtype == _BF16 else value


def _narrowed(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.to(_BF16)
