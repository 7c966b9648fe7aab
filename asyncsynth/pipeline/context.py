"""What a step sees besides its row. Nothing is ambient: everything that a step may use is passed to it here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from asyncsynth.client.messages import Choice, Completion, ModelRequest, Usage
from asyncsynth.errors import RecordError, RunStopped, Withdrawn
from asyncsynth.pipeline.lanes import Work
from asyncsynth.pipeline.making import end_of
from asyncsynth.pipeline.seen import place_of
from asyncsynth.records import seed_of, stable_seed

#: Columns that a task writes beside its outputs where its `provenance` names them.
PROVENANCE = (
    "finish_reason",
    "reasoning",
    "prompt_tokens",
    "completion_tokens",
    "model",
    "server",
    "calls",
    "attempts",
    "latency_s",
)

T = TypeVar("T")
Send = Callable[[ModelRequest], Awaitable[Completion]]
#: Keeps a part of a row's work: what it is made from, and how.
Keep = Callable[[list[Any], Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Context:
    """One model step's work on one row.

    Random choices and request seeds come from (run seed, row key, step id) alone, so that a resumed run makes
    the same ones. In a run the step id is `Node.seed_id`: an edited parser makes the same requests.
    """

    __slots__ = (
        "_keep",
        "_send",
        "_step_id",
        "_work",
        "completions",
        "cut",
        "key",
        "notes",
        "run_seed",
        "stopped",
        "told",
    )

    def __init__(self, key: str, run_seed: int, step_id: str, send: Send) -> None:
        self.key: str = key
        self.run_seed: int = run_seed
        self._step_id = step_id
        self._send = send
        self.completions: list[Completion] = []  #: every answer got, in order; provenance is made of them
        self.stopped: Withdrawn | RunStopped | None = None  #: the run stops, and a request of this row was refused
        self.cut: Sequence[tuple[ModelRequest, Completion]] = ()  #: those of them that ended at max_tokens
        self.told: Completion | None = None  #: the one that the outputs were read from; None: the last
        self.notes: dict[str, Any] = {}  #: the step's own notes, kept with the result (small JSON)

    def equip(self, *, work: Work | None = None, keep: Keep | None = None) -> None:
        """Gives the step what only a few need: threads and processes, and partial results that survive a crash."""
        self._work = work
        self._keep = keep

    @property
    def keep(self) -> Keep | None:
        """The store in which `once` keeps results; None if it keeps none."""
        keep: Keep | None = getattr(self, "_keep", None)
        return keep

    @property
    def work(self) -> Work:
        """Threads and processes of the run, for steps with `needs_work`."""
        work: Work | None = getattr(self, "_work", None)
        if work is None:  # used outside of a run
            work = self._work = Work()
        return work

    async def once(self, parts: list[Any], make: Callable[[], Awaitable[Any]]) -> Any:
        """What `make` returns (JSON), or what it returned before a crash for this row and the same `parts` (JSON).

        Only steps with `needs_work` in a run that keeps answers (``--answers``) get stored results.
        """
        keep = self.keep
        return await (make() if keep is None else keep(parts, make))

    async def in_time(self, seconds: float, call: Awaitable[T]) -> T:
        """Awaits `call` for at most `seconds` of its own time: waiting for a model's answer does not count.

        Raises RecordError (`timeout`) that names the line at which the call was waiting.
        """
        loop, send = asyncio.get_running_loop(), self._send
        left, since, waiting = seconds, loop.time(), 0

        async def timed(request: ModelRequest) -> Completion:
            nonlocal left, since, waiting
            if not waiting and not deadline.expired():
                left -= loop.time() - since
                deadline.reschedule(None)
            waiting += 1
            try:
                return await send(request)
            finally:
                waiting -= 1
                if not waiting and not deadline.expired():
                    since = loop.time()
                    deadline.reschedule(since + left)

        self._send = timed
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await call
        except TimeoutError as error:
            if not deadline.expired():
                raise  # of the step's own code
            place = place_of(error.__cause__ or error)
            where = f"; it waited at {place}" if place else ""
            said = f"did not end within its timeout of {seconds:g} s (answers of models not counted){where}"
            raise RecordError(said, reason="timeout") from None
        finally:
            self._send = send

    def seed(self, sample: int = 0) -> int:
        """The sampling seed for this row's `sample`-th request."""
        return seed_of(f"{self.run_seed}\x1f{self.key}\x1f{self._step_id}\x1f{sample}")

    def rng(self, purpose: str = "") -> random.Random:
        """A generator for this row's own choices (mutations, system prompts)."""
        return random.Random(stable_seed(self.run_seed, self.key, self._step_id, purpose))  # noqa: S311

    async def send(self, request: ModelRequest) -> Completion:
        """Asks the model. Raises RequestFailed if it ends without a completion."""
        try:
            completion = await self._send(request)
        except (Withdrawn, RunStopped) as stopped:
            self.stopped = stopped  # the engine must know of it, whatever the step's code does with it
            raise
        self.completions.append(completion)
        choices = completion.choices
        if choices[0].finish_reason == "length" or (len(choices) > 1 and any(map(_is_cut, choices))):
            self.cut = [*self.cut, (request, completion)]
        return completion

    def child(self) -> Context:
        """A context for one of several answers: it sees its own completions, and this one sees them too."""
        child = Context(key=self.key, run_seed=self.run_seed, step_id=self._step_id, send=self.send)
        child.notes = self.notes
        child.equip(work=getattr(self, "_work", None), keep=self.keep)
        return child

    def provenance(self) -> dict[str, Any]:
        """Brief facts on how this row's result was made: model that answered, tokens, finish, attempts."""
        done = self.completions
        if not done:
            return dict(self.notes)
        last = done[-1]
        if len(done) == 1:
            usage, attempts, latency = last.usage, last.attempts, last.latency_s
        else:
            usage = Usage(sum(c.usage.prompt_tokens for c in done), sum(c.usage.completion_tokens for c in done))
            attempts, latency = sum(c.attempts for c in done), sum(c.latency_s for c in done)
        facts = {
            "model": last.model,
            "server": last.server,
            "calls": len(done),
            "attempts": attempts,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish": last.choices[0].finish_reason,
            "latency_s": round(latency, 4),
            **self.notes,
        }
        if self.cut:
            # `finish` is only the last answer's, and outputs may hold any of them: so keep the ends of the cut ones.
            facts["cut"] = [
                end_of(choice.text) for _, completion in self.cut for choice in completion.choices if _is_cut(choice)
            ]
        return facts

    def facts(self) -> dict[str, Any]:
        """The values that a task's `provenance` columns can have, by column (`PROVENANCE`)."""
        made = self.provenance()
        told = self.told or (self.completions[-1] if self.completions else None)
        choice = told.choices[0] if told is not None else None
        return {
            **{name: made.get(name) for name in PROVENANCE},
            "model": told.model if told is not None else None,
            "finish_reason": choice.finish_reason if choice is not None else None,
            "reasoning": choice.reasoning if choice is not None else None,
        }


def _is_cut(choice: Choice) -> bool:
    return choice.finish_reason == "length"
