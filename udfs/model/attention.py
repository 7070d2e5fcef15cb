"""Attention over packed sequences: all tokens of a micro-batch in one row, no padding, no mask.

transformers' models look their attention up in a registry. The function that is put there under `PACKED` gets the
queries, keys and values of all tokens, and the `Layout` that says where each sequence begins, as an extra keyword of
the model's call. No code of a model is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKED = "gristmill_packed"  # a name with `flash` in it would make transformers download kernels

# Encoders whose packed outputs the tests hold equal to the padded ones, by config's `model_type`, with the part of the
# base model whose output a head reads the first token of ("" is the base model itself, a list means its last).
_PACKS = {
    "albert": "encoder",
    "bert": "encoder",
    "camembert": "encoder",
    "data2vec-text": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "ernie": "encoder",
    "gte": "layers",
    "jina_embeddings_v3": "layers",
    "modernbert": "",
    "nomic_bert": "layers",
    "roberta": "encoder",
    "roberta-prelayernorm": "encoder",
    "xlm-roberta": "encoder",
    "xlm-roberta-xl": "encoder",
}
# Others of which the tests hold the same: all that one token has from another goes through attention in transformers'
# registry, which is told of each window. A head is packed if it reads the last token (`udfs.model.heads`).
_BY_REGISTRY = {
    "afmoe", "apertus", "arcee", "aria_text", "bert-generation", "bitnet", "codegen", "cohere", "cohere2",
    "cohere2_moe", "ctrl", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "eurobert", "exaone", "exaone4",
    "exaone_moe", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2",
    "gpt_bigcode", "gpt_neox", "gptj", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "jetmoe", "llama", "minimax_m2", "ministral", "ministral3",
    "mistral", "mixtral", "modernbert-decoder", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "roc_bert", "seed_oss", "smollm3", "starcoder2",
    "vaultgemma",
}  # fmt: skip
_LONGEST_PLAIN = 64  # tokens; from here on the fused kernel is faster on a CPU,
_LONGEST_PLAIN_BFLOAT16 = 512  # but in bfloat16 it is not, and memory sets the bound


@dataclass(frozen=True)
class Layout:
    """Where each sequence of a packed micro-batch lies; none is empty.

    Args:
        cu_seqlens: (B + 1,) int32 on the device, sequence i is tokens cu_seqlens[i]:cu_seqlens[i + 1].
        lengths: (B,) the same as lengths, in the host's memory.
    """

    cu_seqlens: Tensor
    lengths: np.ndarray

    @property
    def starts(self) -> Tensor:
        """(B,) int32, the first token of each sequence."""
        return self.cu_seqlens[:-1]

    @property
    def text_lengths(self) -> Tensor:
        """(1, T) int32, the length of each token's sequence."""
        import torch

        lengths = self.cu_seqlens.diff()
        return torch.repeat_interleave(lengths, lengths, output_size=int(self.lengths.sum()))[None]

    def runs(self) -> list[tuple[int, int]]:
        """(count, length) of neighbours of one length, which form a rectangle without padding."""
        edges = np.flatnonzero(np.diff(self.lengths)) + 1
        return [(len(run), int(run[0])) for run in np.split(self.lengths, edges)]


def can_pack(config: dict[str, Any], *, device: str, precision: str) -> bool:
    """Whether a model of this architecture may run packed on this device; as it loads, it is tried."""
    return not why_padded(config, device=device, precision=precision)


def why_padded(config: dict[str, Any], *, device: str, precision: str) -> str:
    """What keeps a model from running packed; "" where nothing that is known does.

    Args:
        config: The model's config.json.
        device: torch's name. CUDA's kernel wants half precision, compute capability 8.0 and heads of a multiple of 8.
        precision: Floating-point type of the weights.
    """
    kind = config.get("model_type")
    if kind not in _BY_REGISTRY and (kind not in _PACKS or config.get("is_decoder")):
        return f"the attention of {kind} is not known to run packed"
    if not device.startswith("cuda"):
        return ""
    width = config.get("hidden_size") or config.get("dim") or config.get("n_embd") or 0
    heads = config.get("num_attention_heads") or config.get("n_heads") or config.get("n_head") or 1
    # where config.json tells no width of a head, the model is tried
    head = config.get("head_dim") or (width // heads if width else 64)
    return "" if kernel_takes(precision, head) else f"this GPU has no kernel for heads of {head} in {precision}"


@functools.cache
def kernel_takes(precision: str, head_width: int) -> bool:
    """Whether CUDA's kernel for packed sequences is there, in the torch that is installed, and takes such heads.

    Args:
        precision: Floating-point type of its inputs.
        head_width: Numbers of a head.
    """
    import torch

    return (
        torch.backends.cuda.is_flash_attention_available()
        and precision in ("bfloat16", "float16")
        and torch.cuda.get_device_capability() >= (8, 0)
        and 8 <= head_width <= 256
        and head_width % 8 == 0
    )


def attend_by_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    most_q: int,
    most_k: int,
    *,
    scale: float,
    window: int | None,
    causal: bool = False,
    used_k: Tensor | None = None,
) -> Tensor:
    """Attention of B sequences, each over its own tokens, by the flash kernel of a GPU.

    This is the operator below torch's `varlen_attn`, which in torch 2.10 and 2.11 does not hand on `used_k`, takes
    another way through Python, and keeps a kernel with one query from reading grouped heads once.

    Args:
        q: (T, heads, D) in half precision; k and v may be longer and have fewer heads.
        starts_q: (B + 1,) int32 on the device, sequence i is tokens starts_q[i]:starts_q[i + 1].
        starts_k: As starts_q, in k and v; with used_k the last is not read.
        most_q: So many tokens of q at most in a sequence.
        most_k: As most_q, of k.
        scale: Factor of the products.
        window: A token sees those at a distance below it; None sees all.
        causal: A token sees none that come after it; the last of q is the last of k.
        used_k: (B,) int32, tokens of each in k; None is as starts_k says.

    Returns:
        (T, heads, D).

    Source: torch, `torch/nn/attention/varlen.py`, and `mha_varlen_fwd` of its FlashAttention.
    """
    import torch

    left = -1 if window is None else window - 1
    found = torch.ops.aten._flash_attention_forward(
        *(q, k, v, starts_q, starts_k, most_q, most_k),
        0.0,  # dropout
        causal,
        False,  # no mask for debugging
        scale=scale,
        window_size_left=left,
        window_size_right=-1 if causal else left,
        seqused_k=used_k,
    )
    mixed: Tensor = found[0]
    return mixed


def register() -> None:
    """Make `attn_implementation=PACKED` known to transformers, with a mask function that makes no mask."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, attend_packed)
    AttentionMaskInterface.register(PACKED, refuse_mask)


@contextmanager
def attends_plainly(model: Any) -> Iterator[None]:
    """Within it a model that was loaded with packed attention has transformers' own, for a text alone."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED)


def refuse_mask(*, batch_size: int, attention_mask: Tensor | None = None, **_: Any) -> None:
    """The mask of a packed micro-batch: none.

    Raises:
        ValueError: The micro-batch is padded, so that it needs one.
    """
    if batch_size != 1 or attention_mask is not None:
        raise ValueError("packed attention was given a padded micro-batch")


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each token to those of its own sequence, as transformers calls it.

    Args:
        module: The layer that asks; its `is_causal` says whether a token sees what comes after it.
        query: (1, heads, T, D); key and value (1, the same or fewer heads, T, D).
        attention_mask: None.
        scaling: Factor of the products; None is 1 / sqrt(D).
        sliding_window: A token sees those at a distance below it; None sees all.
        softcap: Bounds the products by a tanh.
        is_causal: In the place of the module's.
        s_aux: None; attention with sinks is not known here.
        position_bias: None; nor are products with something added.
        layout: Where the sequences lie.

    Returns:
        (1, T, heads, D), and None for the weights, which nobody makes.

    Raises:
        ValueError: The micro-batch is padded, the layout did not arrive, or a layer asks for what is not known here.
    """
    if layout is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError(f"packed attention was given {'no layout' if layout is None else 'a padded micro-batch'}")
    if s_aux is not None or position_bias is not None:
        raise ValueError("packed attention knows neither sinks nor a bias of positions")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if query.device.type == "cpu":
        mixed = attend_by_runs(
            q, k, v, layout, scale=scale, sliding_window=sliding_window, causal=causal, softcap=softcap
        )
    elif softcap is not None:
        raise ValueError("the kernel of a GPU bounds no products")
    else:
        starts, longest = layout.cu_seqlens, int(layout.lengths.max())
        mixed = attend_by_kernel(
            q, k, v, starts, starts, longest, longest, scale=scale, window=sliding_window, causal=causal
        )
    return mixed.unsqueeze(0), None


def attend_by_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    sliding_window: int | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """Attention on a CPU: neighbours of one length at once, so that neither padding nor a mask is needed.

    Items come sorted by length, so that a micro-batch has few runs.

    Args:
        q: (T, heads, D); k and v the same, or with fewer heads, which neighbours of q's share.
        scale: Factor of the products.
        sliding_window: A token sees those at a distance below it; None sees all.
        causal: A token sees none that come after it.
        softcap: Bounds the products by a tanh.

    Returns:
        (T, heads, D).
    """
    import torch

    if (shared := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    mixed, start = q.new_empty(*q.shape[:2], v.shape[2]), 0
    for count, length in layout.runs():
        stop = start + count * length
        one, two, three = (part[start:stop].unflatten(0, (count, length)).transpose(1, 2) for part in (q, k, v))
        narrow = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is None and narrow is None and not causal:
            found = _attend_block(one, two, three, scale=scale)
        elif softcap is None and narrow is None:
            found = torch.nn.functional.scaled_dot_product_attention(one, two, three, is_causal=True, scale=scale)
        else:
            found = _attend_masked(one, two, three, _seen(length, narrow, causal=causal), scale=scale, softcap=softcap)
        mixed[start:stop].view(count, length, *mixed.shape[1:]).copy_(found.transpose(1, 2))
        start = stop
    return mixed


def _attend_block(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """(count, heads, length, D) attention within each of some sequences of one length."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    length = q.shape[2]
    if length > (_LONGEST_PLAIN_BFLOAT16 if q.dtype == torch.bfloat16 else _LONGEST_PLAIN):
        return scaled_dot_product_attention(q, k, v, scale=scale)
    count = len(q)
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    weights = q.new_empty(len(q), length, length)  # one place for products and softmax: it may be larger than a cache
    torch.baddbmm(weights, q, k.transpose(1, 2), beta=0, alpha=scale, out=weights)
    torch.softmax(weights, -1, out=weights)
    return (weights @ v).unflatten(0, (count, -1))


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, *, scale: float, softcap: float | None) -> Tensor:
    """As `_attend_block`, of what is seen alone."""
    from torch.nn.functional import scaled_dot_product_attention

    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    weights = ((q @ k.transpose(-1, -2)) * (scale / softcap)).tanh() * softcap
    return weights.masked_fill(~seen, float("-inf")).float().softmax(-1).to(q.dtype) @ v


def _seen(length: int, window: int | None, *, causal: bool) -> Tensor:
    """(length, length) bool, which tokens a token sees."""
    import torch

    place = torch.arange(length)
    distance = place[:, None] - place
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)


def gather_for_head(model: Any) -> None:
    """Let the head of a sequence classifier see one row a sequence: its first token, or their mean if it reads that.

    The head of a packed micro-batch then works on B sequences of one token. Without a layout nothing changes, nor with
    a model whose head is not known.
    """
    if (name := _PACKS.get(model.config.model_type)) is None:
        return
    part = model.base_model.get_submodule(name)
    part = part[-1] if type(part).__name__ == "ModuleList" else part
    mean = getattr(model.config, "classifier_pooling", "cls") == "mean"

    def gather(_: nn.Module, __: Any, options: dict[str, Any], output: Any) -> Any:
        layout = options.get("layout")
        if layout is None:
            return output
        states = output if hasattr(output, "shape") else output.last_hidden_state
        rows = mean_by_sequence(states[0], layout).to(states.dtype) if mean else states[0, layout.starts]
        if hasattr(output, "shape"):
            return rows.unsqueeze(1)
        output.last_hidden_state = rows.unsqueeze(1)
        return output

    part.register_forward_hook(gather, with_kwargs=True)


def mean_by_sequence(states: Tensor, layout: Layout) -> Tensor:
    """(T, H) states of packed tokens to (B, H) float32 means."""
    return _reduce(states.float(), "mean", layout)


def max_by_sequence(states: Tensor, layout: Layout) -> Tensor:
    """(T, H) states of packed tokens to (B, H) float32 maxima."""
    return _reduce(states.float(), "max", layout)


def _reduce(states: Tensor, how: str, layout: Layout) -> Tensor:
    import torch

    # `unsafe`: the check of the offsets would wait for the device
    return torch.segment_reduce(states, how, offsets=layout.cu_seqlens.long(), axis=0, unsafe=True)
