"""Why calls that are not queued for a slot wait, in words, for the live line and the status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.calls import Call
from asyncsynth.core.dispatch import Slots
from asyncsynth.core.replica_state import Replica
from asyncsynth.core.silence import SilenceWatch
from asyncsynth.core.states import CLOSED, HELD, SLEEPING, STARVED
from asyncsynth.core.suspects import SuspectBook
from asyncsynth.core.waiting import WaitingRoom

_NAMED = 3  #: servers that a reason names


def why_calls_wait(
    slots: Slots, room: WaitingRoom, book: SuspectBook, silence: SilenceWatch, balancer: Balancer, now: float
) -> list[str]:
    """The reasons, most important first; empty where every call is in flight or queued for a slot.

    Costs O(models); O(calls) only while some call waits for a retry. `now` is in seconds, monotonic.
    """
    said: list[str] = []
    for model, queue in room.queues.items():
        replicas = balancer.of_model[model]
        suspects = sum(call.model == model for call in room.suspects.values()) if room.suspects else 0
        if not (queue.live or suspects):
            continue
        if not any(replica.breaker.state is CLOSED for replica in replicas):
            said.append(
                f"{_requests(queue.live + suspects)} for {model} until a server answers again: {_away(replicas)}"
            )
        elif suspects:
            said.append(_suspects(suspects, replicas, book, now))
    said += [
        f"an answer of {replica.name}, silent for {now - replica.heard_at:.0f} s: "
        f"it was sent a health check, and has {silence.patience(replica):.0f} s to answer"
        for replica in balancer.replicas
        if replica.in_flight and replica.asked_at > replica.heard_at
    ]
    others = len(slots.calls) - room.count.waiting - sum(replica.in_flight for replica in balancer.replicas)
    if others > 0:
        said += _between_attempts(slots.calls.values(), now)
    return said


def _requests(number: int) -> str:
    return f"{number:,} request{'' if number == 1 else 's'}"


def _away(replicas: Sequence[Replica]) -> str:
    if not replicas:
        return "none is left"
    named = [f"{r.name} ({r.breaker.cause or r.breaker.state})" for r in replicas[:_NAMED]]
    more = len(replicas) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _suspects(number: int, replicas: Sequence[Replica], book: SuspectBook, now: float) -> str:
    """What calls that were in flight at a crash wait for."""
    said = f"{_requests(number)} that were in flight when a server failed"
    away = [replica for replica in replicas if replica.breaker.state is not CLOSED]
    left = book.spared_until() - now
    if away and left > 0:
        return f"{said}, for {_away(away)} or an unused server, at most {left:.0f} s"
    return f"{said}, for their turn: a few at a time"


def _between_attempts(calls: Iterable[Call], now: float) -> list[str]:
    counts: Counter[str] = Counter()
    soonest = float("inf")
    for call in calls:
        counts[call.state] += 1
        if call.state is SLEEPING and call.wake_at < soonest:
            soonest = call.wake_at
    said = []
    if counts[SLEEPING]:
        said.append(f"{_requests(counts[SLEEPING])} for the next attempt, the first in {max(0.0, soonest - now):.0f} s")
    if counts[STARVED]:
        said.append(f"{_requests(counts[STARVED])} for the retry budget")
    if counts[HELD]:
        said.append(f"{_requests(counts[HELD])} for a sign whether the server or the request is at fault")
    return said
