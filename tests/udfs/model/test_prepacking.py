"""Layers of a model on a CPU with their weights laid out anew: what it computes stays the same."""

from __future__ import annotations

import pytest
import torch
import transformers

from udfs.model.prepacking import prepack


def _bert(activation: str) -> transformers.BertModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_act=activation,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_prepacked_model_computes_what_it_did(activation: str, dtype: torch.dtype, tolerance: float) -> None:
    ids = torch.arange(40).reshape(2, 20)
    model = _bert(activation).to(dtype)
    with torch.inference_mode():
        before = model(ids).last_hidden_state.clone()
        after = prepack(model)(ids).last_hidden_state
    # a processor without instructions for bfloat16 keeps the layers that it has
    prepacks = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert any(type(part) is torch.nn.Linear for part in model.modules()) != prepacks
    assert isinstance(model.encoder.layer[0].intermediate.intermediate_act_fn, torch.nn.Identity) == (
        prepacks and activation == "gelu"
    )
    assert torch.allclose(before, after, rtol=0, atol=tolerance)


def test_other_types_stay_as_they_are() -> None:
    model = prepack(_bert("gelu").to(torch.float16))
    assert type(model.encoder.layer[0].intermediate.dense) is torch.nn.Linear
