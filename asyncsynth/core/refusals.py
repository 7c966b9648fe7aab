"""Whether one request is refused, or all of them. `RefusalBook` keeps what a server refused; `core.blame` asks and
acts.

A refusal (401, 403, 404, 3xx, 402, ...) may be about the server (a revoked key, an unloaded model) or about one
request (a prompt that moderation flags, a parameter that one route lacks). Refusals arrive in milliseconds and answers
in seconds, so "three in a row" shows nothing. A request that is known to be harmless shows the difference:

1. A refused call is held. The driver sends a `Canary` to the same server, for the same model: a request of one token.
2. The canary is answered, or another call that started after the refusal is: the server works, and the refusal is the
   request's own. The call ends with the reason `refused` (a spent quota keeps its own).
3. The canary is refused too: all requests are. Once three different calls were refused, or three canaries in a row, the
   replica is paused, if others serve its model; else the run halts.
4. The canary shows neither (the server is busy, or gone): the call is charged one attempt and tried again.

A spent quota needs no canary once three different calls have met it and no later call is answered: the canary is cheap
and may pass where a real request costs too much.
"""

from __future__ import annotations

from typing import Literal

from asyncsynth.core.calls import Call
from asyncsynth.core.outcomes import Ok, Outcome, Permanent, Transient
from asyncsynth.core.replica_state import Held, Refused, Replica
from asyncsynth.core.retry import SERVER_FAULTS

QUOTA_WAITS = 3  #: quota refusals, each after the wait that the one before asked for, and none answered, halt a run
QUOTA_S = 60.0  #: but not sooner than this after the first: a per-minute quota comes back
HALT_AFTER = 3  #: different calls refused, or canaries in a row, before a run halts

RESUME = "Then run the same command again to resume."
#: What to do when a server refuses every request, by reason.
ADVICE = {
    "auth": f"Check the API key. {RESUME}",
    "refused": f"The server's words above say why; check the key's permissions and the model's name. {RESUME}",
    "model_not_found": f"Check the model's name, that the server still serves it, and its base URL. {RESUME}",
    "redirect": f"Set base_url to the address that the server names. {RESUME}",
    "quota": f"Wait until the quota is back, raise it, or add credit. {RESUME}",
}

Verdict = Literal["alone", "all", "unknown"]


class RefusalBook:
    """`now` is in seconds, monotonic."""

    def note(self, call: Call, replica: Replica, outcome: Permanent, now: float) -> bool:
        """A held call was refused. True if the server is known to refuse every request, so that no canary is needed."""
        entry = replica.refusals.setdefault(call.model, Refused())
        entry.refused_at[call.id] = now
        entry.pending.append((call, outcome))
        return outcome.reason == "quota" and len(entry.refused_at) >= HALT_AFTER

    def wants_canary(self, replica: Replica, model: str) -> bool:
        """Whether a canary must be sent now. It covers all calls refused until now."""
        entry = replica.refusals.get(model)
        if entry is None or entry.asked or not entry.pending:
            return False
        entry.asked, entry.covered = True, len(entry.pending)
        return True

    def answered(self, call: Call, replica: Replica) -> list[Held]:
        """A call was answered. Returns the calls refused before it started: each was refused on its own."""
        replica.spent, replica.spent_at = 0, None
        entry = replica.refusals.get(call.model)
        if entry is None:
            return []
        entry.canaries = 0
        entry.refused_at = {known: at for known, at in entry.refused_at.items() if at > call.started_at}
        before = [one for one in entry.pending if one[0].id not in entry.refused_at]
        entry.pending = [one for one in entry.pending if one[0].id in entry.refused_at]
        entry.covered = max(0, entry.covered - len(before))
        self._tidy(replica, call.model, entry)
        return before

    def judge(self, replica: Replica, model: str, canary: Outcome | None) -> tuple[Verdict, list[Held]]:
        """The verdict of a canary (None: it was never sent), and the calls that it is about."""
        entry = replica.refusals.get(model)
        if entry is None or not entry.asked:
            return "unknown", []
        judged, entry.pending = entry.pending[: entry.covered], entry.pending[entry.covered :]
        entry.asked, entry.covered = False, 0
        if isinstance(canary, Permanent) and canary.scope == "server":
            entry.canaries += 1
            return "all", judged
        verdict: Verdict = "unknown"
        if answers(canary):
            verdict = "alone"
            entry.canaries = 0
            for call, _ in judged:
                entry.refused_at.pop(call.id, None)
        self._tidy(replica, model, entry)
        return verdict, judged

    def _tidy(self, replica: Replica, model: str, entry: Refused) -> None:
        if not (entry.refused_at or entry.pending or entry.asked):
            del replica.refusals[model]

    def is_spent(self, replica: Replica, asked: float, now: float) -> bool:
        """Counts a refusal that names a quota. True if the quota has not come back although every wait was kept."""
        if replica.spent_at is None:
            replica.spent_at, replica.spent_until = now, now
        if now >= replica.spent_until:
            replica.spent += 1
            replica.spent_until = now + asked
        return replica.spent >= QUOTA_WAITS and now - replica.spent_at >= QUOTA_S

    def is_certain(self, replica: Replica, model: str) -> bool:
        """Whether enough calls were refused to halt a run."""
        entry = replica.refusals.get(model)
        return entry is not None and (len(entry.refused_at) >= HALT_AFTER or entry.canaries >= HALT_AFTER)

    def give_back(self, replica: Replica, model: str) -> list[Held]:
        """All calls that are held there."""
        entry = replica.refusals.pop(model, None)
        return [] if entry is None else entry.pending


def answers(canary: Outcome | None) -> bool:
    """Whether a server with this outcome takes requests and gives readable answers; a useless answer counts too."""
    if isinstance(canary, Transient):
        return canary.paid and canary.reason not in SERVER_FAULTS
    return isinstance(canary, Ok | Permanent)
