"""Load a model that writes: a decoder with its cache, or an encoder-decoder."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from udfs.errors import ModelError
from udfs.generation.attention import CACHED, goes_by_kernel, register_cached
from udfs.generation.cache import Arena
from udfs.generation.decoding import Decoder
from udfs.generation.encoder_decoder import EncoderDecoder
from udfs.generation.ends import add_turn_end
from udfs.generation.graphs import Graphs
from udfs.generation.own_settings import read_obeyed, tell_ignored
from udfs.generation.picking import Picker
from udfs.generation.room import Room
from udfs.generation.vllm import VllmDecoder, load_vllm, takes_vllm
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.loading import load_transformer
from udfs.model.memory import free_forgotten, is_out_of_memory
from udfs.model.positions import find_turn
from udfs.model.precision import DevicePlan
from udfs.model.prepacking import prepack
from udfs.model.tokenizer import load_tokenizer
from udfs.spec import ScoreSpec
from udfs.tasks.writing_options import WritingOptions, resolve_prompt_tokens
from udfs.text.choices import encode_choices
from udfs.text.codec import load_codec
from udfs.text.reasoning import find_marks
from udfs.text.tokenizing import join_ids
from udfs.wire.items import Items

# What a CPU's matrix units, or a GPU's, are filled by; sequences of all lanes together.
_CPU_SEQUENCES, _CUDA_SEQUENCES = 128, 256
_CPU_STEP_TOKENS, _CUDA_STEP_TOKENS = 256, 4096
_PROBES, _PROBE_TOKENS = ("The kettle boils within three minutes.", "Wir kommen um 12 Uhr an."), (9, 5)
_LIKE_ALONE = 0.95  # correlation of logits; half precision alone has carried a plain run to 0.98

Writer = list[Decoder] | list[VllmDecoder] | EncoderDecoder


def load_writer(spec: ScoreSpec[WritingOptions], plan: DevicePlan, *, name: str, lanes: int, cores: int = 1) -> Writer:
    """Load a model that writes.

    Args:
        spec: Names the task, the model and how tokens are picked.
        plan: The device and the precision.
        name: The engine's.
        lanes: So many decoders share the weights; one encoder-decoder, or one vLLM, is enough for all lanes.
        cores: CPU cores, for vLLM on a CPU.

    Raises:
        ModelError: The model does not load, or does not write, or not with attention over a cache.
    """
    files = open_model_of(spec)
    if told := tell_ignored(files, spec):
        print(f"gristmill: {told}", file=sys.stderr)
    if files.config.get("is_encoder_decoder"):
        return _load_encoder_decoder(spec, files, plan, name)
    if takes_vllm(spec.options, files, plan):
        try:
            return [load_vllm(spec, files, plan, cores=cores)]
        except ModelError as error:
            if spec.options.engine == "vllm":
                raise
            print(f"gristmill: {error.message}; transformers writes", file=sys.stderr)
        free_forgotten()
    return _load_decoders(spec, files, plan, lanes)


def _load_encoder_decoder(
    spec: ScoreSpec[WritingOptions], files: ModelFiles, plan: DevicePlan, name: str
) -> EncoderDecoder:
    own = read_obeyed(files, num_beams=spec.options.num_beams)
    model = load_transformer(
        "AutoModelForSeq2SeqLM", files, device=plan.device, precision=plan.precision, generation=own
    )
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = spec.options.max_new_tokens
    if positions and longest >= positions:
        raise ModelError(f"max_new_tokens is {longest}, but model {files.name!r} writes at most {positions - 1} tokens")
    return EncoderDecoder(
        model,
        _make_picker(spec.options, files, model, penalty=1.0),  # its own processors penalize
        name=name,
        device=plan.device,
        max_new_tokens=longest,
        num_beams=spec.options.num_beams,
    )


def _load_decoders(spec: ScoreSpec[WritingOptions], files: ModelFiles, plan: DevicePlan, lanes: int) -> list[Decoder]:
    register_cached()
    model = load_transformer(
        "AutoModelForCausalLM",
        files,
        device=plan.device,
        precision=plan.precision,
        attention="eager",
        generation=read_obeyed(files),
    )
    probe = _make_probe(files, model)
    wanted = _run_plainly(model, probe)
    model.set_attn_implementation(CACHED)
    if plan.precision == "bfloat16":
        prepack(model)
    on_cuda = plan.device.startswith("cuda")
    sequences = max(1, (_CUDA_SEQUENCES if on_cuda else _CPU_SEQUENCES) // lanes)
    longest = resolve_prompt_tokens(files, spec) + spec.options.max_new_tokens
    step_tokens = spec.max_batch_tokens or (_CUDA_STEP_TOKENS if on_cuda else _CPU_STEP_TOKENS)
    kinds = _check_cache(files, model, plan, probe, wanted)
    rooms = [Room(Arena(0, dict(kinds)), sequences * (longest + 64), plan.device, lanes) for _ in range(lanes)]
    for room in rooms:
        room.fill()
    if (least := min(room.arena.tokens for room in rooms)) < longest:
        if least <= spec.options.max_new_tokens:
            raise MemoryError(f"out of memory: beside the weights there is room for {least} tokens of keys and values")
        print(f"gristmill: the cache holds {least} tokens; a text of {longest} has no room in it", file=sys.stderr)
    picker = _make_picker(spec.options, files, model, penalty=model.generation_config.repetition_penalty or 1.0)
    return [
        Decoder(
            model,
            picker,
            room.arena,
            device=plan.device,
            max_new_tokens=spec.options.max_new_tokens,
            max_sequences=sequences,
            step_tokens=step_tokens,
            graphs=Graphs(model, room.arena, longest=longest, device=plan.device) if _can_record(model, plan) else None,
            turn=find_turn(model),
            room=room,
        )
        for room in rooms
    ]


def _make_picker(options: WritingOptions, files: ModelFiles, model: Any, *, penalty: float) -> Picker:
    tokenizer = load_tokenizer(files) if options.stop or options.form.json_schema else None
    codec = load_codec(files)
    choices = encode_choices(codec, options.form.choices, max_new_tokens=options.max_new_tokens)
    marks = find_marks(codec) if options.reasoning and options.form else None
    ends = add_turn_end(find_ends(model), files)
    if not ends:
        print(f"gristmill: model {files.name!r} names no end token; its answers have full length", file=sys.stderr)
    return Picker(options, ends=ends, tokenizer=tokenizer, penalty=penalty, choices=choices, marks=marks)


def find_ends(model: Any) -> frozenset[int]:
    """Token ids that end an answer, as a model's own settings say."""
    told = model.generation_config.eos_token_id
    if told is None:
        told = model.config.get_text_config().eos_token_id
    return frozenset([told] if isinstance(told, int) else told or ())


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _can_record(model: Any, plan: DevicePlan) -> bool:
    """All of the model's attention goes by the kernel of a GPU, which no product that is bounded does."""
    config = model.config.get_text_config()
    bounded = getattr(config, "attn_logit_softcapping", None)
    return not bounded and goes_by_kernel(plan.device, plan.precision, _head_width(config))


def _make_probe(files: ModelFiles, model: Any) -> Items:
    """Two short texts, as its tokenizer has them; tokens of its vocabulary where that makes nothing of them."""
    known = model.get_input_embeddings().num_embeddings
    parts = []
    for ids, length in zip(load_codec(files).encode(_PROBES, special=True), _PROBE_TOKENS, strict=True):
        parts.append([i for i in ids if i < known][:length] or [i % known for i in range(3, 3 + length)])
    return Items(*join_ids(parts))


def _run_plainly(model: Any, items: Items) -> np.ndarray:
    """(2, V) logits after two short texts, each alone."""
    import torch

    parts = [items.ids[a:b] for a, b in zip(items.offsets[:-1], items.offsets[1:], strict=True)]
    with torch.inference_mode():
        ids = [torch.from_numpy(part[None].astype(np.int64)).to(model.device) for part in parts]
        found = [model(input_ids=one, use_cache=False).logits[0, -1].float().cpu() for one in ids]
    return torch.stack(found).numpy()


def _check_cache(files: ModelFiles, model: Any, plan: DevicePlan, items: Items, wanted: np.ndarray) -> dict[int, Any]:
    """Two short texts, in pieces and together, have the logits that they have alone.

    Returns:
        What each layer's keys and values are like, as `Arena.kinds`.

    Raises:
        ModelError: The architecture does not keep its past where gristmill does.
    """
    import torch

    taken: list[Any] = []

    class Watch(Picker):
        def pick(self, logits: Any, sequences: list[Any]) -> None:
            for row, sequence in zip(logits.float().cpu(), sequences, strict=True):
                taken.append((sequence.owner, row))
                sequence.finish = 0

    watch = Watch(WritingOptions(max_new_tokens=1), ends=frozenset(), tokenizer=None)
    arena = Arena(256)
    decoder = Decoder(model, watch, arena, device=plan.device, max_new_tokens=1, max_sequences=2, step_tokens=4)
    for number in range(2):
        decoder.add(number, items.ids[items.offsets[number] : items.offsets[number + 1]])
    told = f"model {files.name!r} ({files.config.get('model_type')})"
    try:
        while len(decoder):
            decoder.step()
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{told} does not write with a cache of slots: {error}; take another model") from error
    found = torch.stack([row for _, row in sorted(taken, key=lambda pair: pair[0])]).numpy()
    if min(np.corrcoef(a, b)[0, 1] for a, b in zip(found, wanted, strict=True)) < _LIKE_ALONE:
        raise ModelError(
            f"{told} keeps a past that is not in its attention alone, or an attention of its own; gristmill does not "
            "write with it"
        )
    return arena.kinds
