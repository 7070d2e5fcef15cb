"""Where a job's answers go, as its YAML file says it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from jobs.option_fields import Section
from jobs.paths import canonical, is_relative, lies_in

TABLES = ("delta", "iceberg")
_IN_BETWEEN = "_gristmill_result"  # the struct on its way to columns of its own
ADDED = ("outcome", "increment")  # columns that every output has


def _one_place(schema: dict[str, Any]) -> None:
    """To an editor, a path or a table is needed."""
    schema.pop("required")
    schema["anyOf"] = [{"required": ["path"]}, {"required": ["table"]}]


class OutputSettings(Section):
    """Where the answers go: Parquet or a table, and what of the input is kept beside them."""

    model_config = ConfigDict(json_schema_extra=_one_place)

    path: str = Field(description="A directory; another job's results are refused. Or `table`.")
    table: str | None = Field(
        None, description="A table of Delta or Iceberg in a catalog, as `catalog.schema.name`; it is made if need be."
    )
    format: Literal["parquet", "delta", "iceberg", "openai-batch", "anthropic-batch"] = Field(
        "parquet",
        description="`delta` and `iceberg` make `path` a table; of a new `table` they say which it is to be, where its "
        "catalog does not. `openai-batch` and `anthropic-batch` make `path` a results file of that service, of a job "
        "with `models`; the rows that it is made of are in `PATH.gristmill/rows`.",
    )
    mode: Literal["append", "merge"] = Field(
        "append", description="Of a table: `merge` replaces rows by `input.key`, as those that are scored again."
    )
    state: str | None = Field(
        None,
        description="Of a table: the directory of checkpoint, marks, lock and reports; of a `path` without it "
        "`PATH.gristmill`.",
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

    @model_validator(mode="before")
    @classmethod
    def _path_or_table(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("table"):
            return values
        if values.get("path"):
            raise ValueError("give one of path and table")
        return {**values, "path": ""}

    @model_validator(mode="after")
    def _table_fits(self) -> OutputSettings:
        if self.table and self.format not in ("parquet", *TABLES):
            raise ValueError(f"format {self.format} makes a results file, and table is a table")
        if self.table and not self.state:
            raise ValueError("table needs state: a directory for checkpoint, marks, lock and reports")
        if self.state and is_relative(self.state) and not is_relative(self.path or "/"):
            raise ValueError(
                f"state is {self.state}, which another working directory would not find, and all rows be scored and "
                "written again; write it in full, from / or a scheme on"
            )
        if (
            self.state
            and self.path
            and (lies_in(self.state, self.path) or canonical(self.state) == canonical(self.path))
        ):
            raise ValueError(f"state {self.state} lies in path {self.path}, and a table holds its own files alone")
        if not self.is_table:
            given = {"mode": self.mode != "append", "state": self.state is not None}
            if told := [name for name, is_given in given.items() if is_given]:
                raise ValueError(f"{told[0]} is for a table: output.table, or output.format delta or iceberg")
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> OutputSettings:
        if self.name.lower() in ADDED or not self.name:
            raise ValueError(f"name is {self.name!r}: every output has columns {' and '.join(ADDED)}; take another")
        columns = self.columns or []
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ValueError(f"columns names {twice[0]} twice")
        return self

    @model_validator(mode="after")
    def _layout_fits(self) -> OutputSettings:
        if self.prefix and self.layout != "flat":
            raise ValueError("prefix is for layout flat, whose columns it begins; a struct has a name")
        if self.format not in ("parquet", *TABLES) and (self.layout != "struct" or self.partition_by):
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
    def is_table(self) -> bool:
        """Answers go to a table of Delta or Iceberg."""
        return self.table is not None or self.format in TABLES

    @property
    def place(self) -> str:
        """Where answers go, as it is called."""
        return self.table or self.path

    @property
    def called(self) -> str:
        """It, with the key that names it."""
        return f"output.table {self.table}" if self.table else f"output.path {self.path}"

    @property
    def state_path(self) -> str:
        """The directory of a job's state; of Parquet it is that of the answers."""
        return self.state or (f"{self.path.rstrip('/')}.gristmill" if self.is_table else self.path)

    @property
    def result(self) -> str:
        """The struct of the answers, as long as a job works on it; of layout struct it is the result column."""
        return _IN_BETWEEN if self.layout == "flat" else self.name
