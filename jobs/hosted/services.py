"""The provider of a job's batches, by its official client."""

from __future__ import annotations

from jobs.errors import EndpointError
from jobs.hosted.anthropic import AnthropicBatches
from jobs.hosted.openai import OpenAIBatches
from jobs.hosted.provider import Bounds, Provider
from udfs.errors import ProviderError
from udfs.hosted.clients import make_client
from udfs.hosted.endpoint import Endpoint

_RETRIES = 2  # of calls that may be made twice; one that makes a batch is looked up before it is made again


def open_provider(endpoint: Endpoint, key: str | None, *, model: str, path: str) -> Provider:
    """A provider that can be asked.

    Args:
        endpoint: Where it is.
        key: It stays in the client.
        model: Its name there, for messages.
        path: Of OpenAI, what all requests are for, as `/chat/completions`.

    Raises:
        EndpointError: Its official client is not installed.
    """
    try:
        client = make_client(endpoint, key, max_retries=_RETRIES)
    except ProviderError as error:
        raise EndpointError(error.message) from error
    if endpoint.engine == "openai-batch":
        return OpenAIBatches(client, endpoint, url=f"/v1{path}", model=model)
    return AnthropicBatches(client, endpoint, model=model)


def bounds_of(endpoint: Endpoint) -> Bounds:
    """What a batch of a provider's may hold."""
    return (OpenAIBatches if endpoint.engine == "openai-batch" else AnthropicBatches).bounds
