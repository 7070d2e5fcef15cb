"""A provider's key, by the name of the place that holds it; it goes into the client and nowhere else."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from jobs.errors import EndpointError
from udfs.hosted.endpoint import Endpoint


def read_key(endpoint: Endpoint) -> str:
    """The key of an endpoint.

    Raises:
        EndpointError: There is none where the settings say it is.
    """
    if endpoint.api_key_secret:
        return _read_secret(endpoint.api_key_secret)
    name = str(endpoint.key_env)
    if key := os.environ.get(name, "").strip():
        return key
    raise EndpointError(f"the environment variable {name} is not set; put the provider's key there (score.endpoint)")


def _read_secret(place: str) -> str:
    """A secret of Databricks, named as `scope/key`."""
    scope, _, name = place.partition("/")
    try:
        dbutils: Any = import_module("databricks.sdk.runtime").dbutils
    except Exception as error:
        raise EndpointError(
            "score.endpoint.api_key_secret is read on Databricks alone; elsewhere name a variable as api_key_env"
        ) from error
    try:
        return str(dbutils.secrets.get(scope=scope, key=name))
    except Exception as error:
        told = type(error).__name__
        raise EndpointError(f"Databricks gives no secret {place} ({told}); see score.endpoint") from error
