"""MobileFaceNet has the published size and gives what the loader that came with the weights gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from keyhole.errors import WeightsError
from keyhole.faces.models.mobilefacenet import MobileFaceNet, load_mobilefacenet
from keyhole.faces.models.weights import read_weights


def tool(shared: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, shared / "data" / "faces" / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_weights_in_circulation_give_the_same_embeddings(shared: Path) -> None:
    path = shared / "data" / "faces" / "models" / "foamliu_mobilefacenet.pt"
    theirs = tool(shared, "mobilefacenets").foamliu(str(path))
    ours = load_mobilefacenet(read_weights(path))
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_about_a_million_parameters() -> None:
    # "less than 1 million" in the paper, section 1, with a 128-d embedding
    assert 0.9e6 < sum(p.numel() for p in MobileFaceNet().parameters()) < 1.05e6


def test_other_weights_are_refused_in_one_line() -> None:
    weights = MobileFaceNet().state_dict()
    del weights["gdconv.depthwise.weight"]
    with pytest.raises(WeightsError, match="not those of a MobileFaceNet") as caught:
        load_mobilefacenet(weights)
    assert "\n" not in str(caught.value)
