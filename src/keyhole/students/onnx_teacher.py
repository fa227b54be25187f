"""A teacher in ONNX Runtime: its intermediate results are made outputs, so that its layers can be tapped by name."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keyhole.errors import SettingError, WeightsError, reason_of
from keyhole.libraries import optional


class OnnxTeacher(nn.Module):
    """A frozen network of an ONNX file; where two features are added, the sum is a layer called ``add_NAME``.

    It has no weights in PyTorch and gives no gradients, which a teacher does not need. Copies share one session.

    Args:
        path: The file.
        output: Name of the output that is the embedding; the only one where missing.

    Attributes:
        sums: Names of its layers, in their order.

    Raises:
        SettingError: A library is missing, or the output does not exist.
        WeightsError: The file is no ONNX file that can be run.
    """

    def __init__(self, path: Path, *, output: str | None = None) -> None:
        super().__init__()
        onnx, runtime = (optional(name, user="Tapping an ONNX file") for name in ("onnx", "onnxruntime"))
        try:
            model = onnx.load(str(path))
            tensors = _sums(model.graph)
            first = [one.name for one in model.graph.output]
            given = {*first}
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in tensors
                if name not in given
            )
            options = runtime.SessionOptions()
            options.log_severity_level = 3
            self._session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of a dozen types, none of them public
            reason = reason_of(error)
            raise WeightsError(f"{path} is no ONNX file that can be run ({reason}). Copy it again.") from error
        if output is None and len(first) == 1:
            output = first[0]
        if output not in first:
            raise SettingError(f"{path} has the outputs {', '.join(first)}; say which is the embedding.")
        self._output, self._tensors = output, tensors
        (taken,) = self._session.get_inputs()
        if len(taken.shape) == 4 and taken.shape[3] == 3 and taken.shape[1] != 3:
            raise SettingError(f"{path} takes images with the color last; export it with the color first to teach.")
        self._input = taken.name
        self._batch = taken.shape[0] if isinstance(taken.shape[0], int) else None
        self.sums = tuple(f"add_{re.sub(r'[^0-9A-Za-z]+', '_', name)}" for name in tensors)
        for name in self.sums:
            self.add_module(name, nn.Identity())

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxTeacher:
        """Return a copy with the same session, which may run in several threads at once."""
        made = OnnxTeacher.__new__(OnnxTeacher)
        nn.Module.__init__(made)
        for key, value in vars(self).items():
            made.__dict__[key] = value if key == "_session" else copy.deepcopy(value, memo)
        return made

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (n, d) of prepared images (n, 3, s, s); all layers are passed through on the way."""
        found = self._run(images.detach().to("cpu", torch.float32).numpy())
        rows, *features = (torch.from_numpy(part).to(images) for part in found)
        for name, feature in zip(self.sums, features, strict=True):
            self._modules[name](feature)  # type: ignore[misc]  # so that whoever watches it is told
        return rows.flatten(1)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        names = [self._output, *self._tensors]
        if self._batch is None:
            return list(self._session.run(names, {self._input: images}))
        parts = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            lacking = self._batch - len(part)
            whole = np.concatenate([part, np.zeros((lacking, *part.shape[1:]), np.float32)]) if lacking else part
            parts.append([one[: len(part)] for one in self._session.run(names, {self._input: whole})])
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]


def _sums(graph: Any) -> list[str]:
    """Return the results of additions of two features, in their order: where residual blocks end."""
    constants = {one.name for one in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return [
        node.output[0]
        for node in graph.node
        if node.op_type == "Add" and not any(name in constants for name in node.input)
    ]
