"""Lines of JSON files that hold several records, of which Spark reads the first alone, or only a part of one.

What follows a record in its line (with `multiLine`, in its file) Spark leaves out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jobs.errors import SPARK_ERRORS
from jobs.input.checkpoint import path_of
from jobs.input.files import name_some
from jobs.input.kinds import column
from jobs.input.records import as_pattern, many_lines, option_of, raw_column
from jobs.settings import InputSettings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

# Within a string a quote has a backslash before it, so these stand between records; a comma may stand in an array too.
_BETWEEN = r'\}\s*(?=\{\s*"[^"]*"\s*:)'
_COMMA = r"(?s)^\s*\{.*\}\s*,\s*\{"
_BEHIND = r"(?s)^(.*\})\s*([^}\]\s,][^}\]]*)$"
_APART = "\x1e"  # which JSON allows in no string
_OPENED = r"^\s*(?:[\[{]|\[.*[^\]\s]|[\[{].*[\[{:])\s*$"  # a line of JSON that is written over several
_ODD = re.compile(rb"\}\s*,\s*\{|\}[ \t]*[^}\],\s]|[\[{:]\s*\n|^\s*\[")
_TEXT, _RECORD = "_gristmill_text", "_gristmill_record"


@dataclass(frozen=True)
class JsonLines:
    """What lines tell about how an increment's files of JSON are to be read.

    Args:
        source: The input.
        joined: URIs of files with several records in a line, or text behind one.
        opened: URIs of files with a record over several lines.
    """

    source: InputSettings
    joined: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()

    def warnings(self, malformed: Mapping[str, int]) -> list[str]:
        """What to tell, of files with records that do not fit."""
        advice, bad = many_lines(self.source), {path_of(uri) for uri in malformed}
        broken = [path for path in map(path_of, self.opened) if path in bad]
        return [f"records do not fit in {name_some(broken)}{advice}"] if broken and advice else []


def look_at_lines(spark: SparkSession, source: InputSettings, uris: Sequence[str], *, small: bool = False) -> JsonLines:
    """Find the JSON files among some that are not a record a line (with `multiLine`, a record or an array a file).

    Args:
        spark: The session.
        source: The input.
        uris: The files.
        small: They are small, so that Spark would take longer to open them than to read them.
    """
    if source.format.lower() != "json" or raw_column(source) is None:
        return JsonLines(source)
    if small:
        uris = [uri for uri in uris if _may_be_odd(uri)]
    if not uris:
        return JsonLines(source)
    from pyspark.sql import functions as F

    opened = F.lit(False) if _reads_whole(source) else F.col("value").rlike(_OPENED)
    joined = F.size(_records(F.col("value"))) > 1
    found = (
        _read_text(spark, source, uris, {})
        .where(joined | opened)
        .groupBy("_metadata.file_path")
        .agg(F.max(joined), F.max(opened))
    )
    try:
        rows = sorted(tuple(row) for row in found.collect())
    except SPARK_ERRORS:  # what is wrong with a file is told when it is read
        return JsonLines(source)
    return JsonLines(source, tuple(row[0] for row in rows if row[1]), tuple(row[0] for row in rows if row[2]))


def read_joined(
    spark: SparkSession, source: InputSettings, schema: StructType, uris: Sequence[str], options: Mapping[str, Any]
) -> DataFrame:
    """Files with several records in a line, each record by itself; what is none is a record that does not fit.

    Args:
        spark: The session.
        source: The input.
        schema: Of its records, with partitions and the column for those that do not fit.
        uris: The files.
        options: Of whatever reads them.
    """
    from pyspark.sql import functions as F

    texts = _read_text(spark, source, uris, options)
    beside = [name for name in texts.columns if name != "value"]
    about = texts.metadataColumn("_metadata").alias("_metadata")
    own = type(schema)([field for field in schema.fields if field.name not in beside])
    parsing = {name: str(value) for name, value in options.items() if name.lower() not in ("multiline", "basepath")}
    texts = texts.select(*map(column, beside), about, F.explode(_records(F.col("value"))).alias(_TEXT))
    texts = texts.withColumn(_TEXT, F.explode(_elements(F.col(_TEXT)))).where(F.trim(_TEXT) != "")
    read = texts.withColumn(_RECORD, F.from_json(_TEXT, own, parsing))
    return read.select(*map(column, beside), "_metadata", f"{_RECORD}.*")


def _records(text: Column) -> Column:
    """The records of a line, and text that follows the last one."""
    from pyspark.sql import functions as F

    head, tail = F.regexp_extract(text, _BEHIND, 1), F.regexp_extract(text, _BEHIND, 2)
    listed = F.from_json(F.concat(F.lit("["), text, F.lit("]")), "array<string>")
    return (
        F.when(text.rlike(_BETWEEN), F.split(F.regexp_replace(text, _BETWEEN, "}" + _APART), _APART))
        .when(text.rlike(_BEHIND) & (_count(head) == 1), F.array(head, tail))
        .when(text.rlike(_COMMA) & (_count(text) > 1), listed)
        .otherwise(F.array(text))
    )


def _count(text: Column) -> Column:
    """How many values a text lists; null where it is no JSON."""
    from pyspark.sql import functions as F

    return F.json_array_length(F.concat(F.lit("["), text, F.lit("]")))


def _elements(text: Column) -> Column:
    """What an array of records holds; a record is what it holds itself."""
    from pyspark.sql import functions as F

    held = F.when(text.rlike(r"^\s*\["), F.from_json(text, "array<string>"))
    return F.coalesce(held, F.array(text))


def _read_text(
    spark: SparkSession, source: InputSettings, uris: Collection[str], options: Mapping[str, Any]
) -> DataFrame:
    ends = {"lineSep": option_of(source, "lineSep")} if option_of(source, "lineSep") else {}
    below = {name: value for name, value in options.items() if name.lower() == "basepath"}
    reader = spark.read.format("text").options(**ends, **below, wholetext=_reads_whole(source))
    return reader.load([as_pattern(uri) for uri in uris])


def _may_be_odd(uri: str) -> bool:
    """False for a file that can be read here, and has a record a line for certain."""
    told = urlsplit(uri)
    if told.scheme not in ("", "file") or told.netloc:
        return True
    try:
        return _ODD.search(Path(unquote(told.path)).read_bytes()) is not None
    except OSError:
        return True


def _reads_whole(source: InputSettings) -> bool:
    return option_of(source, "multiLine").lower() == "true"
