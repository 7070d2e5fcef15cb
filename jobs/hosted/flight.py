"""Batches on their way: sent, looked at, collected; whatever happens, no request is paid twice.

One loop on the driver. All that it knows is in the ledger, so that it can be killed anywhere: a batch is noted before
it is made, and one that may have been made is looked for before it is made again.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.errors import DeadlineReached, EndpointError, JobError
from jobs.hosted.collecting import lay_out, read_left, write_unsent
from jobs.hosted.cutting import cut_batch, halve
from jobs.hosted.ledger import START, Asked, Batch, Cut, Ledger, Place, prefix_of
from jobs.hosted.money import Purse
from jobs.hosted.patience import Patience
from jobs.hosted.provider import (
    Bounds,
    BusyProviderError,
    Found,
    LostReplyError,
    NotRunError,
    Provider,
    RefusedError,
    Seen,
    UnknownBatchError,
    Usage,
)

_SLOWER, _SLOWEST = 1.5, 10  # polls come as often as `poll_s` at first, and a tenth as often in the end
_DOWNLOADS, _AGAIN_S = 4, 5.0  # of results that are not whole
_REFUSALS = 64  # before anything was taken
_LEAST_SHARE = 8  # of a batch is sent where there is no money for all of it: each is waited for by itself
_SHARES = 4  # of the tokens in flight: so many batches at least, so that some end while others run


@dataclass(frozen=True)
class Tempo:
    """How many batches fly, and how often they are looked at; as of `udfs.hosted.endpoint.Endpoint`.

    Args:
        listed_s: A batch may be listed so long after it was made.
    """

    max_batches: int = 8
    max_tokens: int | None = None
    poll_s: float = 30.0
    listed_s: float = 60.0


@dataclass(frozen=True)
class Standing:
    """How far an increment's requests are.

    Args:
        in_flight, ended: Batches.
        answered, requests: Requests, as far as the provider tells.
    """

    in_flight: int
    ended: int
    answered: int
    requests: int


@dataclass(frozen=True)
class Landed:
    """What became of an increment's requests.

    Args:
        usage: Tokens, by the provider.
        batches: That were run.
        unsent: Requests that were not sent, since the deadline or the limit on money came first.
        spent_out: It was the money; a line that says so.
    """

    usage: Usage
    batches: int
    unsent: int = 0
    spent_out: str | None = None


class Flight:
    """The batches of one increment.

    Args:
        ledger: Their notes.
        asked: The requests.
        provider: Who answers.
        tempo: How many, how often.
        purse: What may be spent.
        check: Raises where the run is to end.
        left_s: Seconds until the deadline; None without one.
        tell: Is told how far it is.
    """

    def __init__(
        self,
        ledger: Ledger,
        asked: Asked,
        provider: Provider,
        *,
        tempo: Tempo,
        purse: Purse,
        check: Callable[[], None],
        left_s: Callable[[], float | None] = lambda: None,
        tell: Callable[[Standing], None] = lambda _: None,
    ) -> None:
        self._ledger, self._asked, self._provider, self._tempo, self._purse = ledger, asked, provider, tempo, purse
        self._check, self._patience, self._tell = check, Patience(left_s), tell
        self._batches = {batch.name: batch for batch in ledger.batches()}
        self._seen: dict[str, Seen] = {}
        self._maybe: dict[str, tuple[str, ...]] = {}  # by name of a batch: those of the provider's that may be it
        self._others: dict[str, set[str]] = {}  # by name of a batch: those of the provider's that are not it
        self._unmade = set[str]()  # batches that the provider has told it did not make
        self._ended_early = set[str]()  # batches whose cancelling has got a reply
        self._lost_since: dict[str, float] = {}
        self._sent = set[str]()  # batches that this run has sent
        self._broken = ""  # what keeps the provider from running any
        self._refusals = 0
        self._spent_out = False
        self._every_s, self._not_before = tempo.poll_s, 0.0

    def fly(self) -> Landed:
        """See all batches to their end.

        Raises:
            EndpointError: The provider cannot be used as it is asked.
            DeadlineReached: Nothing could be sent, or it is not known what becomes of a batch; all that is known stays.
            JobError: The provider has not answered for hours.
        """
        self._ledger.forget_unsent()
        while True:
            self._check()
            self._step()
            if not self._flying() and (self._is_cut_short() or not self._waiting()):
                break
            self._wait()
        return self._land()

    def _step(self) -> None:
        """One round: end what is too late, send what there is room for, look at what flies."""
        lost = list[LostReplyError]()
        try:
            if self._patience.is_late():
                self._end_early()
            self._each(self._settle, lambda batch: batch.id is None, lost)
            self._each(self._look, lambda batch: batch.id is not None, lost)
            if self._broken:
                raise EndpointError(self._broken)
            self._send_more()
            if lost:
                raise lost[0]
        except BusyProviderError as error:
            self._not_before = time.monotonic() + self._patience.wait_s(error, wanted_s=self._every_s)
        except LostReplyError as error:
            self._patience.bear(error)
        except (RefusedError, UnknownBatchError) as error:
            raise EndpointError(f"the provider does not take what it is asked: {error}; see score.endpoint") from error
        else:
            self._patience.is_answered()
        self._tell(self._progress())

    def _each(self, act: Callable[[Batch], None], which: Callable[[Batch], bool], lost: list[LostReplyError]) -> None:
        """Do something for some of the batches that fly; where one gets no reply, the others still have their turn."""
        for batch in [batch for batch in self._flying() if which(batch)]:
            self._check()
            try:
                act(batch)
            except LostReplyError as error:
                lost.append(error)

    # What there is

    def _flying(self) -> list[Batch]:
        """Batches that are noted and not over; the last of them may not be made."""
        return [batch for batch in self._batches.values() if not batch.is_over]

    def _waiting(self) -> list[tuple[str, Cut]]:
        """What is to be sent, by names of batches: lines that were refused together, then all that is not cut yet."""
        found = [
            (f"{batch.name}.{number}", half)
            for batch in self._batches.values()
            for number, half in enumerate(batch.halves)
            if f"{batch.name}.{number}" not in self._batches
        ]
        first = [batch for name, batch in self._batches.items() if "." not in name]
        start = first[-1].cut.end if first else START
        if start is not None and start < Place(len(self._asked.files), 0):
            found.append((f"{len(first):05d}", Cut(start)))
        return found

    def _is_cut_short(self) -> bool:
        return self._spent_out or self._patience.is_late()

    def _progress(self) -> Standing:
        flying = self._flying()
        over = [batch for batch in self._batches.values() if batch.usage is not None]
        done = sum(self._seen[batch.id].done for batch in flying if batch.id in self._seen)
        answered = done + sum(batch.cut.requests for batch in over)
        return Standing(len(flying), len(over), answered, self._asked.lines)

    # Sending

    def _send_more(self) -> None:
        """Make batches as long as there is room for them."""
        while not self._is_cut_short() and time.monotonic() >= self._not_before:
            flying = self._flying()
            waiting = self._waiting()
            if not waiting or len(flying) >= self._tempo.max_batches or self._is_unsettled(flying):
                return
            if flying and not self._has_room(flying, self._share() or 0):
                return
            if not self._send(*waiting[0], flying):
                return
            self._check()

    def _is_unsettled(self, flying: list[Batch]) -> bool:
        """It has to be found out first whether a batch was made."""
        return any(batch.id is None and batch.name not in self._maybe for batch in flying)

    def _share(self) -> int | None:
        return share_of(self._tempo.max_tokens)

    def _has_room(self, flying: list[Batch], tokens: int) -> bool:
        most = self._tempo.max_tokens
        return most is None or sum(batch.cut.tokens for batch in flying) + tokens <= most

    def _send(self, name: str, cut: Cut, flying: list[Batch]) -> bool:
        """Make one batch; False where there is no room or no money for it now."""
        with tempfile.TemporaryDirectory(prefix="gm-") as folder:
            file = Path(folder, f"{name}.jsonl")
            made = self._cut(name, cut, file, self._share())
            if flying and not self._has_room(flying, made.tokens):
                return False
            if (paid := self._afford(name, made, file, flying)) is None:
                return False
            batch = Batch(name, paid, self._provider.newest())
            self._ledger.intend(batch)
            self._batches[name] = batch
            self._make(batch, file)
        return True

    def _afford(self, name: str, cut: Cut, file: Path, flying: list[Batch]) -> Cut | None:
        """As much of a batch as there is money for, in halves of halves; None where that is too little to be sent."""
        least = cut.requests // _LEAST_SHARE if self._usage().input_tokens else 1
        while not self._purse.has_for(cut, [batch.cut for batch in flying], self._usage()):
            if flying or "." in name or cut.requests // 2 < max(1, least):
                self._spent_out = not flying  # what flies may cost less than it could
                return None
            whole, cut = cut, self._cut(name, replace(cut, end=None), file, cut.tokens // 2)
            if cut.requests == whole.requests:  # of no tokens, so that nothing can be spent on them
                self._spent_out = True
                return None
        return cut

    def _cut(self, name: str, cut: Cut, file: Path, room: int | None) -> Cut:
        bounds = self._provider.bounds
        return cut_batch(
            self._ledger,
            self._asked,
            cut,
            name,
            provider=self._provider,
            bounds=Bounds(bounds.requests, bounds.bytes, room),
            most_output=self._purse.most_output,
            file=file,
        )

    def _make(self, batch: Batch, file: Path) -> None:
        """Have the provider make a batch that is noted and not made."""
        self._sent.add(batch.name)
        try:
            made = self._provider.submit(file, batch.sent(self._asked))
        except BusyProviderError:
            self._unmade.add(batch.name)
            raise
        except RefusedError as error:
            self._split(batch, str(error))
        except UnknownBatchError as error:
            raise EndpointError(
                f"the provider knows no such address or model: {error}; see score.model and base_url"
            ) from error
        else:
            self._keep(batch, made)

    def _keep(self, batch: Batch, batch_id: str) -> None:
        self._batches[batch.name] = self._ledger.keep_created(batch, batch_id)
        self._maybe.pop(batch.name, None)
        self._every_s = self._tempo.poll_s

    def _settle(self, batch: Batch) -> None:
        """Find out what became of a batch that was to be made, and of which nobody knows whether it was."""
        if batch.name in self._maybe:
            self._look_at_maybe(batch)
        elif batch.name in self._unmade:
            self._make_again(batch)
        else:
            self._look_for(batch)

    def _look_for(self, batch: Batch) -> None:
        """Look whether the provider lists it; what it has not listed for so long was never made."""
        asked = time.monotonic()  # the list may be old by the time that it comes
        since = self._lost_since.setdefault(batch.name, asked)  # it was made before, if ever
        if (found := self._find(batch)).id:
            self._keep(batch, found.id)
        elif found.maybe:
            self._maybe[batch.name] = found.maybe
            self._look_at_maybe(batch)
        elif asked - since > self._tempo.listed_s:
            self._make_again(batch)

    def _find(self, batch: Batch) -> Found:
        known = {other.id for other in self._batches.values() if other.id}
        return self._provider.find(batch.sent(self._asked), frozenset(known | self._others.get(batch.name, set())))

    def _look_at_maybe(self, batch: Batch) -> None:
        """Look whether one of the batches that may be a lost one has ended, and is it; else look for more of them."""
        others = self._others.setdefault(batch.name, set())
        for batch_id in self._maybe[batch.name]:
            with contextlib.suppress(UnknownBatchError, RefusedError):  # deleted, or so old that its results are
                if self._provider.look(batch_id).state == "running":
                    continue
                if self._provider.has_run(batch_id, batch.sent(self._asked)):
                    self._keep(batch, batch_id)
                    return
            others.add(batch_id)
        left = tuple(batch_id for batch_id in self._maybe[batch.name] if batch_id not in others)
        self._maybe[batch.name] = left
        if not left:
            del self._maybe[batch.name]

    def _make_again(self, batch: Batch) -> None:
        """Make a batch that was noted and never made, of the same lines; once it is too late, they are unsent."""
        self._unmade.add(batch.name)
        if self._is_cut_short() or batch.cancelled:
            self._batches[batch.name] = self._ledger.keep_split(batch, (batch.cut,), "not made")
            return
        if time.monotonic() < self._not_before:
            return
        with tempfile.TemporaryDirectory(prefix="gm-") as folder:
            file = Path(folder, f"{batch.name}.jsonl")
            made = self._cut(batch.name, batch.cut, file, None)
            if made.digest != batch.cut.digest:
                raise JobError(f"the requests of batch {batch.name} below {self._ledger.path} have been changed")
            again = replace(batch, newest=self._provider.newest())
            self._ledger.intend(again)
            self._batches[batch.name] = again
            self._unmade.discard(batch.name)
            self._lost_since.pop(batch.name, None)
            self._make(again, file)

    # Looking

    def _look(self, batch: Batch) -> None:
        """Look at a batch, and collect it if it has ended."""
        try:
            seen = self._provider.look(str(batch.id))
        except UnknownBatchError as error:
            raise EndpointError(
                f"the provider does not know batch {batch.id} of increment {self._ledger.number}, which was made for "
                "this job: is this the key of the same account and project? If it was deleted there, --cancel and "
                "then --overwrite start afresh"
            ) from error
        except NotRunError as error:
            self._take_back(batch, str(error))
            return
        self._seen[seen.id] = seen
        if seen.state == "ended":
            self._collect(batch, seen)
        elif seen.state == "refused":
            self._split(batch, seen.told)
        elif seen.state == "full":
            self._put_off(batch, seen)

    def _split(self, batch: Batch, told: str) -> None:
        """Put the halves of a batch that is refused in its place; a request that is refused alone has failed.

        Raises:
            EndpointError: Nothing but refusals has come of all that was sent: it is no fault of single requests.
        """
        self._refusals += 1
        if self._refusals > _REFUSALS and not self._usage().input_tokens:
            raise EndpointError(f"the provider refuses all batches, whatever is in them: {told}")
        if batch.cut.requests > 1:
            halves = halve(self._ledger, self._asked, batch.cut)
            self._batches[batch.name] = self._ledger.keep_split(batch, halves, told)
            return
        (line,) = self._ledger.lines(self._asked, batch.cut)
        reply = self._provider.refused(prefix_of(self._asked, batch.name) + line.id, told)
        self._ledger.write_results(batch.name, lay_out(reply, line.buckets, self._provider))
        self._batches[batch.name] = self._ledger.keep_collected(batch, Usage(), refused=1)

    def _take_back(self, batch: Batch, told: str) -> None:
        """Have the lines of a batch wait that was not run for what is wrong with the account or the model.

        By the next run that may be mended: what a run before has sent is sent again.
        """
        self._ledger.forget_results(batch.name)
        self._batches[batch.name] = self._ledger.keep_split(batch, (batch.cut,), told)
        if batch.name in self._sent:
            self._broken = told

    def _put_off(self, batch: Batch, seen: Seen) -> None:
        """Too much is enqueued at the provider: the same lines later, or in halves where nothing else of ours is."""
        others = any(other.id for other in self._flying() if other.name != batch.name)
        if not others and batch.cut.requests > 1:
            halves = halve(self._ledger, self._asked, batch.cut)
            self._batches[batch.name] = self._ledger.keep_split(batch, halves, seen.told)
        else:
            self._batches[batch.name] = self._ledger.forget_created(batch)
            self._unmade.add(batch.name)
            self._not_before = time.monotonic() + self._every_s

    def _collect(self, batch: Batch, seen: Seen) -> None:
        """Bring the replies of an ended batch here, and keep them; what did not come is looked for again."""
        self._ledger.forget_results(batch.name)
        replies = read_left(self._ledger, self._asked, batch, self._provider, why=batch.cancelled)
        with tempfile.TemporaryDirectory(prefix="gm-") as folder:
            for number in range(_DOWNLOADS):
                files, lost = self._download(seen, Path(folder))
                self._check()
                name = f"{batch.name}-{number}" if number else batch.name
                self._ledger.write_results(name, replies.read(files))
                is_whole = not lost and replies.counts["replies"] >= seen.done
                if not replies.left or (seen.why and is_whole):
                    break
                if number == _DOWNLOADS - 1:
                    if lost:
                        raise lost
                    break
                self._pause(min(_AGAIN_S, self._tempo.poll_s))
                seen = self._provider.look(seen.id)  # files may come late, or have been told wrong
        if replies.counts["no_model"] == batch.cut.requests:
            told = f"the provider has no model as score.model names it: so it answers all of batch {seen.id}"
            self._take_back(batch, told)
            return
        if replies.left and (why := batch.cancelled or seen.why):
            self._ledger.write_results(f"{batch.name}-unanswered", replies.fill(why))
        counts = {**replies.counts, "missing": len(replies.left)}
        self._batches[batch.name] = self._ledger.keep_collected(batch, replies.usage, **counts)
        self._every_s = self._tempo.poll_s

    def _download(self, seen: Seen, folder: Path) -> tuple[list[Path], LostReplyError | None]:
        """The results of a batch, as far as they came whole, and why others did not; what is gone is not among them."""
        files, lost = list[Path](), None
        for number, file in enumerate(seen.files):
            to = folder / f"{number}.jsonl"
            try:
                if self._provider.download(file, to):
                    files.append(to)
            except LostReplyError as error:
                lost = error
        return files, lost

    # Ending

    def _end_early(self) -> None:
        """Cancel what flies, once; wait for it to end, but not for ever."""
        for batch in [batch for batch in self._flying() if batch.id and batch.name not in self._ended_early]:
            if not batch.cancelled:
                self._batches[batch.name] = self._ledger.keep_cancelled(batch, "expired")
            self._provider.cancel(str(batch.id))
            self._ended_early.add(batch.name)
        if self._maybe and not any(batch.id for batch in self._flying()):
            raise DeadlineReached(
                "the deadline has passed, and it is not known yet which of the provider's batches is ours; the next "
                "run collects the answers"
            )
        if self._flying() and self._patience.is_over():
            raise DeadlineReached(
                "the deadline has passed, and batches that were cancelled have not ended; the next run collects the "
                "answers"
            )

    def _land(self) -> Landed:
        """All that is answered is here; what was not sent expires."""
        waiting = self._waiting()
        run = [batch for batch in self._batches.values() if batch.usage is not None and batch.id]
        if waiting and not run and self._asked.lines:
            raise DeadlineReached(self._purse.told(self._usage()) if self._spent_out else "the deadline has passed")
        cuts = [cut for _, cut in waiting]
        unsent = write_unsent(self._ledger, self._asked, cuts, self._provider, "expired") if cuts else 0
        return Landed(self._usage(), len(run), unsent, self._purse.told(self._usage()) if self._spent_out else None)

    def _usage(self) -> Usage:
        return sum((batch.usage for batch in self._batches.values() if batch.usage), Usage())

    # Waiting

    def _wait(self) -> None:
        """Wait for the next round; less often the longer nothing happens."""
        self._pause(self._every_s * random.uniform(0.8, 1.2))
        self._every_s = min(self._every_s * _SLOWER, self._tempo.poll_s * _SLOWEST)

    def _pause(self, seconds: float) -> None:
        """Wait, and end at once where the run is to end, or as the deadline comes."""
        until, was_late = time.monotonic() + seconds, self._patience.is_late()
        while (left := until - time.monotonic()) > 0 and self._patience.is_late() == was_late:
            time.sleep(min(0.2, left))
            self._check()


def share_of(max_tokens: int | None) -> int | None:
    """Tokens of a batch, so that several fit into what may be in flight; None for any number."""
    return None if max_tokens is None else max(1, max_tokens // _SHARES)


def cancel_flight(ledger: Ledger, provider: Provider) -> list[tuple[Batch, str]]:
    """Cancel the batches of an increment that are not over.

    Returns:
        These batches, and what became of each.
    """
    asked, told = ledger.asked(), list[tuple[Batch, str]]()
    for batch in ledger.batches() if asked else ():
        if batch.is_over or asked is None:
            continue
        if (known := batch.id or provider.find(batch.sent(asked), frozenset()).id) is None:
            ledger.keep_cancelled(batch, "canceled")
            told.append((batch, "may never have been made; the next run looks for it"))
            continue
        if batch.id is None:
            batch = ledger.keep_created(batch, known)
        batch = ledger.keep_cancelled(batch, "canceled")
        told.append((batch, _cancel(provider, known)))
    return told


def _cancel(provider: Provider, batch_id: str) -> str:
    """Have a batch of the provider's end; returns what becomes of it."""
    try:
        if provider.look(batch_id).state != "running":
            return "has ended"
        provider.cancel(batch_id)
    except UnknownBatchError:
        return "is not known to the provider any more"
    except NotRunError:
        return "was not run"
    return "is being cancelled; the next run collects what it has answered"
