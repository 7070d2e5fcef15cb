"""What can go wrong on the driver, and the exit code that says so.

JobError                 exit 1: unexpected
├── UserError            exit 2: bad configuration or input; what was committed before it was found stays
│   ├── SettingsError    the YAML or --set
│   ├── InputError       the table, its columns
│   ├── OutputError      the place for the result
│   │   └── BusyError    another driver works on it, or has taken it over
│   ├── JavaError        no Java, or one that Spark cannot use
│   └── SessionError     Spark does not start
├── TooManyFailed        exit 3: over max_error_rate; what was committed stays
├── DeadlineReached      exit 4: what is left is for the next run
└── Interrupted          exit 130 or 143: Ctrl-C or SIGTERM; what was committed stays
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from urllib.parse import unquote

from udfs.errors import find_in_text


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

        return (Py4JNetworkError,)
    return ()


# What Spark raises: its own errors, and Java's that it did not convert.
SPARK_ERRORS = _spark_errors()
_LOST_ERRORS = _lost_errors()  # its process is gone


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


class JavaError(UserError):
    pass


class SessionError(UserError):
    pass


class TooManyFailed(JobError):
    exit_code = 3


class DeadlineReached(JobError):
    exit_code = 4


class Interrupted(JobError):
    """The run was told to end."""

    def __init__(self, message: str, *, by: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + by


_MARK = "[gristmill job] "
_ACROSS: dict[str, type[JobError]] = {
    kind.__name__: kind for kind in (JobError, InputError, OutputError, BusyError, TooManyFailed, DeadlineReached)
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


_QUERY_FAILED = re.compile(r"^\[STREAM_FAILED\] Query \[.*?\] terminated with exception: ")
_PYTHON_ERROR = re.compile(r"(?!pyspark\.)[\w.]*(?:Error|Exception|Invalid|Exit|Interrupt)(?::|$)")
_UNREADABLE = re.compile(r"(?:Encountered error while reading file|Could not read footer for file:?) (\S+?)\.?(?:\s|$)")


def unreadable_file(error: Exception) -> str | None:
    """The file that Spark could not read, as it names it; None if something else went wrong."""
    found = _UNREADABLE.search(str(error))
    return found.group(1) if found else None


def unreadable_input(error: Exception, advice: str = "") -> JobError:
    """What to raise where Spark fails to read the input: the input is not to blame for a Spark that was killed."""
    if isinstance(error, _LOST_ERRORS):
        return JobError(f"Spark's process ended while the input was read ({explain(error)})")
    return InputError(f"cannot read the input: {explain(error)}{advice}")


def explain(error: Exception) -> str:
    """What went wrong, in a line, out of a Spark exception's pages.

    An error of our own that an executor raised, else the deepest cause that is told, else the first line.
    """
    if ours := find_in_text(str(error)):
        return ours
    unreadable = unreadable_file(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    told = causes[-1] if causes else lines[0] if lines else type(error).__name__
    told = _QUERY_FAILED.sub("", told.split(" SQLSTATE")[0])
    if "from the Python worker" in told:
        raised = [line for line in lines if _PYTHON_ERROR.match(line)]
        told = f"a Python worker raised {raised[-1] if raised else 'an error and said no more; see --spark-log'}"
    return f"the file {unquote(unreadable)} cannot be read: {told}" if unreadable else told
