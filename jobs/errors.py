"""What can go wrong on the driver, and the exit code that says so.

JobError                 exit 1: unexpected
├── UserError            exit 2: bad configuration or input; nothing was written
│   ├── SettingsError    the YAML or --set
│   ├── InputError       the table, its columns
│   ├── OutputError      the place for the result
│   ├── JavaError        no Java, or one that Spark cannot use
│   └── SessionError     Spark does not start
└── TooManyFailed        exit 3: over max_error_rate; what was committed stays
"""

from __future__ import annotations

from pyspark.errors import PySparkException

from udfs.errors import find_in_text

try:
    from py4j.protocol import Py4JError
except ImportError:  # a pure Spark Connect client
    Py4JError = PySparkException

# What Spark raises: its own errors, and Java's that it did not convert.
SPARK_ERRORS: tuple[type[Exception], ...] = (PySparkException, Py4JError)


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


class JavaError(UserError):
    pass


class SessionError(UserError):
    pass


class TooManyFailed(JobError):
    exit_code = 3


def explain(error: Exception) -> str:
    """What went wrong, in a line, out of a Spark exception's pages.

    An error of our own that an executor raised, else the deepest cause that is told, else the first line.
    """
    if ours := find_in_text(str(error)):
        return ours
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    told = causes[-1] if causes else lines[0] if lines else type(error).__name__
    return told.split(" SQLSTATE")[0]
