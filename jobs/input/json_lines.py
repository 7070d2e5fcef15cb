"""Lines of JSON files that hold several records, of which Spark reads the first alone, or only a part of one.

What follows a record in its line (with `multiLine`, in its file) Spark leaves out without a word.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from jobs.errors import SPARK_ERRORS
from jobs.input.checkpoint import path_of
from jobs.input.files import name_some
from jobs.input.kinds import column
from jobs.input.records import as_pattern, many_lines, option_of, raw_column, record_options
from jobs.settings import InputSettings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

_APART = "\x1e"  # which JSON allows in no string
_ENDS = r"\s;|\x00\x1e\x85\xA0\x{2028}\x{2029}\x{FEFF}"  # what people put between records, but for commas
# Within a string a quote has a backslash before it, so a key after a brace is a record's.
_NEXT = r"""(?=\{\s*(?:\}|"[^"]*"\s*:|"(?:[^"\\]|\\.){0,99}"\s*:|'[^']*'\s*:)|\[\s*[\[{])"""
_GAP, _GAP_OR_COMMA = rf"([}}\]])[{_ENDS}]*{_NEXT}", rf"([}}\]])[{_ENDS},]*{_NEXT}"
_CLOSED = r"\}[\s,}\]]*$"  # an array that is written a record a line has such ends
_BEHIND = r"(?s)^(.*[}\]])\s*([^}\]\s][^}\]]*)$"
_ARRAY, _WITHIN = r"^\s*\[", r"(?s)^\s*\[(.*)\]\s*$"
_OPENED = r"^\s*(?:[\[{]|\[.*[^\]\s]|[\[{].*[\[{:])\s*$"  # a line of JSON that is written over several
_TEXT, _RECORD, _FITS = "_gristmill_text", "_gristmill_record", "_gristmill_fits"
_RAW_OPTION, _OF_FILES = "columnNameOfCorruptRecord", ("multiline", "basepath", "encoding", "charset", "linesep")


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
    if small and not option_of(source, "lineSep"):
        uris = [uri for uri in uris if _may_be_odd(uri, whole=_reads_whole(source))]
    if not uris:
        return JsonLines(source)
    from pyspark.sql import functions as F

    text, parts = F.col("value"), _Parts(record_options(source))
    opened = F.lit(False) if _reads_whole(source) else parts.count(text).isNull() & text.rlike(_OPENED)
    found = (
        _read_text(spark, source, uris, {})
        .select("_metadata.file_path", parts.is_joined(text).alias("joined"), opened.alias("opened"))
        .where("joined or opened")
        .groupBy("file_path")
        .agg(F.max("joined"), F.max("opened"))
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
    parts, text = _Parts(options), F.col(_TEXT)
    texts = texts.select(*map(column, beside), about, F.explode(parts.records(F.col("value"))).alias(_TEXT))
    texts = texts.where(F.trim(text) != "").withColumn(_FITS, F.coalesce(parts.count(text) == 1, F.lit(False)))
    read = texts.withColumn(_RECORD, F.when(column(_FITS), F.from_json(text, own, parts.parsing)))
    raw = raw_column(source) or ""
    kept = F.when(column(_FITS), column(_RECORD)[raw]).otherwise(text)
    fields = [kept.alias(raw) if name == raw else column(_RECORD)[name].alias(name) for name in own.names]
    return read.select(*map(column, beside), "_metadata", *fields)


class _Parts:
    """Lines of text in parts, as far as these are JSON.

    Args:
        options: Of the input, by which its JSON is parsed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.parsing = {name: str(value) for name, value in options.items() if name.lower() not in _OF_FILES}

    def is_joined(self, text: Column) -> Column:
        """Whether something follows the first value of a text, which Spark reads alone."""
        from pyspark.sql import functions as F

        first = F.from_json(text, f"{_TEXT} string", {**self.parsing, _RAW_OPTION: _TEXT})[_TEXT].isNull()
        is_read = F.when(text.rlike(_ARRAY), self._list(text).isNotNull()).otherwise(first)
        count = F.coalesce(self.count(text), self.count(_close(text)), F.lit(2))
        return (F.trim(text) != "") & (count > 1) & is_read

    def count(self, text: Column) -> Column:
        """How many values a text lists; null where it is no JSON."""
        from pyspark.sql import functions as F

        listed = _as_list(text)
        values = self._list(listed)  # reads what the options allow, such as NaN
        return F.coalesce(F.json_array_length(listed), F.when(values.isNotNull(), F.size(values)))

    def records(self, text: Column) -> Column:
        """A text's records, each by itself; a text whose first record is none, as it is."""
        from pyspark.sql import functions as F

        apart = _split(text, _GAP)
        first = [self.count(part) for part in (apart[0], _close(apart[0]), _head(apart[0]))]
        parted = F.when(F.coalesce(*first) > 0, F.flatten(F.transform(apart, self._values))).otherwise(F.array(text))
        return F.flatten(F.transform(parted, self._elements))

    def _values(self, text: Column) -> Column:
        """The values of a text, and what is behind them and none."""
        from pyspark.sql import functions as F

        closed, head = _close(text), _head(text)
        return (
            F.when(self.count(text).isNotNull(), self._listed(text))
            .when(self.count(closed).isNotNull(), self._listed(closed))
            .when(self.count(head) > 0, F.concat(self._listed(head), F.array(F.regexp_extract(text, _BEHIND, 2))))
            .otherwise(F.array(text))
        )

    def _elements(self, text: Column) -> Column:
        """What an array of records holds; a record is what it holds itself."""
        from pyspark.sql import functions as F

        is_array = text.rlike(_WITHIN) & (self.count(text) == 1)
        return F.when(is_array, self._listed(F.regexp_extract(text, _WITHIN, 1))).otherwise(F.array(text))

    def _listed(self, text: Column) -> Column:
        """The values that a text lists, as they are written, or else as Spark writes them."""
        from pyspark.sql import functions as F

        apart = _split(text, _GAP_OR_COMMA)
        return (
            F.when(self.count(text) == 1, F.array(text))
            .when(F.forall(apart, lambda part: self.count(part) == 1), apart)
            .otherwise(self._list(_as_list(text)))
        )

    def _list(self, text: Column) -> Column:
        from pyspark.sql import functions as F

        return F.from_json(text, "array<string>", self.parsing)


def _as_list(text: Column) -> Column:
    from pyspark.sql import functions as F

    return F.concat(F.lit("["), text, F.lit("\n]"))  # the line ends a comment


def _close(text: Column) -> Column:
    """A record without what closes an array of them."""
    from pyspark.sql import functions as F

    return F.regexp_replace(text, _CLOSED, "}")


def _head(text: Column) -> Column:
    """What a text holds before the words behind its last value."""
    from pyspark.sql import functions as F

    return F.regexp_extract(text, _BEHIND, 1)


def _split(text: Column, gap: str) -> Column:
    from pyspark.sql import functions as F

    return F.split(F.regexp_replace(text, gap, "$1" + _APART), _APART)


def _read_text(
    spark: SparkSession, source: InputSettings, uris: Collection[str], options: Mapping[str, Any]
) -> DataFrame:
    from pyspark.sql import functions as F

    encoding = option_of(source, "encoding") or option_of(source, "charset")
    told = {"lineSep": option_of(source, "lineSep"), "encoding": encoding}
    below = {name: value for name, value in options.items() if name.lower() == "basepath"}
    ends = {name: value for name, value in told.items() if value}
    reader = spark.read.format("text").options(**ends, **below, wholetext=_reads_whole(source))
    texts = reader.load([as_pattern(uri) for uri in uris])
    text = F.decode(F.col("value").cast("binary"), encoding) if encoding else F.col("value")
    return texts.withColumn("value", F.regexp_replace(text, r"^\x{FEFF}", ""))


def _may_be_odd(uri: str, *, whole: bool) -> bool:
    """False for a file that can be read here, and has a value a line (or is one) for certain."""
    told = urlsplit(uri)
    if told.scheme not in ("", "file") or told.netloc:
        return True
    try:
        held = Path(unquote(told.path)).read_bytes()
        for line in map(bytes.strip, [held] if whole else held.splitlines()):
            if line and line.find(b"}") != len(line) - 1:  # the first brace may be the last one
                json.loads(line)
    except (OSError, ValueError, RecursionError):
        return True
    return False


def _reads_whole(source: InputSettings) -> bool:
    return option_of(source, "multiLine").lower() == "true"
