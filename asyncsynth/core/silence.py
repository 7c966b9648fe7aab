"""Whether a silent server is slow or hung, judged by its signs of progress and not by a time limit.

A request has no deadline of its own: how long an answer takes depends on the server's queue, and most
requests that are given up have been paid for. A server is given up when it shows no progress at all:

- it answers no request for `SILENCE_S`,
- the counters of its load reports do not move (where it has any),
- and it does not answer a request for one token that the driver sends then.

The time allowed for the last is learned from the server itself. If it reports counters, these would move, so a minute
is enough. If it reports none, the small request may wait in the same queue as all others: it gets as long as
answers took here before, or at a peer that serves the same models. A server that has answered nothing yet, without a
peer to compare with, gets ten minutes: no other server could take its requests anyway.

A server that answers the small request and reports, for five minutes, that it has nothing to do has lost the requests
in flight (a connection that died without a sign). These are ordinary failures.
"""

from __future__ import annotations

from collections import defaultdict

from asyncsynth.core.balancer import Balancer
from asyncsynth.core.blame import FaultJudge
from asyncsynth.core.calls import Abort, Action, HealthCheck
from asyncsynth.core.dispatch import SILENCE_S, SMALL_REQUEST_S, Slots
from asyncsynth.core.outcomes import Transient
from asyncsynth.core.replica_state import Alarm, Replica
from asyncsynth.core.states import CLOSED, IN_FLIGHT
from asyncsynth.core.suspects import SuspectBook
from asyncsynth.core.timers import Timers

BUSY_CHECK_S = 60.0  #: what a health check of a busy server may take at least
UNKNOWN_S = 600.0  #: or where nothing is known about how long an answer takes
LONGEST_S = 3600.0
IDLE_CHECKS = 10  #: looks, `SILENCE_S` apart, at a server that has nothing to do while requests are in flight there


class SilenceWatch:
    """Checks silent servers, and takes the calls away from hung ones. `now` is in seconds, monotonic."""

    def __init__(self, slots: Slots, judge: FaultJudge, book: SuspectBook, balancer: Balancer, timers: Timers) -> None:
        self._slots = slots
        self._judge = judge
        self._book = book
        self._balancer = balancer
        self._timers = timers
        self._slowest: defaultdict[str, float] = defaultdict(float)  # model -> the longest that an answer took

    def check(self, replica: Replica, now: float, out: list[Action]) -> None:
        """Calls have been in flight for a while: has the server given a sign of life?"""
        for model in replica.models:
            self._slowest[model] = max(self._slowest[model], replica.slowest)
        due = replica.heard_at + SILENCE_S
        if due <= now:
            patience = self.patience(replica)
            if replica.asked_at <= replica.heard_at or now >= replica.asked_at + 2 * patience:
                replica.asked_at = now
                replica.checks_sent += 1
                out.append(HealthCheck(replica.index, patience, replica.checks_sent))
            due = now + SILENCE_S
        if self._does_nothing(replica):
            self._lost(replica, now, out)
        self._timers.alarm(replica, Alarm.STALL, due)

    def patience(self, replica: Replica) -> float:
        """Deadline of a health check, in seconds. It doubles after each hang: no slow server is declared hung twice."""
        if replica.breaker.state is not CLOSED:
            return SMALL_REQUEST_S  # one call at most is in flight there
        return min(LONGEST_S, self._expected(replica) * 2.0 ** min(replica.stalls, 4))

    def _expected(self, replica: Replica) -> float:
        if replica.report is not None:  # its counters would move
            return BUSY_CHECK_S
        known = max(self._slowest[model] for model in replica.models)
        if replica.slowest or replica.heard_at > replica.busy_since:
            known = max(known, self._oldest(replica))
        elif not known and not self._peer_answers(replica):
            return UNKNOWN_S
        return max(BUSY_CHECK_S, known)

    def _peer_answers(self, replica: Replica) -> bool:
        peers = (peer for model in replica.models for peer in self._balancer.of_model[model])
        return any(peer.slowest and peer.breaker.state is CLOSED for peer in peers)

    def _oldest(self, replica: Replica) -> float:
        """Age of the oldest call in flight when the server last gave a sign of life, in seconds."""
        heard, index = replica.heard_at, replica.index
        ages = (heard - c.started_at for c in self._slots.calls.values() if c.state is IN_FLIGHT and c.replica == index)
        return max(ages, default=0.0)

    def unanswered(self, replica: Replica, number: int, now: float, out: list[Action]) -> None:
        """The health check of a busy server was not answered. Unless it has given another sign of life, it hangs:
        pause it.

        Its calls go elsewhere, and none of them is charged. An earlier check than the last says nothing: the server was
        heard after it.
        """
        if not replica.in_flight or replica.asked_at <= replica.heard_at or number != replica.checks_sent:
            return
        replica.stalls += replica.breaker.state is CLOSED
        calls = self._slots.abandon(replica)
        why = f"no answer for {now - replica.heard_at:.0f} s, nor to a health check"
        self._judge.pause(replica, now, why, out)
        for call in calls:
            self._book.left(call, replica)
            out.append(Abort(call.id, replica.index, "hung", f"{why}; sent again, and not charged"))
            self._slots.place(call, now, out)

    def _does_nothing(self, replica: Replica) -> bool:
        """Whether the server has reported for long that it has nothing to do."""
        report = replica.report
        does_nothing = report is not None and report.running == 0 and report.waiting == 0
        replica.idle_checks = replica.idle_checks + 1 if does_nothing else 0
        return replica.idle_checks >= IDLE_CHECKS

    def _lost(self, replica: Replica, now: float, out: list[Action]) -> None:
        """The server lives and has nothing to do: calls in flight there will get no answer."""
        replica.idle_checks = 0
        index, since = replica.index, now - (IDLE_CHECKS - 1) * SILENCE_S
        why = f"the server reported for {now - since:.0f} s that it has no request"
        for call in list(self._slots.calls.values()):
            if call.state is IN_FLIGHT and call.replica == index and call.started_at <= since:
                out.append(Abort(call.id, index, "lost", why))
                self._slots.failed(replica, now)
                self._judge.failed(call, replica, Transient("timeout", why), now, out)
        self._slots.fill(replica, now, out)
