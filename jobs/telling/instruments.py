"""What is measured of a run while it goes: one list, for whatever way it is told.

An instrument that nothing is known of gives no value: on a cluster those of engines, without a price of files the
seconds that are left. None is counted by row; all come of one look every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from jobs.telling.live import Live

Values = Iterable[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class Instrument:
    """One thing that is measured.

    Args:
        name: With dots, as OpenTelemetry has it.
        kind: A `counter` only grows while a run lasts; a `gauge` is what holds now.
        unit: As UCUM writes it; empty for plain numbers.
        doc: What it means.
        read: Its values, with the labels of each; none where nothing is known.
        labels: The names of these.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    doc: str
    read: Callable[[Live], Values]
    labels: tuple[str, ...] = ()


def _plain(value: float | None) -> Values:
    return [] if value is None else [({}, float(value))]


def _rows(live: Live) -> Values:
    return [({"outcome": name}, float(getattr(live.counts, name))) for name in ("succeeded", "failed")]


def _failed(live: Live) -> Values:
    return [({"code": code}, float(count)) for code, count in live.counts.failed_by_code.items()]


def _tokens(live: Live) -> Values:
    counts = live.counts
    computed = counts.input_tokens + counts.output_tokens - counts.cached_tokens
    told = {
        "input": counts.input_tokens,
        "output": counts.output_tokens,
        "cached": counts.cached_tokens,
        "padding": max(0, counts.padded_tokens - computed),
    }
    return [({"kind": kind}, float(count)) for kind, count in told.items()]


def _rate(amount: int, live: Live) -> Values:
    return _plain(amount / live.scoring_s if live.scoring_s else None)


def _of_engines(name: str) -> Callable[[Live], Values]:
    return lambda live: _plain(None if live.engines is None else getattr(live.engines, name))


def _batch_size(live: Live) -> Values:
    return _plain(live.engines.batched / live.engines.batches if live.engines and live.engines.batches else None)


def _padding(live: Live) -> Values:
    engines = live.engines
    return _plain(1 - engines.tokens / engines.padded_tokens if engines and engines.padded_tokens else None)


def _budgets(live: Live) -> Values:
    return [({"engine": name}, float(now)) for name, now in (live.engines.budget if live.engines else {}).items()]


def _gpu(live: Live) -> Values:
    devices = live.engines.gpu if live.engines else {}
    return [({"engine": e, "kind": kind}, float(size)) for e, sizes in devices.items() for kind, size in sizes.items()]


def _provider(live: Live) -> Values:
    told = live.provider
    return [({"state": s}, float(getattr(told, s))) for s in ("in_flight", "ended")] if told else []


def _info(live: Live) -> Values:
    about = {name: str(getattr(live, name)) for name in ("run_id", "command", "status", "task", "model")}
    return [(about, 1.0)]


def _as_s(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument(
        "gristmill.run",
        "gauge",
        "",
        "1, with what runs and how it stands.",
        _info,
        ("run_id", "command", "status", "task", "model"),
    ),
    Instrument(
        "gristmill.run.start", "gauge", "s", "When the run began, since 1970.", lambda r: _plain(_as_s(r.started_at))
    ),
    Instrument(
        "gristmill.run.look", "gauge", "s", "When this was looked at, since 1970.", lambda r: _plain(_as_s(r.told_at))
    ),
    Instrument("gristmill.rows", "counter", "", "Rows committed, by outcome.", _rows, ("outcome",)),
    Instrument("gristmill.failed_rows", "counter", "", "Failed rows committed, by error code.", _failed, ("code",)),
    Instrument(
        "gristmill.scored_rows",
        "counter",
        "",
        "Rows committed that went through the model; the others repeat one, or failed.",
        lambda r: _plain(r.counts.scored_rows),
    ),
    Instrument(
        "gristmill.tokens",
        "counter",
        "",
        "Tokens of rows committed: read, written, of shared prefixes, of padding.",
        _tokens,
        ("kind",),
    ),
    Instrument("gristmill.increments", "counter", "", "Increments committed.", lambda r: _plain(r.increments)),
    Instrument(
        "gristmill.rows.rate",
        "gauge",
        "1/s",
        "Rows a second, over the increments committed.",
        lambda r: _rate(r.counts.rows, r),
    ),
    Instrument(
        "gristmill.tokens.rate",
        "gauge",
        "1/s",
        "Input tokens a second, over the increments committed.",
        lambda r: _rate(r.counts.input_tokens, r),
    ),
    Instrument(
        "gristmill.increment.rows",
        "gauge",
        "",
        "Rows of the increment that is scored now.",
        lambda r: _plain(r.increment_rows),
    ),
    Instrument(
        "gristmill.increment.done",
        "gauge",
        "",
        "Share of its Spark tasks that have ended.",
        lambda r: _plain(r.increment_done),
    ),
    Instrument(
        "gristmill.left.bytes",
        "gauge",
        "By",
        "Input files that are in no committed increment.",
        lambda r: _plain(r.left_bytes),
    ),
    Instrument(
        "gristmill.left.time",
        "gauge",
        "s",
        "Until all is scored, at the rate so far.",
        lambda r: _plain(r.seconds_left),
    ),
    Instrument(
        "gristmill.provider.batches",
        "gauge",
        "",
        "Of a batch engine: a provider's batches of this increment.",
        _provider,
        ("state",),
    ),
    Instrument("gristmill.engines", "gauge", "", "Engines that are there.", _of_engines("running")),
    Instrument("gristmill.engine.starts", "counter", "", "Engines started.", _of_engines("starts")),
    Instrument(
        "gristmill.engine.deaths", "counter", "", "Engines that died, and were replaced.", _of_engines("deaths")
    ),
    Instrument("gristmill.engine.items", "counter", "", "Items that engines are done with.", _of_engines("items")),
    Instrument("gristmill.engine.failed_items", "counter", "", "Items that failed for good.", _of_engines("failed")),
    Instrument("gristmill.engine.tokens", "counter", "", "Their tokens.", _of_engines("tokens")),
    Instrument(
        "gristmill.engine.tokens.rate",
        "gauge",
        "1/s",
        "Tokens a second, since the look before.",
        _of_engines("tokens_per_s"),
    ),
    Instrument(
        "gristmill.engine.batches",
        "counter",
        "",
        "Micro-batches, or steps of a model that writes.",
        _of_engines("batches"),
    ),
    Instrument("gristmill.engine.batched_items", "counter", "", "Items in them.", _of_engines("batched")),
    Instrument("gristmill.engine.batch_size", "gauge", "", "Items of a micro-batch or step, on average.", _batch_size),
    Instrument(
        "gristmill.engine.padding", "gauge", "", "Share of what went through the model that was padding.", _padding
    ),
    Instrument(
        "gristmill.engine.queue.items",
        "gauge",
        "",
        "Items that no micro-batch holds yet.",
        _of_engines("waiting_items"),
    ),
    Instrument("gristmill.engine.queue.tokens", "gauge", "", "Their tokens.", _of_engines("waiting_tokens")),
    Instrument(
        "gristmill.engine.budget",
        "gauge",
        "",
        "What a micro-batch holds now: tokens, or sequences of a model that writes.",
        _budgets,
        ("engine",),
    ),
    Instrument(
        "gristmill.gpu.memory",
        "gauge",
        "By",
        "A GPU's memory: used by anybody, reserved by the engine, in total.",
        _gpu,
        ("engine", "kind"),
    ),
)
