"""Load a model that writes: a decoder with its cache, or an encoder-decoder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from udfs.errors import ModelError, first_line
from udfs.generation.attention import CACHED, goes_by_kernel, register_cached
from udfs.generation.cache import SLAB_SLOTS, Arena
from udfs.generation.decoding import Decoder
from udfs.generation.drafting import Drafter
from udfs.generation.encoder_decoder import EncoderDecoder
from udfs.generation.ends import add_turn_end
from udfs.generation.graphs import Graphs
from udfs.generation.own_settings import read_obeyed, tell_ignored
from udfs.generation.picking import Picker
from udfs.generation.plain import PlainWriter
from udfs.generation.room import Room
from udfs.generation.trying import STEPS, in_float32, is_alike, make_probe, watch
from udfs.generation.vllm import VllmDecoder, load_vllm, takes_vllm
from udfs.model.files import ModelFiles, open_model_of
from udfs.model.loading import load_transformer
from udfs.model.memory import free_forgotten, is_out_of_memory
from udfs.model.positions import find_turn
from udfs.model.precision import DevicePlan
from udfs.model.prepacking import prepack
from udfs.model.tokenizer import load_tokenizer
from udfs.spec import ScoreSpec
from udfs.tasks.writing_options import WritingOptions, resolve_whole_tokens
from udfs.text.choices import encode_choices
from udfs.text.codec import load_codec
from udfs.text.reasoning import find_marks
from udfs.wire.items import Items

# What a CPU's matrix units, or a GPU's, are filled by; sequences of all lanes together.
_CPU_SEQUENCES, _CUDA_SEQUENCES = 128, 1024
_CPU_STEP_TOKENS, _CUDA_STEP_TOKENS = 256, 4096
# So many rows of a call take as long as to read the weights: what it costs to run a token that may be of no use.
_CPU_READ_ROWS, _CUDA_READ_ROWS = 12.0, 200.0
_CPU_PAST, _CUDA_PAST = 3.0, 1.0  # to attend to a byte of keys and values takes as long as to read so many of weights

Writer = list[Decoder] | list[VllmDecoder] | EncoderDecoder | PlainWriter


def load_writer(spec: ScoreSpec[WritingOptions], plan: DevicePlan, *, name: str, lanes: int, cores: int = 1) -> Writer:
    """Load a model that writes.

    Args:
        spec: Names the task, the model and how tokens are picked.
        plan: The device and the precision.
        name: The engine's, but for its last part: how it writes.
        lanes: So many decoders share the weights; one encoder-decoder, or one vLLM, is enough for all lanes.
        cores: CPU cores, for vLLM on a CPU.

    Raises:
        ModelError: The model does not load, or does not write.
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
    return _load_decoders(spec, files, plan, name, lanes)


def _load_encoder_decoder(
    spec: ScoreSpec[WritingOptions], files: ModelFiles, plan: DevicePlan, name: str
) -> EncoderDecoder | PlainWriter:
    own = read_obeyed(files, num_beams=spec.options.num_beams)
    model = load_transformer(
        "AutoModelForSeq2SeqLM", files, device=plan.device, precision=plan.precision, generation=own
    )
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = spec.options.max_new_tokens
    if positions and longest >= positions:
        raise ModelError(f"max_new_tokens is {longest}, but model {files.name!r} writes at most {positions - 1} tokens")
    picker = _make_picker(spec.options, files, model, penalty=1.0)  # its own processors penalize

    def write_with(picker: Picker, *, max_new_tokens: int, num_beams: int = 1) -> EncoderDecoder:
        return EncoderDecoder(
            model, picker, name=f"{name}/padded", device=plan.device, max_new_tokens=max_new_tokens, num_beams=num_beams
        )

    items = make_probe(files, model)
    wanted = _run_plainly(files, model, items)

    def try_with(picker: Picker) -> None:
        write_with(picker, max_new_tokens=STEPS).run(items, np.arange(len(items)))

    reason = _why_not_in_batches(try_with, wanted, find_ends(model), plan.precision)
    if reason and plan.precision != "float32":
        with in_float32(model):
            exact = _run_plainly(files, model, items)
            reason = _why_not_in_batches(try_with, exact, find_ends(model), "float32")
    if reason and spec.options.num_beams == 1:
        return _write_plainly(files, model, picker, spec, name=name, reason=reason)
    if reason:
        raise ModelError(
            f"model {files.name!r} ({files.config.get('model_type')}) follows several answers of one text alone, "
            f"since {reason}; leave num_beams out"
        )
    return write_with(picker, max_new_tokens=longest, num_beams=spec.options.num_beams)


def _why_not_in_batches(
    write: Callable[[Picker], Any], wanted: np.ndarray, ends: frozenset[int], precision: str
) -> str:
    """What keeps short texts, padded, from the logits that they have alone."""
    try:
        found = watch(write, ends=ends)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"in batches it does not run: {first_line(error)}"
    return "" if is_alike(found, wanted, precision=precision) else "in batches it is not the same as alone"


def _load_decoders(
    spec: ScoreSpec[WritingOptions], files: ModelFiles, plan: DevicePlan, name: str, lanes: int
) -> list[Decoder] | PlainWriter:
    register_cached()
    model = load_transformer(
        _class_of_decoders(files),
        files,
        device=plan.device,
        precision=plan.precision,
        attention="eager",
        generation=read_obeyed(files),
    )
    items = make_probe(files, model)
    wanted = _run_plainly(files, model, items)
    try:
        kinds = _check_cache(files, model, plan, items, wanted)
    except _NoCacheError as error:
        model.set_attn_implementation("eager")
        picker = _make_picker(spec.options, files, model, penalty=1.0)  # as above
        return _write_plainly(files, model, picker, spec, name=name, reason=str(error))
    on_cuda = plan.device.startswith("cuda")
    read_rows, past = (_CUDA_READ_ROWS, _CUDA_PAST) if on_cuda else (_CPU_READ_ROWS, _CPU_PAST)
    past /= _count_bytes(model)
    prepack(model)
    sequences = max(1, (_CUDA_SEQUENCES if on_cuda else _CPU_SEQUENCES) // lanes)
    longest = resolve_whole_tokens(files, spec)
    step_tokens = spec.max_batch_tokens or (_CUDA_STEP_TOKENS if on_cuda else _CPU_STEP_TOKENS)
    slab_slots = 1 if _can_record(model, plan) else SLAB_SLOTS
    arenas = [Arena(0, dict(kinds), slab_slots=slab_slots) for _ in range(lanes)]
    rooms = [Room(arena, sequences * (longest + 64), plan.device, lanes) for arena in arenas]
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
            drafter=Drafter(read_rows=read_rows, past_share=past * room.arena.token_bytes),
        )
        for room in rooms
    ]


def _count_bytes(model: Any) -> int:
    return sum(part.numel() * part.element_size() for part in model.parameters())


def _class_of_decoders(files: ModelFiles) -> str:
    """transformers' class for a decoder: those that hear or see beside reading are in another of its lists."""
    from transformers.models.auto import modeling_auto

    kind = files.config.get("model_type")
    others = (
        ("AutoModelForSeq2SeqLM", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        ("AutoModelForImageTextToText", modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    )
    known = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        "AutoModelForCausalLM" if known else next((n for n, names in others if kind in names), "AutoModelForCausalLM")
    )


def _write_plainly(
    files: ModelFiles, model: Any, picker: Picker, spec: ScoreSpec[WritingOptions], *, name: str, reason: str
) -> PlainWriter:
    print(f"gristmill: {files.name} writes one text at a time, which is slow, since {reason}", file=sys.stderr)
    return PlainWriter(model, picker, name=f"{name}/alone", max_new_tokens=spec.options.max_new_tokens)


def _make_picker(options: WritingOptions, files: ModelFiles, model: Any, *, penalty: float) -> Picker:
    tokenizer = load_tokenizer(files) if options.stop or options.form.json_schema else None
    codec = load_codec(files)
    choices = encode_choices(codec, options.form.choices, max_new_tokens=options.max_new_tokens)
    marks = find_marks(codec) if options.reasoning and options.form else None
    ends = add_turn_end(find_ends(model), files)
    if not ends:
        print(f"gristmill: model {files.name!r} names no end token; its answers have full length", file=sys.stderr)
    return Picker(options, ends=ends, tokenizer=tokenizer, penalty=penalty, choices=choices, marks=marks, files=files)


def find_ends(model: Any) -> frozenset[int]:
    """Token ids that end an answer, as a model's own settings say."""
    told = model.generation_config.eos_token_id
    if told is None:
        told = getattr(model.config.get_text_config(), "eos_token_id", None)
    return frozenset([told] if isinstance(told, int) else told or ())


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _can_record(model: Any, plan: DevicePlan) -> bool:
    """All of the model's attention goes by the kernel of a GPU, which no product that is bounded does."""
    config = model.config.get_text_config()
    bounded = getattr(config, "attn_logit_softcapping", None)
    return not bounded and goes_by_kernel(plan.device, plan.precision, _head_width(config))


def _run_plainly(files: ModelFiles, model: Any, items: Items) -> np.ndarray:
    """(2, steps, V) logits after two short texts, each alone and written by transformers.

    Raises:
        ModelError: transformers itself does not write with the model.
    """

    def write(picker: Picker) -> None:
        PlainWriter(model, picker, name="", max_new_tokens=STEPS).run(items, np.arange(len(items)))

    try:
        return watch(write, ends=find_ends(model))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        told = f"model {files.name!r} ({files.config.get('model_type')})"
        raise ModelError(f"{told} writes nothing to a text: {first_line(error)}; take another model") from error


class _NoCacheError(Exception):
    """An architecture does not keep its past where gristmill does."""


def _check_cache(files: ModelFiles, model: Any, plan: DevicePlan, items: Items, wanted: np.ndarray) -> dict[int, Any]:
    """Two short texts, in pieces and together, have the logits that they have alone.

    Returns:
        What each layer's keys and values are like, as `Arena.kinds`.

    Raises:
        _NoCacheError: They have others, or none.
    """
    arena = Arena(256)
    try:
        model.set_attn_implementation(CACHED)
        found = _run_cached(model, plan, items, arena)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _NoCacheError(f"with a cache of slots it does not run: {first_line(error)}") from error
    if is_alike(found, wanted, precision=plan.precision):
        return arena.kinds
    if not _is_alike_exactly(files, model, plan, items):
        raise _NoCacheError("it keeps a past that is not in its attention alone, or has an attention of its own")
    return arena.kinds


def _run_cached(model: Any, plan: DevicePlan, items: Items, arena: Arena) -> np.ndarray:
    """As `_run_plainly`, over a cache of slots."""

    def write(picker: Picker) -> None:
        decoder = Decoder(
            model, picker, arena, device=plan.device, max_new_tokens=STEPS, max_sequences=2, step_tokens=4
        )
        for number in range(len(items)):
            decoder.add(number, items.ids[items.offsets[number] : items.offsets[number + 1]])
        while len(decoder):
            decoder.step()

    return watch(write, ends=find_ends(model))


def _is_alike_exactly(files: ModelFiles, model: Any, plan: DevicePlan, items: Items) -> bool:
    """The same in float32, if there is memory for it: in half precision rounding alone may carry logits far apart."""
    if plan.precision == "float32":
        return False
    try:
        with in_float32(model):
            model.set_attn_implementation("eager")
            wanted = _run_plainly(files, model, items)
            model.set_attn_implementation(CACHED)
            found = _run_cached(model, plan, items, Arena(256))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_forgotten()
        return False
    return is_alike(found, wanted, precision="float32")
