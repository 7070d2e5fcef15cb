"""What can go wrong on an executor.

    GristmillError
    ├── SpecError            the question itself is wrong: a label list missing, a bad template
    ├── ModelError           the model is not there, or is not of the kind that the task needs
    │   └── UnsafeModelError the model directory holds what could run code or read other files
    ├── ProviderError        a hosted model's provider takes no request at all: the key, the model's name, the money
    └── EngineError          the engine does not start, dies on everything, or gives answers that fit no question

    PanicError               a library written in Rust has panicked, which it tells by what is no Exception
    RowError                 not raised: what is wrong with one row; it lands in that row's `error`

Errors that cross from an executor to the driver arrive as text, so each begins with its code: `[model] …`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


class GristmillError(Exception):
    """An error whose message says what happened and what to try; never a traceback's business."""

    code = "gristmill"

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    @property
    def message(self) -> str:
        """The message without its code."""
        return super().__str__()


class SpecError(GristmillError):
    code = "spec"


class ModelError(GristmillError):
    code = "model"


class UnsafeModelError(ModelError):
    code = "unsafe_model"


class ProviderError(GristmillError):
    code = "provider"


class EngineError(GristmillError):
    code = "engine"


_BY_CODE = {error.code: error for error in (SpecError, ModelError, UnsafeModelError, ProviderError, EngineError)}
_IN_TEXT = re.compile(rf"\[({'|'.join(_BY_CODE)})\] [^\n]+")


def find_in_text(text: str) -> str | None:
    """The first of our errors in an executor's stack trace, as one line; None if there is none."""
    found = _IN_TEXT.search(text)
    return found.group(0).strip() if found else None


def error_from_text(text: str) -> GristmillError | None:
    """One of our errors that came as text from another process, as an exception again."""
    if (told := find_in_text(text)) is None:
        return None
    code, message = told[1:].split("] ", 1)
    return _BY_CODE[code](message)


class PanicError(Exception):
    pass


def as_exception(error: BaseException) -> Exception:
    """What was raised, for whoever has to answer for all that a library or a model raises.

    Raises:
        KeyboardInterrupt, GeneratorExit: As they are: nothing has failed.
    """
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        raise error
    if isinstance(error, Exception):
        return error
    panic = PanicError(f"{type(error).__name__}: {first_line(error)}")
    panic.__cause__ = error
    return panic


def first_line(error: BaseException) -> str:
    """What an exception of somebody else's tells, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class RowError:
    """Why one row has no answer. `message` holds no input text: it may be private, and is kept."""

    code: str
    message: str


MALFORMED = RowError("malformed", "the record is malformed, or a value does not fit its column's type")
EMPTY_INPUT = RowError("empty_input", "the text is null or blank")
INPUT_TOO_LONG = RowError("input_too_long", "the text has more tokens than max_tokens allows")
NOT_FINITE = RowError("not_finite", "the model's output holds NaN or infinity")
OUT_OF_MEMORY = RowError("out_of_memory", "the text does not fit into the device's memory, not even alone")
DEVICE_FAULT = RowError("device_fault", "the model fails on this text, or its process dies or hangs, even on it alone")
BAD_REQUEST = RowError("bad_request", "the request cannot be answered as it is meant; its line says why")
BAD_OPTIONS = RowError("bad_options", "the engine cannot write by the options of this row")
REFUSED = RowError("refused", "the model refused to answer")
CONTENT_FILTER = RowError("content_filter", "the provider's filter took the answer, or the text")
TOO_LONG_FOR_PROVIDER = RowError("input_too_long", "the text is longer than the hosted model reads")
NO_REPLY = RowError(
    "no_reply", "the provider gave no answer to the request that can be read; `gristmill retry` asks again"
)
BATCH_EXPIRED = RowError("expired", "the provider's batch ended before the request ran; `gristmill retry` asks again")
CANCELED = RowError("canceled", "the batch was canceled before the request ran; `gristmill retry` asks again")
EXPIRED = RowError("expired", "the deadline passed before the row was scored; `gristmill retry` scores it")
UNTRIED = frozenset({EXPIRED.code, CANCELED.code})  # nobody has tried these rows: no failures of the model's


def bad_template(error: BaseException) -> RowError:
    """A template that breaks on a row; the exception's type alone, since its text may quote the row."""
    return RowError("bad_template", f"the template raised {type(error).__name__}")


def bad_options(why: str) -> RowError:
    """Options of a row that are none, do not fit together or that the model cannot follow."""
    return RowError("bad_options", why)


def bad_chat_template(raised: str) -> RowError:
    """A model's chat template that breaks on a row; likewise."""
    return RowError("bad_template", f"the model's chat template raised {raised}")


def invalid_output(why: str) -> RowError:
    """An answer that is none of the choices, does not match its schema, or that no column holds."""
    return RowError("invalid_output", why)


def provider_error(why: str) -> RowError:
    """A request that the provider could not answer, for no fault of the row's; why holds nothing of the request."""
    return RowError("provider_error", f"the provider failed: {why}")


def bad_request(why: str) -> RowError:
    """A request that the provider does not take; likewise."""
    return RowError("bad_request", f"the provider does not take the request: {why}")


def unreadable(error: Exception) -> RowError:
    """A row that some library does not take; likewise."""
    return RowError("unreadable", f"the row cannot be read: {type(error).__name__}")
