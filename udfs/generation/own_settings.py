"""What of a model's own generation settings is obeyed, and what of them that shapes answers is not."""

from __future__ import annotations

from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.writing_options import WritingOptions

# transformers' names. What tokens are called, and what shapes an answer and is the same for a text beside any others.
_SINGLE_IDS = {"pad_token_id", "bos_token_id", "decoder_start_token_id"}
_OBEYED_BY_ALL = _SINGLE_IDS | {"eos_token_id", "repetition_penalty"}
_OBEYED = _OBEYED_BY_ALL | {
    "length_penalty",
    "early_stopping",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "renormalize_logits",
    "remove_invalid_values",
}
_OBEYED_BY_BEAMS = {"encoder_repetition_penalty", "encoder_no_repeat_ngram_size"}  # they read the text, not the answer

# With the value that changes nothing; what is drawn and how long answers are, the job says itself.
_SHAPES: dict[str, Any] = {
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "diversity_penalty": 0.0,
}
_SHAPES_WHAT_IS_DRAWN: dict[str, Any] = {
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
_SHOWN = 40  # characters of a value


def read_obeyed(files: ModelFiles, *, num_beams: int = 1) -> dict[str, Any]:
    """What is obeyed of a model's own generation settings, which is all that transformers is to know of them.

    Of a decoder its end tokens and repetition penalty, of an encoder-decoder more. The rest would break it
    (`num_return_sequences`, `return_dict_in_generate`, `cache_implementation`, …), or make an answer depend on the
    clock (`max_time`), or is the job's to say.

    Raises:
        ModelError: A setting is of another kind than transformers takes.
    """
    names = _OBEYED if files.config.get("is_encoder_decoder") else _OBEYED_BY_ALL
    if num_beams > 1:
        names = names | _OBEYED_BY_BEAMS
    own = _read_own(files)
    kept = {name: own[name] for name in names if own.get(name) not in (None, [], {})}
    for name, value in kept.items():
        if not _fits(name, value):
            raise ModelError(f"model {files.name!r} has the generation setting {name} {value!r:.60}; mend it")
    singles = {name: kept[name][0] for name in _SINGLE_IDS & kept.keys() if isinstance(kept[name], list)}
    return kept | singles


def _fits(name: str, value: Any) -> bool:
    """Whether an id is a number or a list of them, and a penalty is above zero, or one of length of any sign."""
    if name.endswith("_id") or name.endswith("suppress_tokens"):
        return all(isinstance(id_, int) for id_ in (value if isinstance(value, list) else [value]))
    if name == "exponential_decay_length_penalty" or not name.endswith("_penalty"):  # transformers looks at these
        return True
    return isinstance(value, int | float) and (value > 0 or name == "length_penalty")


def tell_ignored(files: ModelFiles, spec: ScoreSpec) -> str | None:
    """A warning that names the settings that are ignored; None where there are none."""
    if not isinstance(spec.options, WritingOptions):
        return None
    own, obeyed = _read_own(files), read_obeyed(files, num_beams=spec.options.num_beams)
    neutral = _SHAPES | (_SHAPES_WHAT_IS_DRAWN if spec.options.temperature else {})
    found = [
        f"{name}={_shorten(own[name])}"
        for name, value in neutral.items()
        if own.get(name) not in (None, value, [], {}) and own[name] is not False and name not in obeyed
    ]
    if not found:
        return None
    stop = "; give stop strings as score.stop" if own.get("stop_strings") else ""
    kind = "an encoder-decoder" if files.config.get("is_encoder_decoder") else "a decoder"
    return f"model {files.name!r} comes with {', '.join(found)}, which gristmill ignores in {kind}{stop}"


def _read_own(files: ModelFiles) -> dict[str, Any]:
    """Generation settings where transformers looks for them: an old model's are in its config, or in its decoder's."""
    if own := files.read_json("generation_config.json"):
        return own
    names = ("decoder", "generator", "text_config")
    decoder: dict[str, Any] = next((files.config[name] for name in names if files.config.get(name)), {})
    return {**decoder, **{name: value for name, value in files.config.items() if value is not None}}


def _shorten(value: Any) -> str:
    told = str(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
