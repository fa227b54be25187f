"""EdgeFace has the published numbers of parameters and takes state dicts as they are published."""

from __future__ import annotations

import pytest
import torch

from keyhole.errors import WeightsError
from keyhole.faces.models.edgeface import LowRankLinear, edgeface, load_edgeface


@pytest.mark.parametrize(("name", "millions"), [("edgeface-xxs", 1.24), ("edgeface-xs", 1.77), ("edgeface-s", 3.65)])
def test_published_numbers_of_parameters(name: str, millions: float) -> None:
    # table of variants in the authors' repository
    network = edgeface(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    thin = [part for part in network.modules() if isinstance(part, LowRankLinear)]
    assert bool(thin) == (name != "edgeface-xxs")
    # with a whole last layer the two larger ones would have 0.02 and 0.05 million more
    assert isinstance(network.get_submodule("head.fc"), LowRankLinear) == bool(thin)


def test_a_state_dict_with_the_published_prefix_loads() -> None:
    source = edgeface("edgeface-xs").eval()
    published = {f"model.{name}": value for name, value in source.state_dict().items()}
    assert "model.stages.1.blocks.2.mlp.fc1.linear1.weight" in published
    network = load_edgeface(published, "edgeface-xs")
    image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = network(image)
        assert found.shape == (1, 512)
        assert torch.equal(found, source(image))


def test_weights_of_another_size_are_refused_in_one_line() -> None:
    with pytest.raises(WeightsError, match="not those of edgeface-s ") as caught:
        load_edgeface(edgeface("edgeface-xxs").state_dict(), "edgeface-s")
    assert "\n" not in str(caught.value)


def test_a_low_rank_layer_is_one_linear_layer_of_that_rank() -> None:
    layer = LowRankLinear(6, 5, rank=2, bias=True)
    product = layer.linear2.weight @ layer.linear1.weight
    assert torch.linalg.matrix_rank(product) == 2
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), x @ product.T + layer.linear2.bias)
