"""Load a checked model's weights onto a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from udfs.errors import ModelError, first_line
from udfs.model.attention import PACKED, register
from udfs.model.files import ModelFiles
from udfs.model.limits import resolve_max_tokens
from udfs.model.memory import is_out_of_memory
from udfs.model.merging import held_by_adapter, merge_adapter
from udfs.model.own_code import tell_code_needed
from udfs.model.positions import settle_positions
from udfs.model.prepacking import prepack
from udfs.model.quantized import check_not_quantized
from udfs.model.quiet import quiet_transformers

_PLAIN_ATTENTION_TOKENS = 512
# What transformers raises of a config.json that does not fit to what it makes of it.
CANNOT_LOAD = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError),
    *(LookupError, OSError, RuntimeError, TypeError, ValueError),
)
# What a model returns, whatever its config.json asks for.
_OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def load_transformer(
    auto_class: str,
    files: ModelFiles,
    *,
    device: str,
    precision: str,
    packed: bool = False,
    attention: str | None = None,
    generation: dict[str, Any] | None = None,
) -> Any:
    """Load safetensors from the checked copy, without a network and without code of the model's own.

    Args:
        auto_class: Name of transformers' class, `AutoModel` or `AutoModelFor…`.
        files: The checked model.
        device: torch's name.
        precision: Floating-point type of the weights.
        packed: Its micro-batches are packed; it then knows no padded ones.
        attention: transformers' name for it; None takes what is fastest for micro-batches.
        generation: Settings of a model that writes, in the place of those that it comes with.

    Returns:
        The module in evaluation mode.

    Raises:
        UnsafeModelError: Its weights are those of its own code's architecture.
        ModelError: transformers does not know the architecture, or the files lack weights that it needs: it would fill
            them with random numbers.
    """
    check_not_quantized(files)
    quiet_transformers()
    register()
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    options: dict[str, Any] = {
        "dtype": getattr(torch, precision),
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "output_loading_info": True,
        **_OUTPUTS,
        **_labels_of_adapter(files),
    }
    loader = getattr(transformers, auto_class)
    attention = attention or (PACKED if packed else choose_attention(files, device))
    try:
        if generation is not None:
            options["generation_config"] = transformers.GenerationConfig(**generation)
        model, info = _load_with_attention(loader, files, attention, options)
    except (*CANNOT_LOAD, StrictDataclassError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model {files.name!r} does not load as {auto_class}: {first_line(error)}") from error
    # A base model's pooler is not used, and may have been saved without.
    held = held_by_adapter(model, files)
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])} - held
    missing = [key for key in sorted(lacking) if not key.startswith("pooler.")]
    if files.names_code:
        tell_code_needed(files, type(model).__name__, set(missing))
    if missing:
        raise ModelError(
            f"model {files.name!r} lacks {len(missing)} of the weights of {type(model).__name__} ({missing[0]}, …); "
            "it was saved for another task"
        )
    if files.adapter:
        model = merge_adapter(model, files, files.adapter)
    model = model.eval().requires_grad_(False).to(device)
    settle_positions(model)
    return prepack(model) if packed else model


def choose_attention(files: ModelFiles, device: str) -> str:
    """The fastest attention: fused, but on a CPU with short items plain matrix products.

    all-MiniLM-L6-v2 in bfloat16 on two cores scored 13 % more rows/s with plain products, of short and of mixed
    texts; their memory grows with the square of the length, so they are not for long ones.
    """
    return "eager" if device == "cpu" and resolve_max_tokens(files, None) <= _PLAIN_ATTENTION_TOKENS else "sdpa"


def leave_masks_unread() -> None:
    """Have transformers make each mask of padding that it is given, without a look at it first.

    A lane would wait for its GPU to answer; and `BatchMaker` gives no mask where nothing is padded.
    """
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    def unread(make_mask: Callable[..., Any]) -> Callable[..., Any]:
        def make(*, attention_mask: Any = None, **options: Any) -> Any:
            if attention_mask is not None:
                options["allow_is_bidirectional_skip"] = False
            return make_mask(attention_mask=attention_mask, **options)

        return make

    AttentionMaskInterface.register("sdpa", unread(sdpa_mask))
    AttentionMaskInterface.register("eager", unread(eager_mask))


@contextmanager
def masks_as_usual() -> Iterator[None]:
    """Within it transformers makes masks in its own way: for models of others in a process that has an engine.

    Names of our own for attention and masks would keep the two apart, but some models do not know them for what they
    are: Falcon would add the mask of truth values that "sdpa" has to its products, and answer wrongly.
    """
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    masks = AttentionMaskInterface()
    before = {name: masks[name] for name in ("sdpa", "eager")}
    AttentionMaskInterface.register("sdpa", sdpa_mask)
    AttentionMaskInterface.register("eager", eager_mask)
    try:
        yield
    finally:
        for name, make_mask in before.items():
            AttentionMaskInterface.register(name, make_mask)


def _labels_of_adapter(files: ModelFiles) -> dict[str, Any]:
    """What an adapter changes of its base's configuration: its labels; their head comes with the adapter."""
    if files.base is None:
        return {}
    names = ("id2label", "label2id", "problem_type")
    changed = {n: files.config[n] for n in names if files.config.get(n) != files.base.config.get(n)}
    if "id2label" in changed:
        changed["id2label"] = {int(key): label for key, label in changed["id2label"].items()}
    return {"ignore_mismatched_sizes": True, **changed}


def _load_with_attention(loader: Any, files: ModelFiles, attention: str, options: dict[str, Any]) -> Any:
    try:
        return loader.from_pretrained(files.weights, attn_implementation=attention, **options)
    except ValueError as error:
        if attention == "eager" or ("attention" not in str(error) and "sdpa" not in str(error)):
            raise
        return loader.from_pretrained(files.weights, attn_implementation="eager", **options)
