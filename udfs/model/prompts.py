"""What is put before each text that is embedded: the prompts that a model's files name."""

from __future__ import annotations

from udfs.errors import ModelError
from udfs.model.files import ModelFiles


def read_prompt(files: ModelFiles, *, name: str | None = None, prompt: str | None = None) -> str:
    """The prompt that was asked for; without one, the model's default, which is "" for most.

    Args:
        files: The model.
        name: Of one of its own prompts.
        prompt: The prompt itself.

    Raises:
        ModelError: The model has no prompt of that name, or its files hold no texts for prompts.

    Source: sentence-transformers, `SentenceTransformer.encode`.
    """
    if prompt is not None:
        return prompt
    config = files.read_json("config_sentence_transformers.json")
    held, default = config.get("prompts") or {}, config.get("default_prompt_name")
    texts = [default, *(held.values() if isinstance(held, dict) else [held])]
    if not isinstance(held, dict) or any(not isinstance(text, str | None) for text in texts):
        raise ModelError(f"model {files.name!r}: prompts of config_sentence_transformers.json are no texts by names")
    if name is None and default is None:
        return ""
    wanted = default if name is None else name
    if wanted not in held:
        known = f"it has {', '.join(map(repr, held))}" if held else "it names none; `prompt` takes any text"
        asked = "its default prompt" if name is None else "prompt_name"
        raise ModelError(f"model {files.name!r} has no prompt {wanted!r}, which is {asked}; {known}")
    return held[wanted] or ""
