"""How a sentence-embedding model makes a vector of token states: the modules of its files, in order, and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.sentence_settings import check_settings, read_sentence_config
from udfs.model.tensors import read_shapes
from udfs.model.weights import check_weights

TOKENS, VECTOR = "token_embeddings", "sentence_embedding"
WEIGHTS = "model.safetensors"
# What a Dense module may apply; each is a class of torch.nn that needs no argument.
ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish"),
    *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
)
_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.\w+\.)?(\w+)")
_FLAGS = {  # in the order in which sentence-transformers joins several
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODES = tuple(_FLAGS.values())
_WIDTHS = ("hidden_size", "d_model", "dim")  # what configs call the width of a token's states


@dataclass(frozen=True)
class Pool:
    """One vector of an item's token states.

    Args:
        modes: Ways to make it, `cls`, `max`, `mean`, `mean_sqrt_len_tokens`, `weightedmean` or `lasttoken`; of several,
            their vectors are joined in this order.
        include_prompt: False leaves out the states of the prompt.
        width: Of a token's states, as the module tells; None where it does not.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    width: int | None = None


@dataclass(frozen=True)
class Normalize:
    """Divide by the L2 norm.

    Args:
        source, target: `TOKENS` or `VECTOR`: what is read, and what is written.
    """

    source: str = VECTOR
    target: str = VECTOR


@dataclass(frozen=True)
class Dense:
    """A linear layer with an activation.

    Args:
        folder: Where its weights lie.
        inputs, outputs: Widths.
        bias: It has one.
        activation: One of `ACTIVATIONS`.
        residual: What comes in is added to what goes out.
        source, target: As of Normalize.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False
    source: str = VECTOR
    target: str = VECTOR


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm of vectors.

    Args:
        folder: Where its weights lie.
        width: Of a vector.
    """

    folder: Path
    width: int


Step = Pool | Normalize | Dense | LayerNorm


@dataclass(frozen=True)
class Embedding:
    """How vectors are made.

    Args:
        steps: What token states go through, in order; of a static model, what its mean goes through.
        width: Numbers of a vector; None where the files do not tell.
        lowercase: Texts are lower-cased before they are tokenized.
    """

    steps: tuple[Step, ...]
    width: int | None = None
    lowercase: bool = False

    @property
    def is_unit(self) -> bool:
        """The last that happens to a vector is that it is divided by its norm."""
        changing = [step for step in self.steps if isinstance(step, Pool | LayerNorm) or step.target == VECTOR]
        return bool(changing) and changing[-1] == Normalize()

    @property
    def leaves_prompt_out(self) -> bool:
        """The states of the prompt are no part of a vector."""
        return any(isinstance(step, Pool) and not step.include_prompt for step in self.steps)


def read_embedding(files: ModelFiles) -> Embedding:
    """Read the modules after the transformer; without modules.json it is a mean, of a causal model the last token.

    Raises:
        ModelError: A module or an option of one that gristmill does not know, or modules that do not fit together: a
            wrong vector would be worse than none.
        UnsafeModelError: A module has pickled weights alone.

    Source: sentence-transformers, `SentenceTransformer` and its modules.
    """
    _check_transformer(files)
    steps = tuple(step for kind, folder in files.modules if (step := _read_step(files, kind, folder)))
    if not files.is_static and not any(isinstance(step, Pool) for step in steps):
        if files.modules or (files.root / "modules.json").is_file():
            raise ModelError(f"model {files.name!r} has no Pooling among its modules, so that it makes no vector")
        steps = (Pool(("lasttoken",) if _is_causal(files.config) else ("mean",)),)
    width = _check_widths(files, steps)
    return Embedding(steps, width, bool(read_sentence_config(files).get("do_lower_case")))


def _check_transformer(files: ModelFiles) -> None:
    """Refuse a transformer whose states are not those of its last layer, or that is set otherwise than here."""
    check_settings(files)
    told = read_sentence_config(files)
    asked = told.get("transformer_task") or "feature-extraction"
    of_text = (told.get("modality_config") or {}).get("text") or {}
    ways = {of_text.get("method") or "forward", of_text.get("method_output_name") or "last_hidden_state"}
    if asked != "feature-extraction" or ways != {"forward", "last_hidden_state"}:
        raise ModelError(
            f"model {files.name!r} makes its vectors of the outputs of a {asked} model ({', '.join(sorted(ways))}); "
            "gristmill knows feature-extraction, of the last hidden state"
        )


def _is_causal(config: dict[str, Any]) -> bool:
    kinds = config.get("architectures") or [""]
    return str(kinds[0]).endswith("ForCausalLM") and bool(config.get("is_causal", True))


def _read_step(files: ModelFiles, kind: str, folder: Path) -> Step | None:
    """A module as a step; None of one that does nothing once a model is trained."""
    if kind == "Dropout":
        return None
    readers: dict[str, Callable[[ModelFiles, Path], Step]] = {
        "Pooling": _read_pool,
        "Normalize": _read_normalize,
        "Dense": _read_dense,
        "LayerNorm": _read_layer_norm,
    }
    if kind not in readers:
        raise ModelError(
            f"model {files.name!r} has a {kind} module; gristmill knows {', '.join(readers)} and Dropout. Embed with "
            "another model"
        )
    return readers[kind](files, folder)


def _read_pool(files: ModelFiles, folder: Path) -> Pool:
    config = files.read_module(folder)
    if not config:
        raise ModelError(f"model {files.name!r}: its Pooling module has no config.json in {folder.name!r}")
    asked = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = tuple(asked) if isinstance(asked, list) else (asked,)
    if unknown := [str(mode) for mode in modes if mode not in _MODES]:
        raise ModelError(f"model {files.name!r} pools by {' + '.join(unknown)}; gristmill knows {', '.join(_MODES)}")
    width = config.get("embedding_dimension") or config.get("word_embedding_dimension")
    return Pool(modes, config.get("include_prompt") is not False, width if isinstance(width, int) else None)


def _read_normalize(files: ModelFiles, folder: Path) -> Normalize:
    return Normalize(*_read_places(files, "Normalize", files.read_module(folder)))


def _read_dense(files: ModelFiles, folder: Path) -> Dense:
    config = files.read_module(folder)
    inputs, outputs = _read_width(files, config, "in_features"), _read_width(files, config, "out_features")
    asked = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    known = _ACTIVATION.fullmatch(asked) if isinstance(asked, str) else None
    if known is None or known[1] not in ACTIVATIONS:
        raise ModelError(
            f"model {files.name!r}: its Dense module has the activation_function {asked!r}; gristmill knows "
            f"{', '.join(ACTIVATIONS)} of torch.nn"
        )
    residual, bias = bool(config.get("use_residual")), config.get("bias", True) is not False
    needed: dict[str, tuple[int, ...]] = {"linear.weight": (outputs, inputs)}
    needed |= {"linear.bias": (outputs,)} if bias else {}
    needed |= {"residual.weight": (outputs, inputs)} if residual and inputs != outputs else {}
    _check_tensors(files, "Dense", folder, needed)
    return Dense(folder, inputs, outputs, bias, known[1], residual, *_read_places(files, "Dense", config))


def _read_layer_norm(files: ModelFiles, folder: Path) -> LayerNorm:
    width = _read_width(files, files.read_module(folder), "dimension")
    _check_tensors(files, "LayerNorm", folder, {"norm.weight": (width,), "norm.bias": (width,)})
    return LayerNorm(folder, width)


def _read_width(files: ModelFiles, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"model {files.name!r}: a module's config.json lacks {key}, or it is no number of features")
    return value


def _read_places(files: ModelFiles, kind: str, config: dict[str, Any]) -> tuple[str, str]:
    source = config.get("module_input_name") or VECTOR
    target = config.get("module_output_name") or source
    for place in (source, target):
        if place not in (TOKENS, VECTOR):
            raise ModelError(f"model {files.name!r}: its {kind} module names {place!r}; choose {TOKENS} or {VECTOR}")
    return source, target


def _check_tensors(files: ModelFiles, kind: str, folder: Path, needed: dict[str, tuple[int, ...]]) -> None:
    if not folder.is_dir():
        raise ModelError(f"model {files.name!r}: its {kind} module has no directory {folder.name!r}")
    check_weights(files.name, folder, revision=files.commit, on_hub=files.commit is not None)
    held = read_shapes(folder / WEIGHTS)
    for name, shape in needed.items():
        if held.get(name) != shape:
            raise ModelError(
                f"model {files.name!r}: its {kind} module needs {name} of shape {shape}, and "
                f"{folder.name}/{WEIGHTS} has {held.get(name, 'none')}"
            )


def _check_widths(files: ModelFiles, steps: tuple[Step, ...]) -> int | None:
    """Follow the widths through the steps; returns that of a vector, None where it is not known."""
    known: dict[str, int | None] = {TOKENS: None if files.is_static else _token_width(files, steps)}
    if files.is_static:
        known[VECTOR] = table_shape(files)[1]
    for step in steps:
        for source, target, takes, gives in _moves(files, step, known):
            if source not in known:
                if isinstance(step, Normalize):  # which sentence-transformers leaves out there, too
                    continue
                raise ModelError(f"model {files.name!r} has a {type(step).__name__} module before its Pooling")
            if takes is not None and known[source] is not None and known[source] != takes:
                raise ModelError(
                    f"model {files.name!r}: its {type(step).__name__} module takes {takes} numbers, and gets "
                    f"{known[source]}"
                )
            known[target] = gives
    return known[VECTOR]


def _moves(
    files: ModelFiles, step: Step, known: dict[str, int | None]
) -> Iterator[tuple[str, str, int | None, int | None]]:
    """What a step reads and writes, with the widths that it takes and gives."""
    match step:
        case Pool():
            if files.is_static:
                raise ModelError(f"model {files.name!r} has a Pooling module, but no token states to pool")
            width = known[TOKENS]
            yield TOKENS, VECTOR, None, None if width is None else width * len(step.modes)
        case Dense():
            yield step.source, step.target, step.inputs, step.outputs
        case LayerNorm():
            yield VECTOR, VECTOR, step.width, step.width
        case Normalize():
            yield step.source, step.target, None, known.get(step.source)


def _token_width(files: ModelFiles, steps: tuple[Step, ...]) -> int | None:
    config = files.config.get("text_config") or files.config
    told = next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), None)
    return told or next((step.width for step in steps if isinstance(step, Pool)), None)


def table_shape(files: ModelFiles) -> tuple[int, int]:
    """Tokens and width of a static model's table.

    Raises:
        ModelError: There is no table, or it does not fit to what names its rows and weighs them.
    """
    shapes = read_shapes(files.transformer / WEIGHTS)
    table = shapes.get("embedding.weight") or shapes.get("embeddings") or ()
    if len(table) != 2:
        raise ModelError(f"model {files.name!r} has no table of token vectors in {WEIGHTS}: no embedding.weight")
    if "embedding.weight" in shapes:
        return table[0], table[1]
    rows = shapes.get("mapping", table[:1])[0]
    if "weights" in shapes and shapes["weights"] != (rows,):
        raise ModelError(f"model {files.name!r} weighs {shapes['weights'][0]} tokens, and has {rows}")
    return rows, table[1]
