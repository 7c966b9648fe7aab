"""Paid answers are read again: what a run does with the answers that are kept by what was asked.

A changed parser, a changed output or a changed body of a `@task` makes old *results* useless, but not the answers they
were read from: the request is the same, so its answer is taken from `storage.kept_answers` and costs nothing.
The key of an answer is a hash of the request as the step made it (model, messages, sampling fields, seed, schema) and
of the model that answers in its place, if there is one.

Request seeds come from (run seed, row key, seed id, sample). A step's seed id (`Node.seed_id`) is not made of its code.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asyncsynth.client.messages import ChatRequest, Choice, Completion, CompletionRequest, ModelRequest, Usage
from asyncsynth.engine.run import Run
from asyncsynth.pipeline import ModelStep, Node, Plan, Step
from asyncsynth.records import canonical_json
from asyncsynth.storage.kept_answers import KEY_BYTES, AnswerStore, check_cache, count_kept, padded
from asyncsynth.storage.layout import ANSWERS, refuse_own_answers
from asyncsynth.storage.shard_directories import shard_path
from asyncsynth.tasks.typed_schema import TypedSchema

#: Row of a record whose step failed though it was answered: (step fingerprint, row key).
Refused = tuple[str, str]
#: The tag of kept parts of rows. It belongs to no step's answers, so that no count of answers includes them.
_PART_TAG = b"part\0\0\0\0"
_NONE: frozenset[Refused] = frozenset()


class KeptAnswers:
    """One plan's use of an open store.

    Args:
        only_own: keep only the answers of steps with user code (`has_own_code`).
        refused: record key -> rows that failed on their answers and are tried again: these are sent again.
    """

    def __init__(
        self,
        store: AnswerStore,
        plan: Plan,
        *,
        run_seed: int,
        only_own: bool,
        refused: Mapping[str, Set[Refused]],
    ) -> None:
        self._store = store
        self._answering = plan.answering
        self._run_seed = run_seed
        self._refused = refused
        self._keeps = {node.index: not only_own or _keeps_own(node.step) for node in plan.model_steps}
        self.reread = 0  #: answers read from the store instead of being paid for

    @property
    def notes(self) -> list[str]:
        """What a user must know of the store."""
        return self._store.notes()

    def asker(self, node: Node, record: str, key: str, send: Callable[..., Awaitable[Completion]]) -> Asker | None:
        """How a step asks for one row; None if there is nothing to read and nothing to keep."""
        keeps = self._keeps[node.index]
        if not keeps and not self._store.count:
            return None
        anew = bool(self._refused) and (node.fingerprint, key) in self._refused.get(record, _NONE)
        return Asker(self, node.seed_id, key, send, keeps=keeps, anew=anew)


class Asker:
    """One step's requests for one row: read from the store, or sent and kept."""

    __slots__ = ("_anew", "_asked", "_keeps", "_kept", "_key", "_seed_id", "_send", "reread")

    def __init__(
        self,
        kept: KeptAnswers,
        seed_id: str,
        key: str,
        send: Callable[..., Awaitable[Completion]],
        *,
        keeps: bool,
        anew: bool,
    ) -> None:
        self._kept = kept
        self._seed_id = seed_id
        self._key = key
        self._send = send
        self._keeps = keeps
        self._anew = anew
        self._asked: dict[bytes, int] = {}  #: request -> how often it has been asked
        self.reread: int = 0

    async def send(self, request: ModelRequest, **how: Any) -> Completion:
        """As `ServerPool.send`; raises what that does. A failed request leaves nothing in the store."""
        key = self._key_of(request)
        if key is None:
            return await self._send(request, **how)
        kept = self._kept
        if not self._anew and (saved := kept._store.get(key)) is not None:
            completion = completion_of(saved)
            if completion is not None:
                self.reread += 1
                kept.reread += 1
                return completion
        completion = await self._send(request, **how)
        if self._keeps:
            kept._store.put(key, padded(bytes.fromhex(self._seed_id)), saved_form(completion))
        return completion

    async def keep(self, parts: list[Any], make: Callable[[], Awaitable[Any]]) -> Any:
        """What `make` returned before for this row and these parts, or else what it returns now, which is kept (JSON).

        The parts of the same row that are equal are told apart by their order. Raises what `make` raises.
        """
        kept = self._kept
        try:
            digest = _hash(["part", parts, kept._run_seed, self._key, self._seed_id])
        except TypeError:
            return await make()
        times = self._asked[digest] = self._asked.get(digest, 0) + 1
        key = digest if times == 1 else _hash([digest.hex(), times])
        if not self._anew and (saved := kept._store.get(key)) is not None and "part" in saved:
            return saved["part"]
        made = await make()
        if self._keeps:
            kept._store.put(key, _PART_TAG, {"part": made})
        return made

    def _key_of(self, request: ModelRequest) -> bytes | None:
        """The key of the request's answer; None for a request that is not JSON, which the client refuses.

        The same request twice for one row asks for two answers, and so does one without a seed for two rows: what
        tells them apart is then part of the key.
        """
        kind = ChatRequest if isinstance(request, ChatRequest) else CompletionRequest
        fields = {name: value for name in _FIELDS[kind] if (value := getattr(request, name)) is not None}
        parts: list[Any] = [kind.__name__, fields, self._kept._answering.get(request.model, request.model)]
        try:
            digest = _hash(parts)
            times = self._asked[digest] = self._asked.get(digest, 0) + 1
            if request.params.get("seed") is None:
                return _hash([digest.hex(), times, self._kept._run_seed, self._key, self._seed_id])
            return digest if times == 1 else _hash([digest.hex(), times])
        except TypeError:
            return None


def _names(kind: type[ChatRequest] | type[CompletionRequest] | type[Choice] | type[Completion]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


#: Fields of a request; one that is None is not part of the key, so that a new field leaves old keys as they are.
_FIELDS = {kind: _names(kind) for kind in (ChatRequest, CompletionRequest)}
_CHOICE_FIELDS = _names(Choice)
_OTHER_FIELDS = tuple(name for name in _names(Completion) if name not in ("choices", "usage"))


def _hash(value: Any) -> bytes:
    return hashlib.blake2b(canonical_json(value), digest_size=KEY_BYTES).digest()


def saved_form(completion: Completion) -> dict[str, Any]:
    """A completion as the store keeps it. All fields: what a reader does not use today it may use when it is edited."""
    usage = completion.usage
    saved: dict[str, Any] = {name: value for name in _OTHER_FIELDS if (value := getattr(completion, name))}
    saved["usage"] = [usage.prompt_tokens, usage.completion_tokens]
    saved["choices"] = [
        {name: value for name in _CHOICE_FIELDS if (value := getattr(choice, name)) is not None}
        for choice in completion.choices
    ]
    return saved


def completion_of(saved: Any) -> Completion | None:
    """A kept answer as it was; None for one of another version of asyncsynth that this one cannot read."""
    try:
        choices = [Choice(**choice) for choice in saved["choices"]]
        usage = Usage(*saved["usage"])
        if not choices:
            return None
        return Completion(**{**saved, "choices": choices, "usage": usage, "flags": tuple(saved.get("flags", ()))})
    except (KeyError, TypeError):
        return None


def _keeps_own(step: Step) -> bool:
    """Whether a step's answers are kept by default: it asks a model, and has user code that may be edited."""
    return isinstance(step, ModelStep) and bool(step.models()) and has_own_code(step)


def has_own_code(step: object) -> bool:
    """Whether a step has user code: a class that is not asyncsynth's, `@task`, a function or a pydantic model in a
    setting."""
    return any(map(_is_foreign, type(step).__mro__)) or any(_holds_code(value, 3) for value in vars(step).values())


def _holds_code(value: object, depth: int) -> bool:
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and any(_holds_code(item, depth - 1) for item in inside)
    if isinstance(value, functools.partial):
        return _holds_code(value.func, depth)
    if inspect.isroutine(value) or inspect.isclass(value):
        return _is_foreign(value)
    if isinstance(value, TypedSchema):
        return value.has_own_code
    return callable(value) and _is_foreign(type(value))


def _is_foreign(code: object) -> bool:
    package = str(getattr(code, "__module__", None) or "builtins").split(".")[0]
    return package != "asyncsynth" and (package == "__main__" or package not in sys.stdlib_module_names)


def answer_places(directory: Path, chosen: bool | Path | None) -> tuple[Path | None, list[Path]]:
    """Where a run's answers are written (None: nowhere), and where they are read, what wins last.

    `chosen`: `Run.answers`.
    """
    own = directory / ANSWERS
    if chosen is False:
        return None, []
    if chosen is None or chosen is True or chosen.absolute() == own.absolute():
        return own, [own]
    return chosen, [own, chosen]


@contextmanager
def open_answers(run: Run) -> Iterator[AnswerStore | None]:
    """The store of a run; None if nothing is kept and nothing can be read, which costs a run nothing.

    Raises ConfigurationError for a named path that is something else or a run's own, StorageError.
    """
    chosen = run.answers
    if isinstance(chosen, Path):
        refuse_own_answers(chosen, run.directory)
        check_cache(chosen)
    write_to, read_from = answer_places(run.directory, chosen)
    store = AnswerStore(write_to, read_from)
    try:
        keeps = chosen is not None or any(_keeps_own(node.step) for node in run.plan.model_steps)
        yield store if write_to is not None and (keeps or store.count) else None
    finally:
        store.close()


def paid_answers(run: Run, *, shards: int = 0) -> dict[str, int]:
    """Answers that are kept for each step, by the step's name: for a plan of what would be paid.

    A step's request that has not changed since is answered from them without being paid for. Reads no answer: it
    costs about a microsecond an answer. Raises StorageError.
    """
    directories = [shard_path(run.directory, number) for number in range(shards)] or [run.directory]
    places = [path for directory in directories for path in answer_places(directory, run.answers)[1]]
    counts = count_kept(dict.fromkeys(places))
    return {node.step.name: counts.get(padded(bytes.fromhex(node.seed_id)), 0) for node in run.plan.model_steps}
