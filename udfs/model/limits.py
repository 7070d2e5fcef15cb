"""How many tokens a model can read."""

from __future__ import annotations

from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.sentence_settings import find_longest

# Position tables of these begin at padding_idx + 1, so that they hold that many tokens fewer.
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
NO_LIMIT = 1_000_000  # transformers writes about 1e30 for "none"


def resolve_max_tokens(files: ModelFiles, asked: int | None) -> int:
    """The longest item: what was asked for, or what the model's files say, never above its position table.

    A static model reads texts of any length, unless its own tokenizer cuts them.

    Raises:
        ModelError: More was asked for than the model can read.
    """
    limit = position_limit(files)
    if files.is_static and asked is None:
        cut = files.read_json("tokenizer.json").get("truncation") or {}
        return int(cut.get("max_length") or NO_LIMIT)
    if asked is not None:
        if asked > limit:
            raise ModelError(f"max_tokens is {asked}, but model {files.name!r} reads at most {limit} tokens")
        return asked
    told = find_longest(files) or files.read_json("tokenizer_config.json").get("model_max_length") or limit
    if not isinstance(told, int | float) or not told >= 1:
        raise ModelError(f"model {files.name!r}: its files say that it reads {told!r:.100} tokens; give max_tokens")
    return int(min(told, limit)) if min(told, limit) < NO_LIMIT else 512


def check_answer_fits(files: ModelFiles, max_new_tokens: int) -> None:
    """Refuse an answer that is longer than a model with an encoder has places for; its text has places of its own.

    Raises:
        ModelError: It is.
    """
    positions = files.config.get("max_position_embeddings")
    if files.config.get("is_encoder_decoder") and positions and max_new_tokens >= positions:
        raise ModelError(
            f"max_new_tokens is {max_new_tokens}, but model {files.name!r} writes at most {int(positions) - 1} tokens"
        )


def position_limit(files: ModelFiles) -> int:
    """Tokens that the model has places for; a million where it has no table of them.

    Raises:
        ModelError: Its positions depend on the length of a text above a number of tokens that is not told.
    """
    config = files.config.get("text_config") or files.config
    positions = config.get("max_position_embeddings") or config.get("n_positions") or NO_LIMIT
    if positions == NO_LIMIT and _has_dynamic_positions(config):
        raise ModelError(
            f"model {files.name!r} has dynamic positions, and its config.json lacks max_position_embeddings, by which "
            "they go; add it"
        )
    positions -= first_position(config)
    return int(positions) if positions > 0 else NO_LIMIT


def _has_dynamic_positions(config: dict[str, Any]) -> bool:
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_layer = (part for part in told.values() if isinstance(part, dict))
    return any("dynamic" in str(part.get("rope_type") or part.get("type")) for part in (told, *by_layer))


def first_position(config: dict[str, Any]) -> int:
    """What a model of this config calls the place of its first token: 0, or one after its padding token's id."""
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return 0
    pad_id = config.get("pad_token_id")
    return (1 if pad_id is None else int(pad_id)) + 1
