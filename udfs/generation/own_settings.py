"""What a model's own generation settings ask of a decoder's answers that gristmill does not do."""

from __future__ import annotations

from typing import Any

from udfs.model.files import ModelFiles
from udfs.spec import ScoreSpec
from udfs.tasks.writing_options import WritingOptions

# transformers' names with the value that changes nothing; what is drawn and how long answers are, the job says itself.
_IGNORED: dict[str, Any] = {
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
}
_IGNORED_OF_DRAWING: dict[str, Any] = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_SHOWN = 40  # characters of a value


def tell_ignored(files: ModelFiles, spec: ScoreSpec) -> str | None:
    """A warning that names the settings that are ignored; None where there are none.

    The repetition penalty is obeyed; an encoder-decoder obeys all of them.
    """
    if not isinstance(spec.options, WritingOptions) or files.config.get("is_encoder_decoder"):
        return None
    own = files.read_json("generation_config.json") or files.config  # as transformers looks for them
    neutral = _IGNORED | (_IGNORED_OF_DRAWING if spec.options.temperature else {})
    found = [
        f"{name}={_shorten(own[name])}"
        for name, value in neutral.items()
        if own.get(name) not in (None, value, [], {}) and own[name] is not False
    ]
    if not found:
        return None
    stop = "; give stop strings as score.stop" if own.get("stop_strings") else ""
    return f"model {files.name!r} comes with {', '.join(found)}, which gristmill ignores in a decoder{stop}"


def _shorten(value: Any) -> str:
    told = str(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
