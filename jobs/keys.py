"""The key of a hosted model's provider, on the driver: out of a variable, or out of Databricks' secrets."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from jobs.errors import EndpointError
from udfs.errors import ProviderError
from udfs.hosted.endpoint import Endpoint
from udfs.hosted.keys import check_key, read_key


def find_key(endpoint: Endpoint) -> str | None:
    """The key that an endpoint names; None where none is sent.

    Raises:
        EndpointError: It is not there, or is none.
    """
    try:
        if endpoint.api_key_secret is None:
            return read_key(endpoint)
        return check_key(_read_secret(endpoint.api_key_secret), f"the secret {endpoint.api_key_secret}")
    except ProviderError as error:
        raise EndpointError(error.message) from error


@functools.lru_cache(maxsize=4)
def _read_secret(name: str) -> str:
    scope, _, key = name.partition("/")
    dbutils = _find_dbutils()
    try:
        return str(dbutils.secrets.get(scope=scope, key=key)).strip()
    except Exception as error:  # noqa: BLE001 - Java's errors and Databricks' own, which none of our imports names
        told = f"Databricks gives no secret {name} ({type(error).__name__})"
        raise EndpointError(f"{told}; look at score.endpoint.api_key_secret, and at who may read it") from None


def _find_dbutils() -> Any:
    """Databricks' utilities, of a notebook, a job or Databricks Connect."""
    try:
        return importlib.import_module("databricks.sdk.runtime").dbutils
    except ImportError:
        raise EndpointError(
            "score.endpoint.api_key_secret is for Databricks, which this is not; name a variable as "
            "score.endpoint.api_key_env"
        ) from None
