"""What befalls calls on their way, whatever they ask."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from tests.provider.answers import asked_tokens, digest
from tests.provider.calls import Call, Refusal
from tests.provider.state import State

if TYPE_CHECKING:
    from tests.provider.server import Provider

_NAMED = frozenset(
    ("files", "batches", "messages", "content", "results", "cancel", "models", "chat", "completions", "embeddings")
)
_HTML = "<html><head><title>502 Bad Gateway</title></head></html>"


class HungUp(Exception):
    """The connection ends here."""


def kind_of(call: Call) -> str:
    """A call without its ids, as in "GET /batches/*"."""
    return f"{call.method} /{'/'.join(part if part in _NAMED else '*' for part in call.path)}"


def is_live(call: Call) -> bool:
    return call.method == "POST" and call.path in (("chat", "completions"), ("embeddings",), ("messages",))


def befall_before(provider: Provider, call: Call) -> None:
    """Keep a call waiting, hang up on it or refuse it, before anything is done."""
    state, faults = provider.state, provider.state.faults
    key, nth = _counted(state, call)
    posted = call.method == "POST"
    if posted and faults.happens("no_money", key, nth):
        raise _no_money(call)
    if faults.happens("forbidden", key, nth):
        raise Refusal(403, "You do not have access to this.")
    if faults.happens("slow", key, nth):
        time.sleep(faults.slow_s)
    names = ("restart", "dropped", "rate_limit", "server_error", *(["conflict"] if posted else []))
    fault = _not_too_often(state, key, faults.first(names, key, nth))
    if fault == "restart":
        provider.restart()
    if fault in ("restart", "dropped"):
        raise HungUp
    if fault == "rate_limit":
        raise too_many(state, call)
    if fault == "conflict":
        raise Refusal(409, "Another change is under way.")
    if fault == "server_error":
        statuses = (500, 502, 503, 529 if "anthropic-version" in call.headers else 500)
        status = statuses[int(faults.share("status", key, nth) * 4)]
        raise Refusal(status, _HTML if status == 502 else "The server had an error while it processed your request.")


def befall_after(provider: Provider, call: Call) -> None:
    """Hang up on a call whose work is done."""
    state = provider.state
    key = _key(call)
    if call.method == "POST":
        fault = state.faults.first(["lost_reply"], key, state.times_called[key])
        if _not_too_often(state, (key, "after"), fault):
            raise HungUp


def sizes_of(state: State, call: Call, size: int) -> tuple[int, int]:
    """The bytes that a download says it has, and those that it sends."""
    faults, key = state.faults, _key(call)
    nth = state.times_called[key]
    less = int(size * faults.share("length", key, nth))
    fault = _not_too_often(state, (key, "size"), faults.first(("truncated_download", "short_download"), key, nth))
    return {"truncated_download": (size, less), "short_download": (less, less)}.get(fault, (size, size))


@contextlib.contextmanager
def at_once(state: State, call: Call) -> Iterator[None]:
    """Count a live call, and refuse it where it is one too many."""
    with state.lock:
        state.live_calls += 1
        _check_rates(state, call)
        state.live_at_once += 1
        state.most_live_at_once = max(state.most_live_at_once, state.live_at_once)
    try:
        yield
    finally:
        with state.lock:
            state.live_at_once -= 1


def too_many(state: State, call: Call, wait_s: float | None = None) -> Refusal:
    """A 429 with the headers by which providers tell how long to wait."""
    wait_s = state.faults.retry_after_s if wait_s is None else wait_s
    told = formatdate(time.time() + wait_s, usegmt=True) if state.faults.retry_after_as_date else f"{wait_s:g}"
    if "anthropic-version" in call.headers:
        named = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-tokens-remaining": "0"}
    else:
        named = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{wait_s:g}s"}
    return Refusal(429, "Rate limit reached.", code="rate_limit_exceeded", headers={"Retry-After": told, **named})


def _check_rates(state: State, call: Call) -> None:
    limits, now, past = state.limits, time.time(), state.live_past
    tokens = asked_tokens(call.json())
    while past and past[0][0] <= now - limits.live_window_s:
        past.popleft()
    too_fast = len(past) >= limits.live_requests or sum(n for _, n in past) + tokens > limits.live_tokens
    if too_fast or state.live_at_once >= limits.live_at_once:
        state.refused_live += 1
        raise too_many(state, call, past[0][0] + limits.live_window_s - now if too_fast and past else None)
    past.append((now, tokens))


def _no_money(call: Call) -> Refusal:
    if "anthropic-version" not in call.headers:
        text = "You exceeded your current quota, please check your plan and billing details."
        return Refusal(429, text, kind="insufficient_quota", code="insufficient_quota")
    if is_live(call):
        return Refusal(400, "Your credit balance is too low to access the Anthropic API.")
    return Refusal(402, "There is an issue with your billing.")


def _counted(state: State, call: Call) -> tuple[Any, int]:
    key = _key(call)
    with state.lock:
        state.times_called[key] += 1
        return key, state.times_called[key]


def _key(call: Call) -> Any:
    """What is counted as the same call again."""
    return (kind_of(call), digest(call.json()).hex()) if is_live(call) else kind_of(call)


def _not_too_often(state: State, key: Any, fault: str) -> str:
    """The fault, unless as many came before it in a row as may."""
    with state.lock:
        if not fault or state.faults_a_row[key] >= state.faults.at_most_a_row:
            state.faults_a_row[key] = 0
            return ""
        state.faults_a_row[key] += 1
        return fault
