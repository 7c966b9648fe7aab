"""`Task`: a step that asks a model, parses its answer, and re-asks a bounded number of times."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, TypeVar

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Completion, Message, ModelRequest
from asyncsynth.client.needs import SAMPLE_SEED, Feature, Need, needs_of
from asyncsynth.errors import ConfigurationError, ParseFailure, RequestFailed, TaskFailure
from asyncsynth.pipeline.chat_messages import system_text
from asyncsynth.pipeline.context import PROVENANCE, Context
from asyncsynth.pipeline.fingerprint import is_own
from asyncsynth.pipeline.functions import checked_outputs
from asyncsynth.pipeline.seen import row_error
from asyncsynth.pipeline.step import ModelStep, RowCount, nearest
from asyncsynth.records import Row
from asyncsynth.tasks.alone import AloneRunner, Rows
from asyncsynth.tasks.templates import prompt_source

T = TypeVar("T")

#: In a result's provenance: sample -> the system prompt that was sent, if it is neither the row's nor the task's.
SYSTEM_SENT = "system_prompts_sent"
#: Sample numbers of re-asks start here, far from those of `num_generations`.
REASK_STRIDE = 1_000_000
#: The text of a re-ask, after the answer that could not be read.
REASK = "That answer could not be read: {why}. Answer again, in the format that was asked for."
#: A longer answer is not sent back: it would leave no room for the prompt in the context.
REASK_CHARS = 8_000


class SettingsWithoutPrompt(TypedDict, total=False):
    """`TaskSettings` for a task whose `system_prompt` is of another type."""

    num_generations: int
    group_generations: bool
    max_reasks: int
    explain_reasks: bool
    provenance: Sequence[str]
    name: str | None
    input_mappings: Mapping[str, str] | None
    output_mappings: Mapping[str, str] | None


class TaskSettings(SettingsWithoutPrompt, total=False):
    """The keywords that every task has (see `Task`), for constructors that pass them on:

    ``def __init__(self, llm: LLM, *, mine: int = 1, **settings: Unpack[TaskSettings])``. A test holds it to the
    parameters of ``Task.__init__``.
    """

    system_prompt: str | None


class Task(ModelStep):
    """Base of the tasks. A subclass gives `inputs`, `outputs`, `messages()` and `parse()`.

    Args:
        llm: the model and its settings.
        system_prompt: put before the conversation; a row's own ``system_prompt`` column wins.
        num_generations: answers per row, each with a seed of its own.
        group_generations: True: one row whose outputs are lists; False: one row per answer.
        max_reasks: how often an answer that cannot be parsed is requested again before the row fails.
        explain_reasks: a repeated request also holds the unreadable answer and why it could not be read, as further
            turns. False repeats the first request with another seed. An answer that was cut at max_tokens, and one that
            continues a prefilled message, are always requested again without an explanation.
        provenance: names of facts to write as columns beside the outputs: ``finish_reason`` ("length": cut at
            max_tokens), ``reasoning`` (the model's reasoning, or None), ``prompt_tokens``, ``completion_tokens``,
            ``model``, ``server``, ``calls``, ``attempts``, ``latency_s`` (seconds). If an output takes several calls,
            numbers are sums, and the other facts belong to the call that the output was read from.

    Runs in a pipeline, as ``await task(row)``, or alone: ``task.load(); next(task.process([row]))``.
    """

    optional_inputs: tuple[str, ...] = ("system_prompt",)
    #: Name of the prompt in tasks/prompts; its text is part of the fingerprint.
    prompt: ClassVar[str | None] = None
    #: False for a task whose own code gets all choices of an answer.
    reads_one_choice: ClassVar[bool] = True
    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"max_reasks", "explain_reasks", "reads_tool_calls"})
    #: Whether the task can use an answer that only calls tools. For any other task such an answer is a failure.
    reads_tool_calls: bool = False

    def __init__(
        self,
        llm: LLM,
        *,
        system_prompt: str | None = None,
        num_generations: int = 1,
        group_generations: bool = False,
        max_reasks: int = 2,
        explain_reasks: bool = True,
        provenance: Sequence[str] = (),
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(llm, LLM):
            raise ConfigurationError(
                f"{type(self).__name__}(llm=...) wants an LLM, got {type(llm).__name__}",
                hint='Write llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct").',
            )
        if num_generations < 1 or max_reasks < 0:
            raise ConfigurationError(
                f"{type(self).__name__}: num_generations must be 1 or more and max_reasks 0 or more"
            )
        if llm.extra_body.get("n") not in (None, 1) and self.reads_one_choice:
            raise ConfigurationError(
                f"{type(self).__name__}: extra_body asks for n={llm.extra_body['n']} choices in one answer, and a task"
                " reads one",
                hint="Take n out of extra_body and write num_generations=... on the task: each answer is then a row.",
            )
        self.llm = llm
        self.system_prompt = system_prompt
        self.num_generations = num_generations
        self.group_generations = group_generations
        self.max_reasks = max_reasks
        self.explain_reasks = explain_reasks
        self.provenance: tuple[str, ...] = _provenance(type(self).__name__, provenance)
        if self.provenance:
            self.outputs: tuple[str, ...] = (
                *self.outputs,
                *(name for name in self.provenance if name not in self.outputs),
            )
        self._alone: AloneRunner | None = None
        self._alone_lock = threading.Lock()
        super().__init__(name=name, input_mappings=input_mappings, output_mappings=output_mappings)

    # --- what a subclass writes ----------------------------------------------------------------

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The conversation to send for a row, without the system prompt."""
        raise NotImplementedError

    def parse(self, choice: Choice, row: Row) -> Row:
        """The outputs in an answer. Raises ParseFailure for one that cannot be read."""
        raise NotImplementedError

    def schema(self, row: Row) -> dict[str, Any] | None:
        """A JSON schema that constrains the answer, if the server honours one."""
        return None

    def request_fields(self) -> dict[str, Any]:
        """The task's own request fields (``logprobs``), beside the model's sampling fields."""
        return {}

    def constrains(self) -> bool:
        """Whether answers are held to a JSON schema. By default: whether the task has its own `schema`."""
        return type(self).schema is not Task.schema

    def sample_requests(self) -> list[ModelRequest]:
        """One request of each kind that the task sends to each of its models, to learn what they need of a server
        (`client.needs`). A task that sends others than `messages` leads to overrides this."""
        prompt = prompt_source(self.prompt) if self.prompt is not None else ""
        system = self.system_prompt if isinstance(self.system_prompt, str) else ""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        schema: dict[str, Any] | None = {} if self.constrains() else None
        return [llm.chat(messages, schema=schema, **self.request_fields()) for llm in self.models()]

    def does_without(self) -> frozenset[Feature]:
        """Features without which the task still works, though less well. A schema, by default: prompts name the format
        too, and unreadable answers are requested again."""
        return frozenset({Feature.SCHEMA})

    @classmethod
    def _unwritten(cls) -> list[str]:
        """`messages` and `parse`, unless the class does without them by asking or answering in its own way."""
        own = {
            name
            for name in ("generate", "sample", "answer", "conversation", "messages", "parse")
            if getattr(cls, name) is not getattr(Task, name)
        }
        forgotten = super()._unwritten()
        if not own & {"generate", "sample", "answer"}:
            forgotten += [] if own & {"conversation", "messages"} else ["messages"]
            forgotten += [] if "parse" in own else ["parse"]
        return forgotten

    # --- what the engine calls -----------------------------------------------------------------

    def row_count(self) -> RowCount:
        """`num_generations`, or 1 if they are grouped."""
        if type(self).generate is not Task.generate:
            return "unknown"
        return 1 if self.group_generations else self.num_generations

    def models(self) -> tuple[LLM, ...]:
        """The models this task asks."""
        return (self.llm,)

    def needs(self) -> tuple[Need, ...]:
        """What `sample_requests` need of a server."""
        requests = self.sample_requests()
        seeded = {llm.model for llm in self.models() if llm.sends_seed}
        for request in requests:
            if request.model in seeded:  # as `ask` sends one with each
                request.params.setdefault("seed", SAMPLE_SEED)
        return needs_of(requests, step=self.name, optional=self.does_without())

    def settings(self) -> dict[str, Any]:
        """The step's settings and the prompt's text."""
        settings = super().settings()
        if not self.provenance:
            del settings["provenance"]  # results from before this setting stay valid
        if self.prompt is not None:
            settings["prompt"] = prompt_source(self.prompt)
        return settings

    async def generate(self, row: Row, ctx: Context) -> list[Row]:
        """`num_generations` answers for a row: as many rows of outputs, or one row of lists."""
        sample = self._told if self.provenance else self.sample
        if self.num_generations == 1:
            return [await sample(row, ctx, 0)]
        samples = [sample(row, ctx, i) for i in range(self.num_generations)]
        if not is_own(type(self)):
            samples = [_in_task(each) for each in samples]
        answers = await all_or_error(samples)
        if not self.group_generations:
            return answers
        rows = [checked_outputs(answer, self.outputs, where=self.name) for answer in answers]
        return [{name: [row[name] for row in rows] for name in self.outputs}]

    async def _told(self, row: Row, ctx: Context, number: int) -> Row:
        """`sample`, with the columns of `provenance`."""
        own = ctx.child()
        outputs = await self.sample(row, own, number)
        facts = own.facts()
        return {**outputs, **{name: facts[name] for name in self.provenance}}

    @property
    def own_outputs(self) -> tuple[str, ...]:
        """The outputs without the columns of `provenance`: what a subclass makes."""
        return tuple(name for name in self.outputs if name not in self.provenance)

    def answers_prompt(self) -> bool:
        """True, unless a subclass overrides it."""
        return True

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """The prompt at the start of the request, from the result's provenance; or else the row's or the task's."""
        noted: dict[str, str | None] = ctx.notes.get(SYSTEM_SENT) or {}
        return noted.get(str(number), row.get("system_prompt") or self.system_prompt)

    def samples(self, outputs: list[Row]) -> list[Row]:
        """A result's outputs as one row for each answer, lists of `group_generations` taken apart."""
        if not self.group_generations or self.num_generations == 1 or type(self).generate is not Task.generate:
            return outputs
        return [{name: values[i] for name, values in outputs[0].items()} for i in range(self.num_generations)]

    def sample(self, row: Row, ctx: Context, number: int) -> Coroutine[Any, Any, Row]:
        """One set of outputs, awaited. A task that needs several calls for it overrides this (``async def``)."""
        return self.answer(row, ctx, number)

    async def answer(self, row: Row, ctx: Context, number: int, *, llm: LLM | None = None) -> Row:
        """The outputs in one answer to `messages`."""
        messages = self.conversation(row, ctx)
        # `LLM.chat` refuses anything but a list of messages.
        first: Any = messages[0] if type(messages) is list and messages else None
        is_plain = type(first) is dict and first.get("role") == "user" and not ctx.notes
        if not is_plain or self.system_prompt or row.get("system_prompt"):
            self._note_system(messages, row, ctx, number)
        outputs, completion = await self.ask(
            ctx,
            messages,
            lambda choice: self.parse(choice, row),
            number=number,
            schema=self.schema(row),
            llm=llm,
        )
        if "model_name" in self.outputs:
            outputs["model_name"] = completion.model
        elif "judge_model" in self.outputs:  # beside the name of the model that wrote what is judged
            outputs["judge_model"] = completion.model
        return outputs

    def _note_system(self, messages: list[Message], row: Row, ctx: Context, number: int) -> None:
        """Notes the system prompt that a request begins with, if it is neither the row's nor the task's: training
        examples must hold what was sent."""
        first: Any = messages[0] if isinstance(messages, list) and messages else None
        sent = system_text(messages) if isinstance(first, dict) else None
        told = row.get("system_prompt") or self.system_prompt
        # Most conversations begin as the row or the task says, and there is nothing to compare.
        is_noted = sent == (told or None) and not ctx.notes
        if not is_noted and self.answers_prompt() and (sent or None) != (self.system_sent(row, ctx, number) or None):
            ctx.notes.setdefault(SYSTEM_SENT, {})[str(number)] = sent

    async def ask(
        self,
        ctx: Context,
        messages: list[Message],
        read: Callable[[Choice], T],
        *,
        number: int,
        schema: dict[str, Any] | None = None,
        llm: LLM | None = None,
        fields: dict[str, Any] | None = None,
    ) -> tuple[T, Completion]:
        """One answer as parsed by `read`, requested again if it cannot be parsed.

        Re-ask k has the seed `ctx.seed(number + k * REASK_STRIDE)`, and after the conversation the last unreadable
        answer and the reason (see `explain_reasks`). So runs that get the same answers send the same requests.

        Args:
            number: distinguishes a row's requests (their seeds).
            llm: another model than the task's own.
            fields: sent instead of `request_fields`.
        """
        fields = self.request_fields() if fields is None else fields
        asked = messages
        for reask in range(self.max_reasks + 1):
            seed = ctx.seed(number + reask * REASK_STRIDE)
            completion = await ctx.send((llm or self.llm).chat(asked, schema=schema, seed=seed, **fields))
            choice = completion.choices[0]
            if choice.tool_calls and not self.reads_tool_calls and not choice.text.strip():
                raise RequestFailed(_called_tools(choice), reason="tool_calls", attempts=completion.attempts)
            try:
                return read(choice), completion
            except ParseFailure as failure:
                if reask == self.max_reasks:
                    failure.attempts = reask + 1
                    failure.raw = failure.raw if failure.raw is not None else completion.text
                    raise
                ctx.notes["parse_failures"] = ctx.notes.get("parse_failures", 0) + 1
                asked = self._explained(messages, completion.choices[0], failure)
        raise AssertionError("unreachable: the loop returns or raises")

    def _explained(self, messages: list[Message], choice: Choice, failure: ParseFailure) -> list[Message]:
        """The conversation of a re-ask."""
        is_prefilled = bool(messages) and messages[-1]["role"] == "assistant"
        if not self.explain_reasks or is_prefilled or choice.finish_reason == "length":
            return messages
        if not 0 < len(choice.text) <= REASK_CHARS:
            return messages
        why = REASK.format(why=failure.message.strip().rstrip(".")[:500])
        return [*messages, {"role": "assistant", "content": choice.text}, {"role": "user", "content": why}]

    def conversation(self, row: Row, ctx: Context) -> list[Message]:
        """`messages` with the system prompt before them."""
        return self.with_system(row, self.messages(row, ctx))

    def with_system(self, row: Row, messages: list[Message]) -> list[Message]:
        """A conversation with the row's or the task's system prompt before it, if there is one."""
        system = row.get("system_prompt") or self.system_prompt
        return [{"role": "system", "content": system}, *messages] if system else messages

    # --- alone ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Binds the model to its server (starts it, if it is an embedded one). Idempotent."""
        self._runner()

    def unload(self) -> None:
        """Gives the server connection back; also done when the interpreter exits."""
        with self._alone_lock:
            runner, self._alone = self._alone, None
        if runner is not None:
            runner.close()

    def process(self, rows: list[Row]) -> Iterator[Rows]:
        """Yields one list: the rows with the task's outputs added. Raises RecordError if a row fails."""
        yield self._runner().process(self, rows)

    async def __call__(self, row: Row, *, key: str = "0", run_seed: int = 0) -> list[Row]:
        """The row with the outputs added (several rows if they expand), awaited in a running loop."""
        # Loading may take seconds (an embedded model starts): the caller's loop continues meanwhile.
        runner = self._alone
        if runner is None:
            runner = await asyncio.to_thread(self._runner)
        return await asyncio.wrap_future(runner.submit(self, row, key, run_seed))

    def _runner(self) -> AloneRunner:
        with self._alone_lock:
            if self._alone is None:
                self._alone = AloneRunner(self)
            return self._alone


async def _in_task(sample: Coroutine[Any, Any, T]) -> T:
    """Awaits a user's code in a task of its own, where a SystemExit would end the event loop."""
    try:
        return await sample
    except SystemExit as error:
        raise row_error(error, {}) from error


def _called_tools(choice: Choice) -> str:
    """Why a task cannot use an answer that only calls tools, and what to do."""
    names = [str(call.get("function", {}).get("name")) for call in choice.tool_calls or ()]
    return (
        f"the model called a tool instead of answering: {', '.join(names)[:200]}; remove `tools` from extra_body, or "
        "use a task that takes tools (TextGeneration, ChatGeneration, ToolChat)"
    )


def _provenance(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, checked. Raises ConfigurationError."""
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if name not in PROVENANCE:
            raise ConfigurationError(
                f"{task}(provenance=...) names {name!r}{nearest(str(name), PROVENANCE)}",
                hint=f"Known: {', '.join(PROVENANCE)}.",
            )
    if len(set(given)) < len(given):
        raise ConfigurationError(f"{task}(provenance=...) names a column twice: {', '.join(given)}")
    return given


def text_of(row: Row, name: str) -> str:
    """A text input of a row. Raises TaskFailure for None, blanks and anything but text: a model that is asked
    "None" answers something, and the mistake would pass unnoticed."""
    value = row[name]
    if isinstance(value, str) and value.strip():
        return value
    what = "blank" if isinstance(value, str) else f"{type(value).__name__}, not text"
    raise TaskFailure(f"the input {name!r} is {what}", reason="bad_input")
