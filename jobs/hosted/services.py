"""The provider of a job's batches, by its official client."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jobs.errors import EndpointError
from jobs.hosted.anthropic import AnthropicBatches
from jobs.hosted.clients import RETRIES
from jobs.hosted.openai import OpenAIBatches
from jobs.hosted.provider import Provider

if TYPE_CHECKING:
    from udfs.hosted.endpoint import Endpoint

_SDK = {"openai-batch": ("openai", "OpenAI"), "anthropic-batch": ("anthropic", "Anthropic")}


def open_provider(endpoint: Endpoint, key: str, *, model: str, path: str) -> Provider:
    """A provider that can be asked.

    Args:
        endpoint: Where it is.
        key: It stays in the client.
        model: Its name there, for messages.
        path: Of OpenAI, what all requests are for, as `/chat/completions`.

    Raises:
        EndpointError: Its official client is not installed.
    """
    name, cls = _SDK[endpoint.engine]
    sdk = _import(name, endpoint.engine)
    about: dict[str, Any] = {"organization": endpoint.organization} if name == "openai" else {}
    client = getattr(sdk, cls)(
        api_key=key,
        base_url=endpoint.url,
        max_retries=RETRIES,
        timeout=endpoint.timeout_s,
        http_client=sdk.DefaultHttpxClient(follow_redirects=False),  # to another host, and the key with it
        **about,
    )
    told = {"model": model, "base_url": endpoint.url, "key_from": endpoint.key_env or str(endpoint.api_key_secret)}
    if name == "openai":
        return OpenAIBatches(client, url=f"/v1{path}", **told)
    return AnthropicBatches(client, **told)


def _import(name: str, engine: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise EndpointError(
            f"score.engine {engine} needs the official client of its provider; pip install 'gristmill[{name}]'"
        ) from error
