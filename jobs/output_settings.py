"""Where a job's answers go, as its YAML file says it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_IN_BETWEEN = "_gristmill_result"  # the struct on its way to columns of its own
ADDED = ("outcome", "increment")  # columns that every output has


class OutputSettings(BaseModel):
    """Where the answers go: always Parquet, and what of the input is kept beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="A directory; another job's results are refused.")
    format: Literal["parquet", "openai-batch", "anthropic-batch"] = Field(
        "parquet",
        description="`openai-batch` and `anthropic-batch` make `path` a results file of that service, of a job with "
        "`models`; the rows that it is made of are in `PATH.gristmill/rows`.",
    )
    errors: str | None = Field(
        None, description="Of `openai-batch`: the file of the requests that failed; without it, PATH.errors."
    )
    columns: list[str] | None = Field(None, description="Input columns to keep; without it all, `[]` for none.")
    name: str = Field("prediction", description="The result column, where it is a struct.")
    layout: Literal["struct", "flat"] = Field(
        "struct",
        description="`flat` makes the fields of the result columns by themselves: the task's own, `error_code`, "
        "`error_message`, `input_tokens`, `output_tokens`, `padded_tokens`, `cached_tokens`, `truncated`, `engine`.",
    )
    prefix: str = Field("", description="Of `layout: flat`: what the names of these columns begin with, as `answer_`.")
    partition_by: list[str] = Field(
        [],
        description="Columns of the input that become directories, as in `outcome=succeeded/lang=de`: strings, whole "
        "numbers, booleans or dates that are kept.",
    )

    @model_validator(mode="after")
    def _layout_fits(self) -> OutputSettings:
        if self.prefix and self.layout != "flat":
            raise ValueError("prefix is for layout flat, whose columns it begins; a struct has a name")
        if self.format != "parquet" and (self.layout != "struct" or self.partition_by):
            raise ValueError(f"layout and partition_by are for tables, and format {self.format} makes a results file")
        by = [name.lower() for name in self.partition_by]
        if twice := [name for name in self.partition_by if by.count(name.lower()) > 1]:
            raise ValueError(f"partition_by names {twice[0]} twice")
        if hidden := [name for name in self.partition_by if name.startswith(("_", ".")) or not name]:
            raise ValueError(
                f"partition_by names {hidden[0]!r}: readers skip directories that begin with `_` or a dot; rename the "
                "column in a `query`"
            )
        return self

    @property
    def result(self) -> str:
        """The struct of the answers, as long as a job works on it; of layout struct it is the result column."""
        return _IN_BETWEEN if self.layout == "flat" else self.name
