"""What a job may ask for whose model writes, and which models can do it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
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


MOST_ANSWERS, MOST_TOP_LOGPROBS = 128, 20
ANY_OBJECT = '{"type": "object", "additionalProperties": true}'

Reasoning = Literal["drop", "keep"]
ResponseFormat = Literal["text", "json_object"]
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


def _name_by_text(value: Any) -> Any:
    """Keys of a mapping as text, as JSON has them."""
    return {str(key): each for key, each in value.items()} if isinstance(value, dict) else value


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
    n: int = option(
        1,
        "Answers to each row, of which `text` is the first and `candidates` all; with a temperature each is drawn by "
        "itself.",
        least=1,
        for_engine=False,
    )
    logprobs: bool = option(
        False, "Tell how likely each token of an answer was, in `logprobs`, by the model's own logits.", for_engine=True
    )
    top_logprobs: int = option(
        0, "Beside each token as many of the likeliest, at most 20; it takes `logprobs: true`.", least=0
    )
    presence_penalty: float = option(0.0, "Taken from the logits of tokens that the answer has already, -2 to 2.")
    frequency_penalty: float = option(0.0, "Likewise, once for each time that it has them, -2 to 2.")
    logit_bias: dict[str, float] | None = option(
        None,
        "Added to the logits of tokens, by their ids in the model's tokenizer, -100 to 100.",
        check=_name_by_text,
    )
    min_tokens: int = option(0, "Tokens before which nothing ends an answer.", least=0)
    response_format: ResponseFormat = option(
        "text", "`json_object` holds an answer to a JSON object of any keys; it is in `text`, as it was written."
    )
    options_from: str | None = option(
        None,
        "A column of options of each row, a struct or a map, or JSON as text: `max_new_tokens`, `temperature`, "
        "`top_p`, `top_k`, `seed`, `stop`, `schema`, `choices`, `n`, `logprobs`, `top_logprobs`, `presence_penalty`, "
        "`frequency_penalty`, `logit_bias`, `min_tokens`, `response_format`. What it leaves out, or null, is as the "
        "job says. Rows then have `candidates` and `logprobs` in any case.",
    )
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
        return Form(ANY_OBJECT) if self.response_format == "json_object" else Form()

    @property
    def tells_candidates(self) -> bool:
        """Rows have a list of all their answers."""
        return self.n > 1 or self.options_from is not None

    @property
    def tells_logprobs(self) -> bool:
        """Rows have a column for how likely tokens were."""
        return self.logprobs or self.options_from is not None

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
        yield from self._find_problems_of_tokens(spec)
        if taken := sorted((self.chat_template_kwargs or {}).keys() & {"messages", "add_generation_prompt"}):
            yield f"chat_template_kwargs holds {', '.join(taken)}, which gristmill gives the chat template itself"
        if isinstance(self.stop, str) or any(not string for string in self.stop):
            yield "stop needs a list of strings that are not empty"

    def _find_problems_of_tokens(self, spec: ScoreSpec[Any]) -> Iterator[str]:
        if self.top_logprobs and not self.logprobs:
            yield "top_logprobs takes logprobs: true"
        if self.top_logprobs > MOST_TOP_LOGPROBS:
            yield f"top_logprobs is {self.top_logprobs}; it must be at most {MOST_TOP_LOGPROBS}"
        if self.n > MOST_ANSWERS:
            yield f"n is {self.n}; it must be at most {MOST_ANSWERS}"
        if self.n > 1 and self.asked_for:
            yield "n is for rows that are asked once, not for several variants or languages"
        if self.min_tokens > self.max_new_tokens:
            yield f"min_tokens is {self.min_tokens}, and max_new_tokens {self.max_new_tokens}"
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                yield f"{name} is {getattr(self, name)}; it must be from -2 to 2"
        told = (self.logit_bias or {}).items()
        wrong = [key for key, bias in told if not str(key).isdigit() or not -100 <= bias <= 100]
        if wrong:
            yield f"logit_bias takes ids of tokens and numbers from -100 to 100; look at {wrong[0]!r}"
        beside = ("n", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "options_from")
        defaults = {f.name: f.default for f in fields(self)}
        if self.num_beams > 1 and (asked := [name for name in beside if getattr(self, name) != defaults[name]]):
            yield f"num_beams follows the likeliest answers, without {', '.join(asked)}; choose one"
        if (self.n > 1 or self.options_from is not None) and spec.overflow == "chunk":
            yield "n and options_from are for texts that are not read in chunks; take overflow truncate or fail"
        if self.options_from is not None and self.asked_for:
            yield "options_from is for rows that are asked once, not for several variants or languages"


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


def resolve_whole_tokens(files: ModelFiles, spec: ScoreSpec[WritingOptions]) -> int:
    """Longest prompt and answer of a decoder together, whatever a row's options are.

    Raises:
        The errors of `resolve_prompt_tokens`.
    """
    told, limit = resolve_prompt_tokens(files, spec) + spec.options.max_new_tokens, position_limit(files)
    if spec.options.options_from is None:
        return told
    return limit if limit < NO_LIMIT else max(told, _DEFAULT_TOKENS)


def prompt_tokens_beside(files: ModelFiles, spec: ScoreSpec[WritingOptions], options: WritingOptions) -> int:
    """Longest prompt of a row with these options; 0 or less where the model has no room for its answer."""
    longest = resolve_prompt_tokens(files, spec)
    if files.config.get("is_encoder_decoder") or options.max_new_tokens == spec.options.max_new_tokens:
        return longest
    room = resolve_whole_tokens(files, spec) - options.max_new_tokens
    return room if spec.max_tokens is None else min(spec.max_tokens, room)
