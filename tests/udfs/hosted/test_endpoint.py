"""Where a hosted model is asked: which addresses are taken, and where keys go."""

from __future__ import annotations

import pytest

from udfs.errors import ProviderError, SpecError
from udfs.hosted.endpoint import Endpoint, Price
from udfs.hosted.keys import read_key


@pytest.mark.parametrize(
    "url",
    ["https://api.openai.com/v1/", "https://eu.example.com:8443/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000"],
)
def test_https_and_loopback_are_taken(url: str) -> None:
    assert Endpoint(engine="openai-compatible", base_url=url).url == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.com/v1", "take https"),
        ("http://127.0.0.1.example.com", "take https"),
        ("http://localhost.example.com", "take https"),
        ("ftp://example.com", "no https address"),
        ("https://example.com:port/v1", "no https address"),
        ("https://example.com:70000", "no https address"),
        ("https://[::1", "no https address"),
        ("https://exa mple.com", "no https address"),
        ("https://exam\nple.com", "no https address"),
        ("api.openai.com", "no https address"),
        ("https://user:secret@example.com", "a user"),
        ("https://example.com/v1?key=secret", "a query"),
    ],
)
def test_other_addresses_are_refused_and_their_secrets_not_told(url: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        Endpoint(engine="openai-compatible", base_url=url)
    assert "secret" not in str(caught.value)


def test_a_provider_s_own_key_goes_to_no_other_address() -> None:
    with pytest.raises(SpecError, match="OPENAI_API_KEY goes to its provider alone"):
        Endpoint(engine="openai-batch", base_url="https://proxy.example.com/v1")
    named = Endpoint(engine="openai-batch", base_url="https://proxy.example.com/v1", api_key_env="PROXY_KEY")
    assert named.key_env == "PROXY_KEY"
    assert Endpoint(engine="openai-batch", base_url="https://api.openai.com/v1").key_env == "OPENAI_API_KEY"
    assert Endpoint(engine="anthropic-batch").key_env == "ANTHROPIC_API_KEY"


def test_a_server_of_one_s_own_gets_no_key_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    endpoint = Endpoint(engine="openai-compatible", base_url="http://127.0.0.1:8000/v1")
    assert endpoint.key_env is None
    assert read_key(endpoint) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"api_key_env": "sk-live-123"}, "never the key"),
        ({"api_key_secret": "sk-live-123"}, "never the key"),
        ({"api_key_secret": "a/b", "api_key_env": "K"}, "give one"),
        ({"body": {"model": "other"}}, "endpoint.body holds model"),
        ({"max_in_flight_batches": 0}, "endpoint.max_in_flight_batches is 0"),
        ({"price": Price(batch_discount=50)}, "endpoint.price.batch_discount is 50"),
    ],
)
def test_what_cannot_be_meant_is_told_by_its_key(given: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        Endpoint(engine="openai-batch", **given)  # type: ignore[arg-type]
    assert "sk-live" not in str(caught.value)


def test_a_secret_of_databricks_is_for_what_the_driver_asks() -> None:
    with pytest.raises(SpecError, match="scope/key"):
        Endpoint(engine="openai-compatible", base_url="http://127.0.0.1:1", api_key_secret="scope/key")


@pytest.mark.parametrize("held", ["", "  ", "sk-a b", "sk-a\nX-Evil: 1", "clé"])
def test_a_key_that_is_none_is_told_by_its_name_alone(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", held)
    with pytest.raises(ProviderError, match="SOME_KEY") as caught:
        read_key(Endpoint(engine="openai-batch", api_key_env="SOME_KEY"))
    assert not held.strip() or held.strip() not in str(caught.value)


def test_what_decides_an_answer_is_neither_a_key_nor_a_limit() -> None:
    told = Endpoint(engine="openai-batch", poll_s=1, price=Price(input=1), body={"reasoning_effort": "low"})
    assert told.decides_answers() == {
        "engine": "openai-batch",
        "base_url": "https://api.openai.com/v1",
        "body": {"reasoning_effort": "low"},
    }
