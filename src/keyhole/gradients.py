"""Layers whose gradients PyTorch computes slowly on the CPU, with the same gradients computed fast.

Both give what PyTorch's own layers give, have the same weights, and are PyTorch's own wherever no gradient is wanted,
on a GPU, and where a graph is compiled or exported.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class PReLU(nn.PReLU):
    """``torch.nn.PReLU``; with one weight for all channels its gradient is computed with vector instructions.

    Example:
        >>> layer = PReLU()
        >>> layer(torch.tensor([[-1.0, 2.0]], requires_grad=True)).tolist()
        [[-0.25, 2.0]]
    """

    def forward(self, feature: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        """Return the feature, times the weight where it is negative."""
        if self.weight.numel() == 1 and _learns_on_the_cpu(feature, self.weight):
            found: Tensor = _Leaky.apply(*_autocast(feature), self.weight)
            return found
        return super().forward(feature)

    def _get_name(self) -> str:
        return "PReLU"


class DepthwiseConv2d(nn.Conv2d):
    """``torch.nn.Conv2d``; a depthwise one with a stride takes its gradient from that of the same one without a stride.

    What falls between the strides gets a gradient of zero. That is four times the work of a stride of 2, and still
    several times as fast as the routine for strides.

    Example:
        >>> layer = DepthwiseConv2d(8, 8, 3, stride=2, padding=1, groups=8)
        >>> layer(torch.zeros(2, 8, 6, 6)).shape
        torch.Size([2, 8, 3, 3])
    """

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        """Return the convolution of a feature."""
        depthwise = self.groups == self.in_channels == self.out_channels and self.padding_mode == "zeros"
        if not (depthwise and max(self.stride) > 1 and isinstance(self.padding, tuple) and input.ndim == 4):
            return super().forward(input)
        if not _learns_on_the_cpu(input, self.weight):
            return super().forward(input)
        taken = _autocast(input, self.weight, *([] if self.bias is None else [self.bias]))
        found: Tensor = _Strided.apply(self.stride, self.padding, self.dilation, *taken)
        return found

    def _get_name(self) -> str:
        return "Conv2d"


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Return tensors in the precision that autocast asks for, which leaves double precision alone."""
    if not torch.is_autocast_enabled("cpu"):
        return list(tensors)
    wanted = torch.get_autocast_dtype("cpu")
    return [tensor if tensor.dtype == torch.float64 else tensor.to(wanted) for tensor in tensors]


def _learns_on_the_cpu(feature: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and (feature.requires_grad or weight.requires_grad)
        and feature.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


class _Leaky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(feature, weight)
        return functional.leaky_relu(feature, float(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        feature, weight = ctx.saved_tensors
        of_feature = torch.ops.aten.leaky_relu_backward(gradient, feature, float(weight), False)
        of_weight = feature.clamp(max=0).mul_(gradient).sum()  # in single precision, then rounded
        return of_feature, of_weight.reshape(weight.shape).to(weight.dtype)


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        feature: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        ctx.save_for_backward(feature, weight)
        ctx.how = stride, padding, dilation, bias is not None
        with torch.autocast("cpu", enabled=False):
            return functional.conv2d(feature, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        feature, weight = ctx.saved_tensors
        stride, padding, dilation, biased = ctx.how
        sides = [
            side + 2 * pad - step * (kernel - 1)
            for side, pad, step, kernel in zip(feature.shape[2:], padding, dilation, weight.shape[2:], strict=True)
        ]
        last = feature.is_contiguous(memory_format=torch.channels_last)
        whole = torch.empty(
            (*gradient.shape[:2], *sides),
            dtype=gradient.dtype,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        ).zero_()
        whole[:, :, :: stride[0], :: stride[1]] = gradient
        of_feature, of_weight, of_bias = torch.ops.aten.convolution_backward(
            whole, feature, weight, [len(weight)] if biased else None, (1, 1), padding, dilation, False, (0, 0),
            len(weight), (ctx.needs_input_grad[3], ctx.needs_input_grad[4], biased),
        )  # fmt: skip
        return None, None, None, of_feature, of_weight, *([of_bias] if biased else [])
