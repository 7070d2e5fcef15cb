"""Whether a model is told its two texts apart by a type of each token, as BERT is and RoBERTa is not."""

from __future__ import annotations

from udfs.model.files import ModelFiles

# Tokenizers of transformers that tell types where their own settings name no inputs.
_TELL = {
    *("Bert", "Canine", "ConvBert", "DPRContextEncoder", "DPRQuestionEncoder", "Deberta", "DebertaV2", "Electra"),
    *("FNet", "LayoutLM", "LayoutLMv2", "Lxmert", "MarkupLM", "MobileBert", "SqueezeBert", "Tapas"),
}
# The models whose tokenizer is one of them where no file names it.
_TOLD = {
    *("bert", "canine", "convbert", "deberta", "deberta-v2", "electra", "ernie", "fnet", "layoutlm", "lxmert"),
    *("megatron-bert", "mobilebert", "nezha", "nomic_bert", "qdqbert", "squeezebert", "tapas"),
}


def reads_types(files: ModelFiles) -> bool:
    """Whether transformers gives a model the types that its tokenizer makes.

    By what the tokenizer's settings name as its inputs, else by its class; never where the model has one type alone.

    Source: transformers, `model_input_names` of its tokenizers; sentence-transformers leaves out what a model's call
    does not name.
    """
    if int(files.config.get("type_vocab_size") or 0) == 1:
        return False
    told = files.read_json("tokenizer_config.json")
    if isinstance(names := told.get("model_input_names"), list):
        return "token_type_ids" in names
    kind = told.get("tokenizer_class") or files.config.get("tokenizer_class")
    if kind:
        return str(kind).removesuffix("Fast").removesuffix("Tokenizer") in _TELL
    return files.config.get("model_type") in _TOLD
