"""Servers in virtual time that die of poison, and come back."""

from __future__ import annotations

import random

from asyncsynth.core.limiter import FixedLimit
from asyncsynth.core.outcomes import Ok, Outcome, Transient
from tests.kit.simulation import Sim, SimServer

M = frozenset({"m"})
RESTART_S = 20.0


class Crashing:
    """Servers that die of poison soon after it arrives: what is in flight is cut off, then connections are refused."""

    def __init__(self, replicas: int, poison: set[int], seed: int, *, free: bool = True, limit: int = 64) -> None:
        self.rng = random.Random(seed)
        self.poison = poison
        self.free = free
        self.silent = False  # a server that is down takes connections and answers nothing
        self.down_until = [float("-inf")] * replicas
        self.dies_at = [float("inf")] * replicas
        self.crashes: list[tuple[float, int]] = []
        self.servers = [self._server(i) for i in range(replicas)]
        self.sim = Sim(self.servers, seed, [FixedLimit(limit) for _ in range(replicas)])

    def _server(self, i: int) -> SimServer:
        def script(call: int, attempt: int, now: float) -> tuple[Outcome, float] | None:
            self._pass(i, now)
            if now < self.down_until[i]:
                return (
                    (Transient("timeout", "silence"), 1e6) if self.silent else (Transient("connect", "refused"), 0.001)
                )
            latency = self.rng.uniform(0.5, 2.0)
            if call in self.poison:
                self.dies_at[i] = min(self.dies_at[i], now + self.rng.uniform(0.02, 0.6))
                latency += 1.0  # it dies before it could answer
            return Ok(None, 10), latency

        def ending(outcome: Outcome, now: float) -> Outcome:
            self._pass(i, now)
            return outcome

        return SimServer(f"s{i}", M, script=script, ending=ending)

    def kill(self, i: int) -> None:
        self.dies_at[i] = self.sim.now

    def _pass(self, i: int, now: float) -> None:
        if self.dies_at[i] <= now:
            self.dies_at[i] = float("inf")
            self.crash(i, now)

    def crash(self, i: int, now: float) -> None:
        self.down_until[i] = now + RESTART_S
        self.crashes.append((now, i))

    def run(self, until: float = float("inf")) -> None:
        """As Sim.run; at a crash all that is in flight there ends at once."""
        sim = self.sim
        while sim.halt is None and sim.live and sim.now < until:
            coming = min(self.dies_at)
            following = min(sim.events[0][0] if sim.events else 1e18, sim.scheduler.next_tick() or 1e18)
            if coming <= following:
                self._die(self.dies_at.index(coming), max(coming, sim.now))
            elif not sim.step():
                sim.fail("stuck")

    def _die(self, i: int, now: float) -> None:
        sim = self.sim
        sim.now = now
        self.dies_at[i] = float("inf")
        self.crash(i, now)
        victims = [call for call, where in sim.flying.items() if where == i]
        self.rng.shuffle(victims)
        for call in victims:
            if sim.flying.get(call) == i:
                sim.flying.pop(call)
                sim.servers[i].busy -= 1
                cut = self.rng.random()
                outcome = (
                    Transient("reset", "died", free=True)
                    if self.free and cut < 0.8
                    else Transient("server_error", "engine died", status=500)
                )
                sim.act(sim.scheduler.outcome(call, outcome, now))
