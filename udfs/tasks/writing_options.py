"""What a job may ask for whose model writes, and which models can do it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from udfs.errors import ModelError
from udfs.model.files import ModelFiles
from udfs.model.limits import NO_LIMIT, position_limit, resolve_max_tokens
from udfs.spec import Options, ScoreSpec, option
from udfs.text.chats import has_chat

# How the classes of transformers end that write.
_WRITERS = (
    *("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "GenerationDecoder"),
    *("ForConditionalGeneration", "MTModel", "ForTextToText", "EncoderDecoderModel"),
)


_DEFAULT_TOKENS = 2048  # of a model without a table of positions


Reasoning = Literal["drop", "keep"]
WritingEngine = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True)
class Form:
    """What an answer has to be.

    Args:
        json_schema: JSON that matches this, as text; None for anything.
        choices: One of these; () for anything.
    """

    json_schema: str | None = None
    choices: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.json_schema or self.choices)


@dataclass(frozen=True, kw_only=True)
class WritingOptions(Options):
    """What each task takes whose model writes."""

    writes: ClassVar[bool] = True

    max_new_tokens: int = option(256, "Longest answer, in tokens.", least=1)
    temperature: float = option(0.0, "Above 0, tokens are drawn; at 0 the likeliest is taken.", least=0)
    top_p: float = option(1.0, "Draw among the likeliest tokens that have this much probability together.")
    top_k: int = option(0, "Draw among so many of the likeliest tokens; 0 for all.", least=0)
    seed: int = option(0, "Of what is drawn.", least=0)
    stop: tuple[str, ...] = option((), "Strings that end an answer, and are cut off.")
    reasoning: Reasoning | None = option(
        None,
        "What becomes of what a model thinks before it answers, as `<think>…</think>`: `drop` it, or `keep` it beside "
        "the answer, as `reasoning`. Without it, thoughts stay in the text.",
    )
    chat_template_kwargs: dict[str, Any] | None = option(
        None,
        "What the model's chat template is given beside the messages, as `{enable_thinking: false}`.",
        for_engine=False,
    )
    num_beams: int = option(1, "Answers that an encoder-decoder follows at once.", least=1)
    engine: WritingEngine = option(
        "auto",
        "What runs a decoder: `transformers`, `vllm`, or vLLM where it is installed and the device is CUDA (`auto`).",
        decides=False,
    )

    @property
    def form(self) -> Form:
        """What an answer has to be."""
        return Form()

    def find_problems(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        yield from super().find_problems(spec)
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p}; it must be above 0 and at most 1"
        if self.temperature == 0 and (self.top_p < 1 or self.top_k):
            yield "top_p and top_k choose among tokens that are drawn; set a temperature above 0"
        if self.engine == "vllm" and self.num_beams > 1:
            yield "num_beams is for encoder-decoders, which engine 'vllm' does not run; choose one"
        if self.num_beams > 1 and self.temperature > 0:
            yield "num_beams follows the likeliest answers and temperature draws them; choose one"
        if self.num_beams > 1 and self.form:
            yield "num_beams follows answers that are free, and schema and choices bind them; choose one"
        if taken := sorted((self.chat_template_kwargs or {}).keys() & {"messages", "add_generation_prompt"}):
            yield f"chat_template_kwargs holds {', '.join(taken)}, which gristmill gives the chat template itself"
        if isinstance(self.stop, str) or any(not string for string in self.stop):
            yield "stop needs a list of strings that are not empty"


def check_writes(files: ModelFiles, task: str) -> None:
    """Refuse a model that cannot write.

    Raises:
        ModelError: Its architecture has no head for it.
    """
    kinds = files.config.get("architectures") or ["an unnamed architecture"]
    if not any(kind.endswith(_WRITERS) for kind in kinds):
        raise ModelError(
            f"model {files.name!r} is {', '.join(kinds)}, which cannot write; {task} needs a …ForCausalLM or a "
            "…ForConditionalGeneration"
        )


def check_ways(files: ModelFiles, options: WritingOptions) -> None:
    """Refuse ways of writing that the model's kind does not know.

    Raises:
        ModelError: vLLM was asked for an encoder-decoder, or beams of a decoder.
    """
    encodes = files.config.get("is_encoder_decoder")
    if options.engine == "vllm" and encodes:
        raise ModelError(
            f"model {files.name!r} is an encoder-decoder, which engine 'vllm' does not run; take `engine: auto`"
        )
    if options.num_beams > 1 and not encodes:
        raise ModelError(
            f"model {files.name!r} is a decoder, and num_beams is for encoder-decoders; leave it out, or draw with a "
            "temperature"
        )


def check_has_chat(files: ModelFiles, task: str) -> None:
    """Refuse a decoder that cannot be told what to do.

    Raises:
        ModelError: It has no chat template.
    """
    if not has_chat(files):
        raise ModelError(
            f"model {files.name!r} has no chat template, and {task} by a decoder is asked in a chat; take an instruct "
            "model, or text-generation with a prompt of your own"
        )


def resolve_prompt_tokens(files: ModelFiles, spec: ScoreSpec[WritingOptions]) -> int:
    """Longest prompt: what was asked for, or what the model reads beside an answer.

    Raises:
        ModelError: The model has no room for prompt and answer.
    """
    limit, max_new_tokens = position_limit(files), spec.options.max_new_tokens
    if files.config.get("is_encoder_decoder"):
        return resolve_max_tokens(files, spec.max_tokens)
    if limit >= NO_LIMIT:
        return spec.max_tokens or _DEFAULT_TOKENS
    if max_new_tokens >= limit or (spec.max_tokens or 0) + max_new_tokens > limit:
        raise ModelError(
            f"model {files.name!r} has room for {limit} tokens, prompt and answer together, but max_tokens is "
            f"{spec.max_tokens or 'open'} and max_new_tokens {max_new_tokens}"
        )
    return spec.max_tokens or limit - max_new_tokens
