"""Spark's Java process has ended while it was needed: one error tells so, whatever Python made of it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from jobs.errors import LOST_ERRORS, Interrupted, SparkGone

_DYING_S = 5.0  # between a connection that breaks and the end of its process
_POLL_S = 0.1
_SETTLE_S = 0.5  # other threads find out too, and what they say belongs into the log


@contextlib.contextmanager
def telling_of_loss(then: str = "") -> Iterator[None]:
    """Raise one error for all that the body may raise once Spark's process is gone.

    Args:
        then: What to do about it, after the cause.

    Raises:
        SparkGone: It is.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        # Whatever is put in order on the way out fails too, and hides who knew what stays.
        known = next((cause for cause in _causes(error) if isinstance(cause, SparkGone)), None)
        of_connection = any(isinstance(cause, LOST_ERRORS) for cause in _causes(error))
        if known is None and not is_spark_gone(patience_s=_DYING_S if of_connection else 0):
            raise
        if known is None:
            time.sleep(_SETTLE_S)
        raise SparkGone((known and known.then) or then) from error


def is_spark_gone(*, patience_s: float = 0) -> bool:
    """Whether Java was started by, or for, this process and listens no more; Spark Connect has none.

    Args:
        patience_s: How long it may take to end.
    """
    until = time.monotonic() + patience_s
    while (gone := _listens() is False) is False and time.monotonic() < until:
        time.sleep(_POLL_S)
    return gone


def _listens() -> bool | None:
    """None where there is no Java."""
    try:
        from pyspark import SparkContext
    except ImportError:  # a pure Spark Connect client
        return None
    if (gateway := SparkContext._gateway) is None:
        return None
    at = gateway.gateway_parameters
    try:
        socket.create_connection((at.address, at.port), timeout=1).close()
    except ConnectionError:
        return False
    except OSError:  # it is too busy to answer
        return True
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what it was raised for or after."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
