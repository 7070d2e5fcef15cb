"""A tiny config of any architecture: its own default config, with every size that has a known name made small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

VOCABULARY = 320
POSITIONS = 160
WIDTH, HEADS, HEAD_WIDTH, LAYERS = 32, 4, 8, 2

# Names of sizes, as patterns of whole names -> what they become. The first that fits holds; what is smaller stays.
_SIZES: list[tuple[str, int]] = [
    (r"(.*_)?vocab_size(_.*)?|.*_vocab_size_base", VOCABULARY),
    (r"codebook_size", 256),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions|max_sequence_length",
        POSITIONS,
    ),
    (r"original_max_position_embeddings|context_length|model_max_length|.*max_position_embeddings", POSITIONS),
    (
        r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim|index_head_dim|(.*_)?head_dim|d_kv|dim_head|kv_channels",
        HEAD_WIDTH,
    ),
    (r"d_head|attention_head_size|mamba_(d_head|headdim)|linear_(key|value)_head_dim|attention_head_dim", HEAD_WIDTH),
    (r"linear_head_dim|mamba_head_dim|global_head_dim|swa_head_dim", HEAD_WIDTH),
    (r"rotary_dim", HEAD_WIDTH // 2),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|.*_lora_rank|laurel_rank|adapter_rank|hc_lowrank|d_rel", 16),
    (r"hidden_size_per_layer_input|ple_embed_dim|pronunciation_embed_dim|shape_embed_dim", 8),
    (r"intermediate_size(_.*)?|.*_intermediate_size|d_ff|(.*_)?ffn_dim|ffn_hidden_size|hidden_dim|d_inner|n_inner", 64),
    (r"feed_forward_size|dim_ff|mlp_dim|ffn_size|inner_dim", 64),
    (r"(.*_)?hidden_size(_global)?|d_model|n_embd|dim|emb_dim|embed_dim|embedding_size|embedding_dim", WIDTH),
    (r"word_embed_proj_dim|lru_width|attention_hidden_size|(in|out)put_embedding_size|d_latents|projection_dim", WIDTH),
    (
        r"pooler_hidden_size|.*_output_dim|output_dim|out_hidden_size|adapter_out_dim|lang_embed_dim|prediction_head_size",
        WIDTH,
    ),
    (r"mamba_(n|num)_heads|n_mamba_heads|linear_num_(key|value)_heads|linear_num_heads", HEADS),
    (
        r"index_n_heads",
        32,
    ),  # of fewer, tokens often have the same score of 0, and which of them are seen is left to chance
    (
        r"(.*_)?num_(key_value|query)_(heads|groups)|(.*_)?num_attention_heads|(.*_)?attention_heads|(n|num)_heads?",
        HEADS,
    ),
    (r"num_(self|cross)_attention_heads|num_(encoder|decoder)_attention_heads|n_head_kv|kv_n_heads", HEADS),
    (
        r"(.*_)?num_hidden_layers|(n|num)_layers?|(.*_)?(encoder|decoder)_layers|num_(encoder|decoder)_layers|depth",
        LAYERS,
    ),
    (r"num_self_attends_per_block|num_kv_shared_layers|n_layers_per_attn_res_block", 1),
    (r"num_(local_|routed_|.*_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"(moe_)?num_experts_per_(tok|token)|moe_top_?k|top_k_experts|num_expert_group", 2),
    (r"(n|topk)_group", 1),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"num_nextn_predict_layers|num_mtp_layers", 0),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"mamba_chunk_size|chunk_size|chunkwise_kernel_size", 16),
    (r"sliding_window(_size)?|local_attention|attention_window_size|attention_chunk_size|window_size", 8),
    (r"index_topk", 6),
    (r"num_latents", 8),
    (r"image_size|crop_size|input_size", 32),
    (r"patch_size|vision_patch_size", 16),
    (r"num_mel_bins", 16),
    (r"num_position_embeddings", 16),
    (r"query_pre_attn_scalar", HEAD_WIDTH),
]
_PATTERNS = [(re.compile(pattern), size) for pattern, size in _SIZES]
_TOKEN_ID = re.compile(r".*token_(id|index)|.*_token_index|eod_token_id|.*_(id|index)s?")
_PER_LAYER = re.compile(
    r"layer_types|.*_layer_types|layers_block_type|.*block_types?|no_rope_layers|moe_layers|.*indexer_types|layer_rope_theta|attn_layers|activation_sparsity_pattern|mlp_only_layers|compress_ratios"
)

# What the names do not tell, by `model_type`, of a part of a model too.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SECTIONS = {"rope_parameters": _ROPE | {"mrope_section": [HEAD_WIDTH // 2 - 2, 1, 1]}}  # of half a head
_HALF_SECTIONS = {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}}
_BY_LAYER = {"rope_type": "default", "rope_theta": 10000.0}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": HEADS, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _BY_LAYER, "sliding_attention": _BY_LAYER}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "num_hidden_layers": 3,
        "layer_types": None,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH},
    "dots3_note_vision_encoder": {"adapter_in_dim": WIDTH},
    "dots3_note_text": {"head_dim": 2 * HEAD_WIDTH},
    "emu3": {"vocabulary_map": {"<image>": VOCABULARY - 1}},
    "encoder-decoder": {"decoder_start_token_id": 1, "pad_token_id": 0},
    "ernie4_5_moe": {"moe_k": 2},
    "ernie4_5_vl_moe_text": {"moe_k": 2, "rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"vocab_size": VOCABULARY},
    "falcon_h1": {"mamba_n_heads": HEADS, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "glm5_next_text": {"index_kpool": 2},
    **dict.fromkeys(("glm4v_text", "glm_image_text", "glm_ocr_text", "glmga_text", "glm46v_text"), _SECTIONS),
    "glm4v_moe_text": _HALF_SECTIONS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"mamba_n_heads": HEADS, "mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},  # of two stacks, each run four times
    "hunyuan_v1_dense": {"head_dim": HEAD_WIDTH},
    "hunyuan_v1_moe": {"head_dim": HEAD_WIDTH},
    "hunyuan_vl_text": {"head_dim": HEAD_WIDTH, "rope_parameters": _ROPE | {"mrope_section": [1, 1, 1, 1]}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"qk_head_dim": 2 * HEAD_WIDTH},
    "longt5": {"decoder_start_token_id": 0},
    "mamba2": {"head_dim": 16},
    "ministral": {"head_dim": HEAD_WIDTH},
    "mistral4": {"head_dim": 2 * HEAD_WIDTH},
    "mimo_v2_flash": {"head_dim": 24, "swa_head_dim": 24, "num_attention_heads": 2 * HEADS},
    "mistral_large4_text": {"kv_source_layers": None},
    "mobilebert": {"intra_bottleneck_size": WIDTH, "true_hidden_size": WIDTH},
    "nemotron": {"num_key_value_heads": HEADS, "head_dim": HEAD_WIDTH},
    "neomme": {"head_dim": 2 * HEAD_WIDTH},
    **dict.fromkeys(("paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text"), _SECTIONS),
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_WIDTH,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "reformer": {  # without a seed and a number of buckets, its own answers differ from call to call
        "num_buckets": 4,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "hash_seed": 0,
    },
    "step3p5": {"sliding_window": 8},
    "switch_transformers": {"decoder_start_token_id": 0},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "t5": {"decoder_start_token_id": 0},
    "xlstm": {
        "hidden_size": 128,  # its sizes are multiples of 64
        "embedding_dim": 128,
        "num_blocks": LAYERS,
        "mlstm_round_up_to_multiple_of": 8,
        "ffn_round_up_to_multiple_of": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * HEAD_WIDTH,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "zamba2": {
        "mamba_headdim": 16,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * HEAD_WIDTH,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_hidden_layers": 4,
    },
}


def make_config(model_type: str) -> Any:
    """A tiny config of transformers' own class for an architecture."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    told = shrink(kind().to_dict())
    for name in ("transformers_version", "model_type", "architectures", "dtype", "_name_or_path"):
        told.pop(name, None)
    return kind(**told)


def shrink(told: dict[str, Any]) -> dict[str, Any]:
    """A config's values with small sizes, and those of its parts."""
    small = {name: _shrink(name, value) for name, value in told.items()}
    names = [name for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if told.get(name)]
    before = {told[name] for name in names}
    kinds = [value for name, value in told.items() if _PER_LAYER.fullmatch(name) and isinstance(value, list) and value]
    if kinds and names:  # one layer of each kind, at least
        picked = _pick_layers(kinds, LAYERS)
        by_layer = {n for n, value in told.items() if isinstance(value, list) and len(value) in before}
        for name in by_layer | {n for n, value in told.items() if _PER_LAYER.fullmatch(n) and isinstance(value, list)}:
            small[name] = [_shrink(name, told[name][i]) for i in picked if i < len(told[name])]
        small |= dict.fromkeys(names, len(picked))
    return small | EXCEPTIONS.get(told.get("model_type", ""), {})


def _pick_layers(kinds: list[list[Any]], layers: int) -> list[int]:
    count = max(len(kind) for kind in kinds)
    rows = [tuple(str(kind[i]) if i < len(kind) else "" for kind in kinds) for i in range(count)]
    first = sorted({row: i for i, row in reversed(list(enumerate(rows)))}.values())
    for i in range(count):
        if len(first) >= layers:
            break
        if i not in first:
            first.append(i)
    return sorted(first)


def _shrink(name: str, value: Any) -> Any:
    if isinstance(value, dict) and name != "per_layer_config":
        return shrink(value) if name not in ("id2label", "label2id") else value
    if name == "mrope_section":  # of half a head
        return [HEAD_WIDTH // 2 - 2, 1, 1]
    if name == "per_layer_config":
        return {}
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return next((min(size, value) for pattern, size in _PATTERNS if pattern.fullmatch(name)), value)


def token_ids(told: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of a config's ids of special tokens."""
    for name, value in told.items():
        if _TOKEN_ID.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool):
            yield name, value
