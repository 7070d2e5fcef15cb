"""Models of images or sounds alone are refused by what transformers' source says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.inputs import check_takes_text


def _files(model_type: str, architecture: str) -> ModelFiles:
    config = {"model_type": model_type, "architectures": [architecture]}
    return ModelFiles("m", Path(), Path(), config=config)


@pytest.mark.parametrize(
    ("model_type", "architecture", "told"),
    [("vit", "ViTModel", "pixel_values"), ("wav2vec2", "Wav2Vec2Model", "input_values")],
)
def test_a_model_of_images_or_sounds_is_refused_with_what_it_takes(
    model_type: str, architecture: str, told: str
) -> None:
    with pytest.raises(ModelError, match=f"takes {told}, .* no texts"):
        check_takes_text(_files(model_type, architecture))


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("bert", "BertModel"),
        ("xlm-roberta", "XLMRobertaForSequenceClassification"),
        ("qwen3", "Qwen3ForSequenceClassification"),  # its forward is another file's
        ("perceiver", "PerceiverForSequenceClassification"),
        ("nowhere", "NobodyModel"),
    ],
)
def test_a_model_that_takes_texts_or_is_not_known_is_not_refused(model_type: str, architecture: str) -> None:
    check_takes_text(_files(model_type, architecture))
