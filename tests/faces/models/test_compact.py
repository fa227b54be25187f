"""Small networks of our own: their sizes, and a file that brings its description along."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyhole.errors import UnknownNameError, WeightsError
from keyhole.faces.models.compact import COMPACT, compact, form_of, load_compact
from keyhole.faces.models.face_model import load_face_model, save_face_model
from keyhole.faces.models.openvino_ir import read_ir
from keyhole.faces.models.preparation import Licenses
from keyhole.files import write_tensors


@pytest.mark.parametrize("name", COMPACT)
def test_networks_embed_at_their_size(name: str) -> None:
    network = compact(name).eval()
    side = form_of(name).size_px
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 256)
    count = sum(weight.numel() for weight in network.parameters())
    assert count <= (280_000 if name.endswith("-s") else 1_200_000)
    assert form_of(name).preparation.size_px == side


def test_embeddings_are_as_large_as_their_teachers() -> None:
    network = compact("compact-24-s", 128).eval()
    assert network(torch.zeros(1, 3, 24, 24)).shape == (1, 128)
    again = load_compact(network.state_dict(), name="compact-24-s")
    assert again(torch.zeros(1, 3, 24, 24)).shape == (1, 128)


def test_all_weights_learn() -> None:
    torch.manual_seed(0)
    network = compact("compact-24-s")
    network(torch.randn(4, 3, 24, 24)).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_a_file_brings_its_description(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = compact("compact-24-s").eval()
    path = tmp_path / "student.safetensors"
    terms = Licenses(code="Apache-2.0", weights="Apache-2.0", data="drawn")
    how = form_of("compact-24-s").preparation
    save_face_model(path, network, "compact-24-s", how, licenses=terms, about={"epochs": 3})
    model = load_face_model(path, threads=1, device="cpu")
    assert (model.name, model.preparation, model.licenses, model.embedding_size) == ("student", how, terms, 256)
    crops = torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        rows = network((crops.permute(0, 3, 1, 2).float() - 127.5) / 127.5)
    torch.testing.assert_close(model.embed(crops), torch.nn.functional.normalize(rows), rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    network = compact("compact-24-s")
    with pytest.raises(UnknownNameError, match="nearest known: compact-24-s"):
        compact("compact-24")
    how = form_of("compact-24-s").preparation
    with pytest.raises(UnknownNameError, match="Unknown network"):
        save_face_model(tmp_path / "x.safetensors", network, "mine", how, licenses=Licenses())
    with pytest.raises(WeightsError, match="are not those of compact-112-m"):
        load_compact(network.state_dict(), name="compact-112-m")
    write_tensors(tmp_path / "y.safetensors", dict(network.state_dict()), {"kind": "keyhole face model 1"})
    with pytest.raises(WeightsError, match="does not describe its face model"):
        load_face_model(tmp_path / "y.safetensors")


def test_a_graph_is_kept_with_its_weights(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "faces" / "models" / "face-reidentification-retail-0095.fp16.xml"
    original = load_face_model(source, threads=1)
    path = tmp_path / "student.safetensors"
    save_face_model(path, read_ir(source), "graph", original.preparation, licenses=original.licenses)
    again = load_face_model(path, threads=1, device="cpu")
    crops = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    torch.testing.assert_close(again.embed(crops), original.embed(crops), rtol=0, atol=2e-3)
    assert again.fingerprint != original.fingerprint  # another runtime rounds otherwise
