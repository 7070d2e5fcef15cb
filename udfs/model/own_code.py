"""Whether a model that names Python code of its own is what transformers has under that name."""

from __future__ import annotations

from typing import Any

from udfs.errors import ModelError, UnsafeModelError, first_line
from udfs.model.files import ModelFiles
from udfs.model.quiet import quiet_transformers


def check_code_not_needed(files: ModelFiles) -> None:
    """Refuse a model whose code changes the architecture that its config.json names.

    Several models of hubs call themselves `bert` or `xlm-roberta` and are something else by their own code. Its weights
    then do not fit, which their names and shapes tell: no weight is read.

    Raises:
        UnsafeModelError: transformers' own class lacks weights, or finds them in other shapes.
        ModelError: The config is none of that architecture.
    """
    if not files.names_code:
        return
    quiet_transformers()
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(files.weights, trust_remote_code=False, local_files_only=True)
        kind = _find_class(files, config)
        _, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=_read_shapes(files),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise ModelError(f"model {files.name!r} does not load without its own code: {first_line(error)}") from error
    unfit = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    tell_code_needed(files, kind.__name__, {key for key in unfit if not key.startswith("pooler.")})


def tell_code_needed(files: ModelFiles, kind: str, unfit: set[str]) -> None:
    """Refuse a model whose weights do not fit the class that transformers has for it.

    Args:
        files: The model.
        kind: The class.
        unfit: Its weights that the model's files lack, or hold in other shapes; none is fine.

    Raises:
        UnsafeModelError: There are some.
    """
    if unfit:
        raise UnsafeModelError(
            f"model {files.name!r} needs Python code that comes with it (`auto_map` in config.json), which gristmill "
            f"never runs: transformers' own {kind} has {len(unfit)} weights that its files have not ({min(unfit)}, …). "
            "Use a model whose architecture is part of transformers, such as a conversion of this one"
        )


def _find_class(files: ModelFiles, config: Any) -> Any:
    """The class that the model was saved from, where transformers has it; else that of its body."""
    import transformers

    base = transformers.PreTrainedModel
    named = (getattr(transformers, kind, None) for kind in files.config.get("architectures") or [])
    found = next((kind for kind in named if isinstance(kind, type) and issubclass(kind, base)), None)
    return found or transformers.AutoModel._model_mapping[type(config)]


def _read_shapes(files: ModelFiles) -> dict[str, Any]:
    """Tensors of the model's names and shapes; each is one number, seen again and again."""
    import torch
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in files.weights.glob("*.safetensors"):
        with safe_open(path, "pt") as held:
            found |= {key: torch.zeros(()).expand(held.get_slice(key).get_shape()) for key in held.keys()}  # noqa: SIM118
    return found
