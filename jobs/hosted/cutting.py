"""Cut the requests of an increment into batches: files of request lines within a provider's bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from jobs.hosted.ledger import Asked, Cut, Ledger, prefix_of
from jobs.hosted.provider import Bounds, Provider


def cut_batch(
    ledger: Ledger,
    asked: Asked,
    cut: Cut,
    name: str,
    *,
    provider: Provider,
    bounds: Bounds,
    most_output: Callable[[bytes], int],
    file: Path,
) -> Cut:
    """Write the next batch's request lines to a file on this machine.

    Args:
        ledger, asked: Of the increment.
        cut: The range; where its end is None, the batch ends before the line that passes a bound.
        name: Of the batch, which its custom ids tell.
        provider: Whose request lines they are.
        bounds: Of the batch; one line goes in whatever it takes.
        most_output: Tokens that a request's body lets the provider answer with.
        file: Where to.

    Returns:
        What is in the file.
    """
    prefix, ids = prefix_of(asked, name), hashlib.blake2b(digest_size=8)
    end, requests, tokens, size, output = cut.start, 0, 0, 0, 0
    with file.open("wb") as stream:
        for line in ledger.lines(asked, cut):
            told = provider.request_line(prefix + line.id, line.body) + b"\n"
            over = size + len(told) > bounds.bytes or requests + 1 > bounds.requests
            over |= bounds.tokens is not None and tokens + line.tokens > bounds.tokens
            if over and requests and cut.end is None:
                break
            stream.write(told)
            ids.update(line.id.encode())
            end, requests, size, tokens = line.end, requests + 1, size + len(told), tokens + line.tokens
            output += most_output(line.body)
    return Cut(cut.start, end, requests, tokens, size, output, ids.hexdigest())


def halve(ledger: Ledger, asked: Asked, cut: Cut) -> tuple[Cut, ...]:
    """The two halves of a range of lines; of a single one itself."""
    if cut.requests < 2:
        return (cut,)
    half = cut.requests // 2
    for number, line in enumerate(ledger.lines(asked, cut), start=1):
        if number == half:
            return (Cut(cut.start, line.end, half), Cut(line.end, cut.end, cut.requests - half))
    raise ValueError("a range of lines ends before its number of lines")
