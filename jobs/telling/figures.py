"""Figures of what an output holds: drawn by matplotlib as SVG that a page can hold and that goes with its colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import UserError
from jobs.output.committed import Increment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that are nobody's: the page's own take their place, by light and by dark.
_INK, _MUTED, _GRID = "#010203", "#010204", "#010205"
SERIES = ("#010210", "#010211", "#010212", "#010213")
_GOOD, _BAD, _TOKENS, _OTHER = SERIES
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "grid",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)},
}
_SIZE = (4.3, 2.7)  # inches: 310 points wide, in which 10 points can be read on a phone
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gristmill",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}
_BARS = 60  # more of them are a line
_NAMES, _TICKS = 6, 10  # bars that have a name each, or a tick
_USES = re.compile(r"(?:^|url\()#(?!0102)([\w.-]+)")  # of another element by its id
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Args:
        name: Its id.
        title: Above it.
        told: The same in words, for whoever does not see it.
        svg: The picture.
    """

    name: str
    title: str
    told: str
    svg: str


def draw_rows(increments: Sequence[Increment]) -> Drawn:
    """Rows by outcome over time: an increment's rows come evenly while it is scored."""
    times, succeeded, failed = list[float](), [0], [0]
    for made in sorted(increments, key=lambda i: i.committed_at):
        mended = sum(made.mended.values())
        good, bad = (mended, -mended) if made.is_retry else (made.counts.succeeded, made.counts.failed)
        end = datetime.fromisoformat(made.committed_at).timestamp()
        begin = max(end - made.seconds, times[-1] if times else 0.0)
        times += [begin, end]
        succeeded += [succeeded[-1]] * bool(len(times) > 2) + [succeeded[-1] + good]
        failed += [failed[-1]] * bool(len(times) > 2) + [failed[-1] + bad]

    def draw(axes: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.ticker import MaxNLocator

        at = (1000 * np.array(times)).astype("datetime64[ms]")
        axes.stackplot(at, succeeded, failed, colors=[_GOOD, _BAD], labels=["succeeded", "failed"], linewidth=0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        locator = AutoDateLocator(minticks=2, maxticks=5)  # fewer leave spans for which it has no steps
        axes.xaxis.set_major_locator(locator)
        formats = ["%Y", "%b", "%b %d", "%H:%M", "%H:%M", "%H:%M:%S"]
        told = ConciseDateFormatter(locator, formats=formats, zero_formats=formats, show_offset=False)
        axes.xaxis.set_major_formatter(told)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", fontsize=10)

    first, last = (f"{datetime.fromtimestamp(times[i], UTC):%Y-%m-%d %H:%M}" for i in (0, -1))
    told = f"From {first} to {last} UTC rows grew to {succeeded[-1]:,} succeeded and {failed[-1]:,} failed ones."
    return _draw("rows", "Rows by outcome over time (UTC)", told, draw)


def draw_rates(increments: Sequence[Increment], *, of: str) -> Drawn:
    """`rows` or `tokens` a second of each increment."""
    amounts = [i.counts.rows if of == "rows" else i.counts.input_tokens for i in increments]
    rates = [amount / i.seconds if i.seconds else 0.0 for amount, i in zip(amounts, increments, strict=True)]
    total = sum(amounts) / max(1e-9, sum(i.seconds for i in increments))
    told = f"The one increment made {tell_rate(total)} {of} a second."
    if len(rates) > 1:
        span = f"the slowest made {tell_rate(min(rates))} and the fastest {tell_rate(max(rates))} {of} a second"
        told = f"Of {len(rates):,} increments {span}; all together {tell_rate(total)}."
    colour = _GOOD if of == "rows" else _TOKENS
    return _draw(f"{of}-rate", f"{of.capitalize()} a second, by increment", told, _series(rates, colour))


def draw_padding(increments: Sequence[Increment]) -> Drawn:
    """The share of what went through the model that was padding, by increment."""
    shares = [100 * share_padded(i) for i in increments]
    told = f"Padding was between {min(shares):.1f} % and {max(shares):.1f} % of the tokens of an increment."
    return _draw("padding", "Padding, % of the tokens that were computed", told, _series(shares, _OTHER, top=1.0))


def share_padded(increment: Increment) -> float:
    """Of the tokens that an increment's model computed."""
    counts = increment.counts
    computed = counts.input_tokens + counts.output_tokens - counts.cached_tokens
    return max(0.0, 1 - computed / counts.padded_tokens) if counts.padded_tokens else 0.0


def draw_lengths(tokens: np.ndarray, *, most: int) -> Drawn:
    """How long rows are, in tokens.

    Args:
        tokens: Of each row, more than none.
        most: Rows that there are.
    """
    shown = tokens if len(np.unique(tokens)) > 1 else np.append(tokens, tokens[0] + 1)
    edges = np.unique(np.linspace(shown.min(), shown.max() + 1, 31).astype(int))
    counts, _ = np.histogram(tokens, edges)
    median, late = np.percentile(tokens, [50, 95])

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=_GOOD)
        axes.set_ylim(0, 1.2 * counts.max())
        axes.axvline(median, color=_INK, linewidth=1)
        axes.annotate(f"median {median:,.0f}", (median, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                      textcoords="offset points", fontsize=10)  # fmt: skip
        axes.set_xlabel("tokens of a row")

    of = f"{len(tokens):,} rows" if len(tokens) >= most else f"{len(tokens):,} of {most:,} rows"
    told = (
        f"Of {of}: the median has {median:,.0f} tokens, one in twenty {late:,.0f} or more, the longest "
        f"{tokens.max():,}."
    )
    return _draw("lengths", f"Length of rows ({of})", told, draw)


def draw_failures(by_code: Mapping[str, int]) -> Drawn:
    """Failed rows by error code."""
    ranked = _ranked(by_code)[:_NAMES]
    more = f", and {len(by_code) - len(ranked):,} other codes." if len(by_code) > len(ranked) else "."
    told = "Failed rows: " + ", ".join(f"{count:,} {code}" for code, count in ranked) + more
    return _draw("failures", "Failed rows by code", told, _named_bars(by_code, _BAD))


def draw_engines(by_engine: Mapping[str, int]) -> Drawn:
    """Rows that each engine scored."""
    total = max(1, sum(by_engine.values()))
    ranked = _ranked(by_engine)[:_NAMES]
    told = "Rows by engine: " + ", ".join(f"{name} {rows / total:.0%}" for name, rows in ranked)
    more = f", and {len(by_engine) - len(ranked):,} others." if len(by_engine) > len(ranked) else "."
    return _draw("engines", "Rows by engine", told + more, _named_bars(by_engine, _GOOD))


def tell_rate(rate: float) -> str:
    """So much a second, with as many digits as tell something."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _series(values: Sequence[float], colour: str, *, top: float = 0.0) -> Callable[[Axes], None]:
    """Values by increment: bars, or a line where they are many."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        if len(values) <= _BARS:
            axes.bar(range(len(values)), values, width=0.7, color=colour)
            axes.set_xlim(-0.6, max(len(values), 4) - 0.4)
        else:
            axes.stairs(values, range(len(values) + 1), fill=True, color=colour)
        axes.set_ylim(0, max(top, 1.08 * max(values)) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(values) <= _TICKS:
            axes.set_xticks(range(len(values)))
        axes.set_xlabel("increment, in the order of their commits")

    return draw


def _named_bars(counts: Mapping[str, int], colour: str) -> Callable[[Axes], None]:
    ranked = _ranked(counts)
    shown = ranked[:_NAMES]
    if rest := sum(count for _, count in ranked[_NAMES:]):
        shown.append((f"{len(ranked) - _NAMES:,} others", rest))

    def draw(axes: Axes) -> None:
        places = -np.arange(len(shown))
        axes.barh(places, [count for _, count in shown], height=0.35, color=colour)
        axes.set_ylim(-max(len(shown), 4) + 0.6, 0.75)
        axes.set_axis_off()
        for place, (name, count) in zip(places, shown, strict=True):
            axes.annotate(f"{shorten(name)}: {count:,}", (0, place + 0.18), xytext=(0, 2), textcoords="offset points",
                          fontsize=10, va="bottom")  # fmt: skip

    return draw


def shorten(text: str, most: int = 44) -> str:
    """A name that is not too long for its place."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def _draw(name: str, title: str, told: str, draw: Callable[[Axes], None]) -> Drawn:
    figure, rc_context = _new_figure()
    with rc_context(_STYLE):
        made = figure(figsize=_SIZE, layout="constrained")
        made.patch.set_visible(False)
        axes = made.add_subplot()
        axes.patch.set_visible(False)
        axes.tick_params(labelsize=10, length=0)
        draw(axes)
        axes.yaxis.set_major_formatter(_shorten_number)
        drawn = io.StringIO()
        made.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return Drawn(name, title, told, _for_page(drawn.getvalue(), name, title, told))


def _new_figure() -> tuple[Any, Any]:
    """What figures are made by.

    Raises:
        UserError: matplotlib is not there.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the page's figures need matplotlib: pip install 'gristmill[report]'") from error
    return Figure, rc_context


def _shorten_number(value: float, _: object = None) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _for_page(svg: str, name: str, title: str, told: str) -> str:
    """A picture with its words, the page's colours, and ids that are its own."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    for found in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(found)
    used = {own for e in root.iter() for value in e.attrib.values() for own in _USES.findall(value)}
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own is not None and own in used:
            element.set("id", own)
        for key, value in element.attrib.items():
            element.set(key, _localize(key, value, name))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-told")
    for place, (tag, own, text) in enumerate((("title", "title", title), ("desc", "told", told))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{own}"})
        element.text = text
        root.insert(place, element)
    return ET.tostring(root, encoding="unicode")


def _localize(key: str, value: str, name: str) -> str:
    """An attribute of a picture, with ids that are its own and colours that are the page's."""
    if key == "id":
        return f"{name}-{value}"
    value = _USES.sub(lambda used: used[0].replace("#", f"#{name}-"), value)
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    return value
