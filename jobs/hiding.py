"""Secrets of a job's settings, passwords and keys among Spark's options, and the key of a hosted model's provider.

What a run leaves and says is without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
from collections.abc import Iterator
from typing import Any

from jobs.errors import JobError
from jobs.keys import find_key
from jobs.settings import Settings

_SECRET = re.compile(
    r"(pass(word|phrase|wd)?|pwd|secret|token|credentials?|authorization|(secret|access|account|api|private|shared)[._-]?key)$"
    r"|[._-](secret|token|(secret|access|account)[._-]?key|sas)[._-]",
    re.I,
)
_NO_SECRET = re.compile(r"(provider|enabled|class|type|file|path|url|uri|id)$", re.I)
_INSIDE = re.compile(
    r"((?:^|[?;&,\s])(?:password|pwd|secret|token|sig|x-amz-signature|[a-z]*key)=)([^;&,\s]+)"
    r"|(?<=://)([^/@\s:]+:[^/\s]+)(?=@)|(?<=:thin:)([^/@\s]+/[^@\s]+)(?=@)",
    re.I,
)
_LEAST = 3  # shorter values are in every text
_MASK = "***"


def is_secret(name: str) -> bool:
    """An option of this name holds what nobody is to read."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


def seal(value: Any, key: str) -> str:
    """What tells a value from others, to whoever has the key, and tells nobody what it is."""
    return hmac.new(bytes.fromhex(key), str(value).encode(), hashlib.sha256).hexdigest()


def without_secrets(text: str) -> str:
    """A URL, or another text, without the passwords that stand in it."""
    return _INSIDE.sub(lambda found: f"{found[1]}{_MASK}" if found[1] else _MASK, text)


def hide(text: str, settings: Settings) -> str:
    """A text for people or a log, without the secrets of a job's settings."""
    for secret in sorted(_find_secrets(settings), key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return without_secrets(text)


@contextlib.contextmanager
def hiding(settings: Settings) -> Iterator[None]:
    """Errors of the body tell no secret of the settings, whatever Spark says."""
    try:
        yield
    except JobError as error:
        error.args = (hide(str(error), settings),)
        raise


def _find_secrets(settings: Settings) -> set[str]:
    told = {**settings.spark.conf, **settings.input.options}
    whole = {str(value) for name, value in told.items() if is_secret(name) and not isinstance(value, bool)}
    if (endpoint := settings.endpoint()) is not None:
        with contextlib.suppress(JobError):
            whole |= {key for key in [find_key(endpoint)] if key}
    inside = {found[2] or found[3] or found[4] for value in told.values() for found in _INSIDE.finditer(str(value))}
    return {secret for secret in whole | inside if len(secret) >= _LEAST}
