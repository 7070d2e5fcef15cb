"""What can go wrong on the driver, and the exit code that says so.

JobError                 exit 1: unexpected
├── UserError            exit 2: bad configuration or input; what was committed before it was found stays
│   ├── SettingsError    the YAML or --set
│   ├── InputError       the table, its columns
│   ├── OutputError      the place for the result
│   │   └── BusyError    another driver works on it, or has taken it over
│   ├── EndpointError    a hosted model's provider takes no request: the key, the model's name, the money, the address
│   ├── JavaError        no Java, or one that Spark cannot use
│   └── SessionError     Spark does not start
├── TooManyFailed        exit 3: over max_error_rate; what was committed stays
├── DeadlineReached      exit 4: what is left is for the next run
├── SparkGone            exit 5: Spark's Java process was killed; what was committed stays
└── Interrupted          exit 130 or 143: Ctrl-C or SIGTERM; what was committed stays
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from urllib.parse import unquote

from udfs.errors import GristmillError, ProviderError, error_from_text, find_in_text


def _spark_errors() -> tuple[type[Exception], ...]:
    found: list[type[Exception]] = []
    with contextlib.suppress(ImportError):  # a machine that only measures an engine
        from pyspark.errors import PySparkException

        found.append(PySparkException)
    with contextlib.suppress(ImportError):  # a pure Spark Connect client
        from py4j.protocol import Py4JError

        found.append(Py4JError)
    return tuple(found)


def _lost_errors() -> tuple[type[Exception], ...]:
    with contextlib.suppress(ImportError):
        from py4j.protocol import Py4JNetworkError

        return (Py4JNetworkError, ConnectionError)
    return ()


LOST_ERRORS = _lost_errors()  # Spark's process is gone
# What Spark raises: its own errors, Java's that it did not convert, and what Python says where nothing answers.
SPARK_ERRORS = (*_spark_errors(), *LOST_ERRORS)


class JobError(Exception):
    """An error whose message a user can act on; printed without a traceback."""

    exit_code = 1


class UserError(JobError):
    exit_code = 2


class SettingsError(UserError):
    pass


class InputError(UserError):
    pass


class OutputError(UserError):
    pass


class BusyError(OutputError):
    pass


class EndpointError(UserError):
    pass


class JavaError(UserError):
    pass


class SessionError(UserError):
    pass


class TooManyFailed(JobError):
    exit_code = 3


class DeadlineReached(JobError):
    exit_code = 4


class SparkGone(JobError):
    """Spark's Java process has ended in the middle of the work.

    Args:
        then: What to do about it.
    """

    exit_code = 5

    def __init__(self, then: str = "") -> None:
        self.then = then
        super().__init__(
            "Spark's Java process has ended or was killed in the middle of the work. The system kills one for want of "
            "memory: give the driver more (spark.driver.memory in spark.conf), or the machine"
            + (f"; {then}" if then else "")
        )


class Interrupted(JobError):
    """The run was told to end."""

    def __init__(self, message: str, *, by: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + by


def exit_code_of(error: BaseException) -> int:
    """The exit code of a command that ends by an error, or by `sys.exit`."""
    match error:
        case JobError():
            return error.exit_code
        case GristmillError() | PermissionError():
            return 2
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT
    return 1


_MARK = "[gristmill job] "
_ACROSS: dict[str, type[JobError]] = {
    kind.__name__: kind
    for kind in (JobError, InputError, OutputError, BusyError, EndpointError, TooManyFailed, DeadlineReached)
}


def pack_error(error: JobError) -> str:
    """An error as a line, to be found again in the pages that Spark makes of it; see `unpack_error`."""
    kind = type(error).__name__
    return _MARK + json.dumps([kind if kind in _ACROSS else "JobError", str(error)])


def unpack_error(text: str) -> JobError | None:
    """The first error that `pack_error` made, out of a stack trace."""
    start = text.find(_MARK)
    if start < 0:
        return None
    kind, message = json.JSONDecoder().raw_decode(text, start + len(_MARK))[0]
    return _ACROSS[kind](message)


_LINE = 1_000  # characters of a message; one may list every file
_CALLING = re.compile(r"^An error occurred while calling \S+\n: ")
_CAUSE = re.compile(r"Caused by: ")
_STACK = re.compile(r"\s+(at |\.\.\. \d+ more)|==|Driver stacktrace:|JVM stacktrace:")
_TRACEBACK = "Traceback (most recent call last):"
_PATH = re.compile(r"(?<![\w.:/<])/\w|\b(?!https?:)[a-z][\w+.-]+:/+[^\s/]")
_QUERY_FAILED = re.compile(r"^\[STREAM_FAILED\] Query \[.*?\] terminated with exception: ")
_UNREADABLE = re.compile(r"(?:Encountered error while reading file|Could not read footer for file:?) (\S+?)\.?(?:\s|$)")


def unreadable_file(error: Exception) -> str | None:
    """The file that Spark could not read, as it names it; None if something else went wrong."""
    found = _UNREADABLE.search(str(error))
    return found.group(1) if found else None


def unreadable_input(error: Exception, advice: str = "") -> JobError:
    """What to raise where Spark fails to read the input: the input is not to blame for a Spark that was killed."""
    if isinstance(error, LOST_ERRORS):
        return SparkGone()
    told = explain(error)
    if "NANOS" in told:
        advice = (
            "; set spark.conf: {spark.sql.legacy.parquet.nanosAsLong: true} to read such timestamps as numbers, or "
            "leave their column out of output.columns"
        )
    return InputError(f"cannot read the input: {told}{advice}")


def as_job_error(error: Exception) -> JobError:
    """What to raise where Spark fails: what a provider has against all requests is the user's to mend."""
    if isinstance(ours := error_from_text(str(error)), ProviderError):
        return EndpointError(ours.message)
    return JobError(explain(error))


def explain(error: Exception) -> str:
    """What went wrong, in a line, out of a Spark exception's pages.

    An error of our own that an executor raised, else the deepest cause that is told, else the error itself. Where that
    names no path, the next message around it that does comes with it.
    """
    if ours := find_in_text(str(error)):
        return ours
    *outer, told = [_QUERY_FAILED.sub("", message) for message in _messages(str(error))] or [type(error).__name__]
    if unreadable := unreadable_file(error):
        return f"the file {unquote(unreadable)} cannot be read: {told}"
    places = [] if _PATH.search(told) else [message for message in outer if _PATH.search(message)]
    return f"{told} ({places[-1]})" if places else told


def _messages(text: str) -> list[str]:
    """What an exception and its causes tell, each in a line, without the stacks between them."""
    found, in_stack = [list[str]()], False
    for line in _CALLING.sub("", text).splitlines():
        if cause := _CAUSE.match(line):
            found.append([line[cause.end() :]])
            in_stack = False
        elif in_stack := in_stack or bool(_STACK.match(line)):
            continue
        else:
            found[-1].append(line)
    return [line for lines in found if (line := _as_line("\n".join(lines)))]


def _as_line(message: str) -> str:
    before, traceback, after = message.partition(_TRACEBACK)
    if traceback:  # of Python; its last line tells what was raised
        raised = [line for line in after.splitlines() if line[:1].strip()]
        message = f"{before} {raised[-1] if raised else ''}"
    elif message.strip().endswith("from the Python worker:"):
        message += " it said no more; see --spark-log"
    lines = (line.strip() for line in message.split(" SQLSTATE")[0].splitlines())
    line = " ".join(line for line in lines if line)
    return line if len(line) <= _LINE else line[:_LINE].rpartition(" ")[0] + " …"  # no word, or secret, is cut
