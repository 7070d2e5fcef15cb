"""The official clients, so that a key goes to its provider alone: no redirect, and no other address, is followed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from udfs.errors import ProviderError
from udfs.hosted.endpoint import Endpoint

_CONNECT_S = 15.0
_NO_KEY = "none"  # the client wants one; a server that is open reads none
NO_MONEY = {"insufficient_quota", "billing_not_active", "billing_hard_limit_reached", "billing_error"}
NO_MODEL = {"model_not_found"}
_PACKAGES = {"openai-batch": "openai", "openai-compatible": "openai", "anthropic-batch": "anthropic"}


def check_installed(endpoint: Endpoint) -> None:
    """Refuse an engine whose client is not installed here.

    Raises:
        ProviderError: It is not.
    """
    package = _PACKAGES[endpoint.engine]
    if missing := [name for name in (package, "tenacity") if importlib.util.find_spec(name) is None]:
        raise ProviderError(
            f"engine {endpoint.engine} needs {' and '.join(missing)}, not installed here; "
            f"pip install 'gristmill[{package}]'"
        )


def make_client(endpoint: Endpoint, key: str | None, *, connections: int = 16, max_retries: int = 0) -> Any:
    """An `openai.OpenAI` or an `anthropic.Anthropic`.

    What it raises of an address that it was led to is a connection error, whose cause `cause_of` finds.

    Args:
        endpoint: Where to, and how patiently.
        key: None for a server that asks for none.
        connections: Open at once, at most.
        max_retries: Of the client's own.

    Raises:
        ProviderError: It is not installed.
    """
    check_installed(endpoint)
    sdk: Any = importlib.import_module(_PACKAGES[endpoint.engine])
    timeout = sdk.Timeout(endpoint.timeout_s, connect=min(_CONNECT_S, endpoint.timeout_s))
    http = sdk.DefaultHttpxClient(
        follow_redirects=False,
        timeout=timeout,
        limits=type(sdk.DEFAULT_CONNECTION_LIMITS)(max_connections=connections, max_keepalive_connections=connections),
        event_hooks={"request": [_stays_at(endpoint.url)]},
        trust_env=endpoint.url.startswith("https://"),  # without TLS, a proxy of the environment would read the key
    )
    common = {"base_url": endpoint.url, "max_retries": max_retries, "timeout": timeout, "http_client": http}
    if endpoint.engine == "anthropic-batch":
        return sdk.Anthropic(api_key=key, **common)
    headers: dict[str, Any] = {}
    if endpoint.engine == "openai-compatible" and not endpoint.organization:  # else those of OPENAI_ORG_ID go along
        headers |= {"OpenAI-Organization": sdk.Omit(), "OpenAI-Project": sdk.Omit()}
    return sdk.OpenAI(api_key=key or _NO_KEY, organization=endpoint.organization, default_headers=headers, **common)


def _stays_at(url: str) -> Callable[[Any], None]:
    """Refuses calls to other places than a base URL's."""

    def check(request: Any) -> None:
        to = request.url
        at = type(to)(url)
        if (to.scheme, to.host, to.port) != (at.scheme, at.host, at.port):
            raise ProviderError(
                f"{url} leads to {to.scheme}://{to.host}, another place, where the key is not sent; if it is right, "
                "write it as score.endpoint.base_url"
            )

    return check


def cause_of(error: BaseException) -> ProviderError | None:
    """What of ours lies behind an error of a client."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ProviderError):
            return found
        found = found.__cause__ or found.__context__
    return None


def explain_status(status: int, body: Any, endpoint: Endpoint, model: str) -> ProviderError | None:
    """What is wrong with the world where a call failed; None where only this call is to blame.

    Args:
        status: As HTTP has it.
        body: The error's JSON, as the client has parsed it; its words may quote the row, and are not told.
        endpoint: Who was called.
        model: Which was asked for.
    """
    held = body.get("error", body) if isinstance(body, dict) else None
    told = held if isinstance(held, dict) else {}
    words = {told.get("code"), told.get("type")}
    key = f"score.endpoint.{'api_key_secret' if endpoint.api_key_secret else 'api_key_env'}"
    if 300 <= status < 400:
        return ProviderError(
            f"{endpoint.url} sends calls on to another address (HTTP {status}), where the key is not sent; write "
            "that address as score.endpoint.base_url"
        )
    if words & NO_MONEY or status == 402 or "credit balance" in str(told.get("message")).lower():
        return ProviderError(
            f"{endpoint.url} says that no money, or no quota, is left for this key (HTTP {status}); add some, and "
            "run the same command again"
        )
    if status == 401:
        held_by = endpoint.key_env or endpoint.api_key_secret
        which = f"the key in {held_by}" if held_by else f"calls without a key; name one as {key}"
        return ProviderError(f"{endpoint.url} does not take {which} (HTTP 401)")
    if status == 403:
        return ProviderError(f"{endpoint.url} does not let this key use model {model!r} (HTTP 403)")
    if status == 404 or words & NO_MODEL:
        return ProviderError(
            f"{endpoint.url} knows no model {model!r} (HTTP {status}); look at score.model and score.endpoint.base_url"
        )
    return None
