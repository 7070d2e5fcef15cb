"""The key by which a provider knows us: read where it is needed, held by nobody but the client that sends it."""

from __future__ import annotations

import os
import re

from udfs.errors import ProviderError
from udfs.hosted.endpoint import Endpoint

HIDDEN = "***"
_KEY = re.compile(r"[!-~]+")  # what a header takes

_LIKE_A_KEY = re.compile(r"^(?=.*[a-z])(?=.*\d).{20,}$")  # which somebody has written where its name belongs


def read_key(endpoint: Endpoint) -> str | None:
    """The key out of the variable that the endpoint names; None where no key is sent.

    Raises:
        ProviderError: It is not there, or is none.
    """
    if endpoint.key_env is None:
        return None
    found = os.environ.get(endpoint.key_env, "").strip()
    if not found:
        where = "here" if endpoint.in_batches else "where the executors run"
        named = "that endpoint.api_key_env names" if _LIKE_A_KEY.search(endpoint.key_env) else endpoint.key_env
        raise ProviderError(
            f"the environment variable {named} is to hold the key of {endpoint.url}, and is not set {where}"
        )
    return check_key(found, endpoint.key_env)


def check_key(found: str, name: str) -> str:
    """Refuse what no header takes, since an error about a header quotes it.

    Args:
        found: The key.
        name: Of the variable or the secret that holds it.

    Raises:
        ProviderError: It holds spaces, line breaks or letters that no key has.
    """
    if not _KEY.fullmatch(found):
        raise ProviderError(f"{name} holds spaces, line breaks or other letters that no key has")
    return found


def without_key(told: str, key: str | None) -> str:
    """What a provider has told, without the key that it may quote."""
    return told.replace(key, HIDDEN) if key else told
