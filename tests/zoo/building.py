"""Tiny random models of any architecture, in directories as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.models import write_json
from tests.zoo.shrinking import VOCABULARY, make_config, token_ids

_LEAST_SPREAD = 0.15  # of random weights: so that small states neither vanish nor grow from layer to layer
_LARGEST = 10_000_000  # numbers; what is larger has a size that was not made small
_SPECIAL_FROM = VOCABULARY - 40  # special tokens whose ids are above the small vocabulary lie here
_PLAIN_TOKENIZERS = ("GPT2", "Qwen", "GPTNeoX")
_ENDS_ALONE = ("T5", "Pegasus", "Marian", "Blenderbot", "BigBirdPegasus", "FSMT")


def build(path: Path, model_type: str, auto_class: str) -> None:
    """Save a model of the class that transformers maps to an architecture, as safetensors, with its tokenizer.

    Raises:
        ValueError: The small config has become none, or the model is not small.
    """
    import torch
    import transformers

    config = make_config(model_type)
    settle_ids(config)
    if auto_class == "AutoModelForSequenceClassification":
        config.problem_type = "regression"  # scores are logits, which no softmax hides
    auto = getattr(transformers, auto_class)
    kinds = auto._model_mapping[type(config)]
    if isinstance(kinds, tuple):  # what is saved says which of them it is
        config.architectures = [kinds[0].__name__]
    if auto_class == "AutoModelForCausalLM":
        config.forced_eos_token_id = None  # which gristmill says it ignores in a decoder
        if not config.is_encoder_decoder and hasattr(config, "is_decoder"):
            config.is_decoder = True
    with torch.device("meta"):
        numbers = sum(weights.numel() for weights in auto.from_config(config).parameters())
    if numbers > _LARGEST:
        raise ValueError(f"{numbers:,} numbers are too many: a size was not made small")
    torch.manual_seed(7)
    model = auto.from_config(config).float().eval()
    spread_weights(model)
    model.save_pretrained(path)
    save_tokenizer(path, config, model_type)


def settle_ids(config: Any, _known: dict[int, int] | None = None) -> None:
    """Give special tokens ids that the small vocabulary has; the same id stays the same."""
    known = {} if _known is None else _known
    for name, value in [*token_ids(config.to_dict())]:
        if value >= _SPECIAL_FROM:
            known.setdefault(value, _SPECIAL_FROM + len(known))
            setattr(config, name, known[value])
    for name in ("eos_token_id", "bos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(
                config,
                name,
                [known.setdefault(v, _SPECIAL_FROM + len(known)) if v >= _SPECIAL_FROM else v for v in value],
            )
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            settle_ids(part, known)


def spread_weights(model: Any) -> None:
    """Random weights large enough that each text has answers of its own."""
    import torch

    with torch.no_grad():
        for weights in model.parameters():
            weights.nan_to_num_(0.0, 0.0, 0.0)
            if weights.ndim == 2 and weights.shape[0] == model.config.num_labels:  # labels that a softmax leaves apart
                continue
            if weights.ndim >= 2 and 0 < (spread := float(weights.std())) < _LEAST_SPREAD:
                weights.mul_(_LEAST_SPREAD / spread)
            elif weights.ndim >= 2 and spread == 0 and weights.shape[-1] > 1 and float(weights.abs().max()) == 0:
                weights.normal_(0, _LEAST_SPREAD)


def save_tokenizer(path: Path, config: Any, model_type: str) -> None:
    """A fast tokenizer of bytes with the special tokens where the config has them, put around as its kind does."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    text = config.get_text_config(decoder=True)
    told = {name: _first(getattr(text, f"{name}_token_id", None)) for name in ("pad", "bos", "eos", "cls", "sep")}
    named = TOKENIZER_MAPPING_NAMES.get(model_type) or ""
    ids = {name: value for name, value in told.items() if value is not None}
    kind = _kind(named, config, ids)
    if kind in ("pair", "end"):
        ids.setdefault("pad", 0)
        ids.setdefault("sep" if kind == "pair" else "eos", ids.get("eos", 2))
    if kind == "pair":
        ids.setdefault("cls", ids.get("bos", 1))
    tokens = {value: f"<{name}>" for name, value in reversed(ids.items())}
    free = iter(i for i in range(3, _SPECIAL_FROM) if i not in tokens)
    alphabet = {character: next(free) for character in sorted(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary = alphabet | {token: i for i, token in tokens.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens.values()])
    around = {"pair": ("cls", "sep"), "end": (None, "eos"), "begin": ("bos", None), "plain": (None, None)}[kind]
    template = [f"{tokens[ids[name]]}" for name in around[:1] if name] + ["$A"]
    template += [f"{tokens[ids[name]]}" for name in around[1:] if name]
    special = [(tokens[ids[name]], ids[name]) for name in around if name]
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save(str(path / "tokenizer.json"))
    names = {f"{name}_token": tokens[i] for name, i in ids.items()}
    write_json(path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def _kind(named: str, config: Any, ids: dict[str, int]) -> str:
    """What a kind of tokenizers puts around a text: `pair`, `end`, `begin` or nothing (`plain`)."""
    if getattr(config, "is_encoder_decoder", False):
        return "end" if named.startswith(_ENDS_ALONE) or "bos" not in ids else "pair"
    if named.startswith(_PLAIN_TOKENIZERS):
        return "plain"
    if "Bert" in named or "BERT" in named or named.startswith(_ENCODERS):
        return "pair"
    if getattr(config, "is_decoder", None) is False and "cls" in ids:
        return "pair"
    return "begin" if "bos" in ids else "plain"


_ENCODERS = (
    *(
        "Albert",
        "BigBird",
        "Camembert",
        "Canine",
        "Deberta",
        "Electra",
        "Esm",
        "Flaubert",
        "FNet",
        "Funnel",
        "LayoutLM",
    ),
    *("Luke", "MarkupLM", "MPNet", "Perceiver", "Roberta", "RoFormer", "Splinter", "Tapas", "XLM", "Reformer", "Bros"),
)


def _first(value: Any) -> int | None:
    return (value[0] if value else None) if isinstance(value, list) else value
