"""`@task`: makes a task of an async function, with everything that tasks have: seeds, re-asks, checkpoints,
provenance."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from asyncsynth.calling import checked
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Completion, Message, ModelRequest
from asyncsynth.client.needs import Feature, Need
from asyncsynth.errors import ConfigurationError, ParseFailure, PipelineError
from asyncsynth.pipeline.chat_messages import system_text
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.functions import checked_outputs, checked_timeout, declared_columns
from asyncsynth.pipeline.making import SYSTEM_OF, end_of
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.tasks.base import REASK_STRIDE, Task, TaskSettings
from asyncsynth.tasks.tool_schema import ToolGiven, tool_schemas

#: Keeps the seeds of the calls within one sample apart.
_CALL_STRIDE = 10_000
#: In a result's provenance: the system prompts that its requests began with.
_SYSTEM = "system_prompts"


class TaskContext:
    """What a `@task` function sees besides its row: the model, and everything else that decides a result.

    Attributes:
        llm: the task's model.
        key: the row's key in the run.
        notes: small JSON that is kept with the result.
    """

    __slots__ = ("_calls", "_context", "_sample", "_sent", "key", "llm", "notes")

    def __init__(self, context: Context, llm: LLM, sample: int) -> None:
        self._context = context
        self._sample = sample
        self._calls = 0
        self._sent: list[list[str | None]] = []  #: the end of each answer, and the system prompt sent for it
        self.llm: LLM = llm
        self.key: str = context.key
        self.notes: dict[str, Any] = context.notes

    async def chat(
        self,
        messages: str | list[Message],
        *,
        schema: dict[str, Any] | None = None,
        tools: Sequence[ToolGiven] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        **overrides: Any,
    ) -> Completion:
        """Asks the task's model. Each call has a seed of its own, the same after a resume.

        Args:
            messages: sent unchanged, with all their keys; or a text, sent as the user's only message. A row's or
                the task's system prompt is *not* added.
            schema: constrains the answer to JSON.
            tools: tools that the model may call: schemas of the OpenAI API, or functions, which become schemas. The
                calls are in ``completion.choices[0].tool_calls``; ``choices[0].message()`` continues the conversation.
            tool_choice: as in the OpenAI API.
            overrides: other request fields (``temperature=0``).

        Raises RequestFailed if the call ends without a completion; `completion.text` is the answer.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if tools is not None:
            overrides["tools"] = tool_schemas("ctx.chat", tools)
        if tool_choice is not None:
            overrides["tool_choice"] = tool_choice
        return await self.send(self.llm.chat(messages, schema=schema, **{"seed": self.seed(), **overrides}))

    async def complete(self, prompt: str, **overrides: Any) -> Completion:
        """Raw completion: the prompt is sent unchanged, without a chat template."""
        return await self.send(self.llm.complete(prompt, **{"seed": self.seed(), **overrides}))

    async def send(self, request: ModelRequest) -> Completion:
        """A request of your own making, to a model that the task names (its `llm`)."""
        system = system_text(request.messages) if isinstance(request, ChatRequest) else None
        if system is not None:
            # Kept with the result: training examples hold the prompt that was sent, and only the request shows it.
            sent = self.notes.setdefault(_SYSTEM, [])
            if system not in sent:
                sent.append(system)
        completion = await self._context.send(request)
        self._sent += [[end_of(choice.text), system] for choice in completion.choices]
        return completion

    def note_systems(self, *, several: bool) -> None:
        """Notes which answer was made under which system prompt, if more than one was sent, or may have been."""
        systems = {system for _, system in self._sent}
        if len(systems) > 1 or (several and systems != {None}):
            self.notes.setdefault(SYSTEM_OF, []).extend(self._sent)

    def seed(self) -> int:
        """The next sampling seed of this row."""
        self._calls += 1
        return self._context.seed(self._sample + (self._calls - 1) * _CALL_STRIDE)

    def rng(self, purpose: str = "") -> random.Random:
        """A generator for the row's own choices: the same ones after a resume."""
        return self._context.rng(f"{purpose}/{self._sample}")


TaskFunction = Callable[[Row, TaskContext], Awaitable[Mapping[str, Any]]]


class FunctionTask(Task):
    """A task that calls an async function; what `@task` makes.

    Columns: the decorator's; ``model_name`` and ``judge_model`` are filled in if they are declared and not returned.

    Args:
        llm: another model than the decorator's.
        timeout: another time limit than the decorator's.
        Others: see `Task`. The function itself handles `system_prompt`.
    """

    reads_one_choice = False
    function: ClassVar[Any]
    default_llm: ClassVar[LLM | None] = None
    declared_needs: ClassVar[tuple[Feature, ...]] = ()
    default_timeout: ClassVar[float | None] = None
    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"timeout", "default_timeout"})

    def __init__(
        self, llm: LLM | None = None, *, timeout: float | None = None, **settings: Unpack[TaskSettings]
    ) -> None:
        if not hasattr(type(self), "function"):
            raise PipelineError("FunctionTask is made by @task", hint="@task(llm=..., inputs=[...], outputs=[...])")
        chosen = llm if llm is not None else self.default_llm
        if chosen is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no model",
                hint=f"Give @task(llm=...) one, or write {type(self).__name__}(llm=...).",
            )
        self.timeout = self.default_timeout if timeout is None else checked_timeout(type(self).__name__, timeout)
        super().__init__(chosen, **settings)

    def needs(self) -> tuple[Need, ...]:
        """The decorator's arguments; the function's requests are not known before it runs."""
        return tuple(Need(step=self.name, model=self.llm.model, feature=feature) for feature in self.declared_needs)

    def code_roots(self) -> dict[str, Any]:
        """The function, and the columns that it is declared with."""
        declared = {"inputs": self.inputs, "outputs": self.outputs, "optional_inputs": self.optional_inputs}
        return {"function": self.function, **{f"({name})": columns for name, columns in declared.items()}}

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """The prompt that the function sent. If it sent several, `SYSTEM_OF` in the notes tells which answer had which;
        a text that is none of the answers may have any of them."""
        sent = ctx.notes.get(_SYSTEM) or []
        return sent[0] if len(sent) == 1 else None

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One call of the function; again, with other seeds, when it raises ParseFailure."""
        for reask in range(self.max_reasks + 1):
            context = TaskContext(ctx, self.llm, number + reask * REASK_STRIDE)
            try:
                made = await self.function(SeenRow(row), context)
            except ParseFailure as failure:
                if reask == self.max_reasks:
                    failure.attempts = reask + 1
                    if failure.raw is None and ctx.completions:
                        failure.raw = ctx.completions[-1].text
                    raise
                ctx.notes["parse_failures"] = ctx.notes.get("parse_failures", 0) + 1
                continue
            context.note_systems(several=self.num_generations > 1)
            outputs = checked_outputs(made, self.own_outputs, where=self.name, filled=("model_name", "judge_model"))
            for column in ("model_name", "judge_model"):
                if column in self.outputs and column not in outputs:
                    outputs[column] = ctx.completions[-1].model if ctx.completions else self.llm.model
            return outputs
        raise AssertionError("unreachable: the loop returns or raises")


@checked
def task(
    *,
    inputs: Iterable[str],
    outputs: Iterable[str],
    llm: LLM | None = None,
    optional_inputs: Iterable[str] = (),
    needs: Iterable[str] = (),
    timeout: float | None = None,
) -> Callable[[TaskFunction], type[FunctionTask]]:
    """Makes a task of an async function: ``(row, ctx) -> dict`` of its outputs.

    Args:
        inputs: columns that the function reads; its row holds these (and `optional_inputs`, where the row has
            them) and nothing else.
        outputs: columns that it returns; all of them, and no others. ``model_name`` is filled in, and so is
            ``judge_model``: declare that one in a task that judges, so that the row keeps the name of the model that
            wrote what is judged.
        llm: the model that `ctx.chat` asks; may be given, or changed, when the task is used.
        needs: features that the function requires of the server, tested before a run begins: ``"chat"``,
            ``"completions"``, ``"stop"``, ``"schema"``, ``"logprobs"``, ``"n"``, ``"prefill"``.
        timeout: seconds that the function may take for a row, apart from waiting for models' answers. A row whose call
            takes longer fails (`timeout`). It ends only code that awaits.

    The function raises `ParseFailure` for an answer that it cannot read: it is then called again, up to
    `max_reasks` times, with other seeds. Any other exception fails its row only. All the code and all
    the values that it reads belong to the checkpoint fingerprint: after an edit, the function is called again. Requests
    that stay the same are answered from those kept (``--answers``).

    Example::

        @task(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"), inputs=["text"], outputs=["title", "model_name"])
        async def make_title(row, ctx):
            completion = await ctx.chat(f"Write a title for this text: {row['text']}", max_tokens=30)
            return {"title": completion.text.strip()}

        with Pipeline() as pipeline:
            LoadJSONL("texts.jsonl") >> make_title()

    ``{"text": "Rain fell for three days ..."}`` becomes ``{"text": ..., "title": "Three Days of Rain",
    "model_name": "Qwen/Qwen2.5-1.5B-Instruct"}``.
    """
    if llm is not None and not isinstance(llm, LLM):
        raise ConfigurationError(f"@task(llm=...) wants an LLM, got {type(llm).__name__}")
    checked_timeout("@task", timeout)
    features = tuple(_feature(need) for need in ([needs] if isinstance(needs, str) else needs))
    columns = {
        "inputs": declared_columns("@task", "inputs", inputs),
        "outputs": declared_columns("@task", "outputs", outputs),
        "optional_inputs": declared_columns("@task", "optional_inputs", optional_inputs),
    }

    def decorate(function: TaskFunction) -> type[FunctionTask]:
        if not inspect.iscoroutinefunction(function):
            raise PipelineError(
                f"@task: {getattr(function, '__name__', function)!r} is not an async function",
                hint="Write `async def name(row, ctx):`; a function that asks no model is a @step.",
            )
        members = {
            **columns,
            "function": staticmethod(function),
            "default_llm": llm,
            "declared_needs": features,
            "default_timeout": timeout,
            "__doc__": function.__doc__,
        }
        made = type(function.__name__, (FunctionTask,), members)
        made.__module__, made.__qualname__ = function.__module__, function.__qualname__
        return made

    return decorate


def _feature(name: str) -> Feature:
    known = [str(feature) for feature in Feature if feature is not Feature.CONTEXT]
    if name not in known:
        raise ConfigurationError(f"@task(needs=...) names {name!r}{nearest(str(name), known)}", hint=f"Known: {known}")
    return Feature(name)
