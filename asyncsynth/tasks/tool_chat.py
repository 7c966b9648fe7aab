"""`ToolChat`: a model and the user's Python functions, turn by turn, until the model answers."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack, cast

import orjson

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Completion, Message
from asyncsynth.errors import AsyncsynthError, ConfigurationError, ParseFailure, TaskFailure, Withdrawn
from asyncsynth.pipeline.chat_messages import for_templates, system_text
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.dropped import Dropped
from asyncsynth.pipeline.fingerprint import function_identity
from asyncsynth.pipeline.functions import checked_timeout
from asyncsynth.pipeline.lanes import TimedOut
from asyncsynth.pipeline.seen import keepable
from asyncsynth.pipeline.step import ColumnOrigins
from asyncsynth.records import NotPlainJson, Row, plain_json
from asyncsynth.tasks.base import SYSTEM_SENT, Task, TaskSettings, text_of
from asyncsynth.tasks.chat_generation import user_conversation
from asyncsynth.tasks.tool_schema import Tool, ToolFunction, tool_schemas

#: Keeps the seeds of the turns of one conversation apart.
_TURN_STRIDE = 10_000
_MOST_TURNS = 100


class ToolChat(Task):
    """Lets a model call your Python functions, turn by turn, until it answers.

    Columns: ``instruction`` or ``messages`` (a conversation that ends with the user), optionally ``system_prompt`` ->
    ``messages`` (the whole conversation: system prompt, tool calls, results, the answer), ``tools`` (the JSON schemas
    that the model saw, as JSON text), ``generation`` (the answer), ``tool_errors`` (calls that failed), ``model_name``.

    The columns ``messages`` and ``tools`` are training data for tool use as TRL's SFTTrainer takes it.

    A tool is a function with type hints: its name, docstring and hints make the schema that the model sees. It may be
    ``async``; another one runs in a thread. All calls of one answer run at the same time. The arguments are checked
    against the schema. What a function returns is sent as text, or else as JSON. An unknown tool, wrong arguments and
    an exception go back to the model as the call's result, which begins with ``Error:``, and are counted. A tool that
    raises `RecordError` fails the row instead, and `Dropped` leaves it out.

    Each answer and each result is kept in the run directory within a tenth of a second (unless ``--answers none``).
    After a crash the conversation continues from there: stored answers are not paid for again, and their tools are not
    called again. All the code that your functions read is part of the fingerprint.

    Args:
        tools: the functions.
        max_turns: answers of the model for one row, at most. A row whose model still calls tools then fails
            (`too_many_turns`).
        tool_choice: for the first answer, as in the OpenAI API: "auto", "none", "required" or a mapping that names a
            function. Later answers are free ("auto").
        parallel_tool_calls: False asks the server for one call per answer; None leaves it to the server.
        tool_timeout: seconds for one call; a call that takes longer is an error of the tool. None: any number.
        tool_workers: calls at the same time in threads, over all rows.
        arguments: how ``messages`` holds tool calls. "object" is what chat templates and TRL read: arguments as JSON
            objects, and an empty text beside the calls. Export it as JSON Lines: Parquet would give the arguments of
            every call all the names of any call. "text" is what the API has: arguments as JSON text.
        reasoning: "field" keeps the model's reasoning before each answer as the message's `reasoning_content`, and
            sends it with the next request; "drop" leaves it out.
        Others: see `Task`.

    Example::

        def temperature(city: str) -> dict:
            \"\"\"The temperature of today in a city, in degrees Celsius.\"\"\"
            return {"city": city, "celsius": 21}

        chat = ToolChat(llm=LLM(model="Qwen/Qwen2.5-7B-Instruct"), tools=[temperature], max_turns=4)

    ``{"instruction": "How warm is it in Rome?"}`` gives
    ``{"messages": [{"role": "user", "content": "How warm is it in Rome?"}, {"role": "assistant", "content": "",
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "temperature", "arguments": {"city":
    "Rome"}}}]}, {"role": "tool", "tool_call_id": "call_1", "name": "temperature", "content": "{\\"city\\": ...}"},
    {"role": "assistant", "content": "21 degrees."}], "tools": "[...]", "generation": "21 degrees.", "tool_errors": 0,
    "model_name": "Qwen/Qwen2.5-7B-Instruct"}``.

    vLLM needs ``--enable-auto-tool-choice`` and ``--tool-call-parser``; a run tests that before it begins.
    """

    inputs: tuple[str, ...] = ()
    optional_inputs: tuple[str, ...] = ("instruction", "messages", "system_prompt")
    outputs: tuple[str, ...] = ("messages", "tools", "generation", "tool_errors", "model_name")
    needs_work = True
    reads_tool_calls = True
    not_fingerprinted = frozenset(
        {"reads_tool_calls", "max_reasks", "tool_timeout", "tool_workers", "_tools", "_schemas", "_codes"}
    )

    def __init__(
        self,
        llm: LLM,
        *,
        tools: Sequence[ToolFunction],
        max_turns: int = 8,
        tool_choice: str | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        tool_timeout: float | None = None,
        tool_workers: int = 8,
        arguments: Literal["object", "text"] = "object",
        reasoning: Literal["drop", "field"] = "drop",
        **settings: Unpack[TaskSettings],
    ) -> None:
        given = list(tools) if isinstance(tools, (list, tuple)) else []
        if not given or not all(callable(tool) for tool in given):
            raise ConfigurationError(
                f"ToolChat: tools={tools!r:.60}; a list of functions was expected",
                hint="A schema alone cannot be called. TextGeneration(tools=...) takes schemas, and returns the calls.",
            )
        self._schemas = tool_schemas("ToolChat", given)  # refuses names that are there twice
        self._tools = {tool.name: tool for tool in map(Tool, given)}
        if isinstance(max_turns, bool) or not isinstance(max_turns, int) or not 1 <= max_turns <= _MOST_TURNS:
            raise ConfigurationError(f"ToolChat: max_turns={max_turns!r}; 1 to {_MOST_TURNS} was expected")
        if isinstance(tool_workers, bool) or not isinstance(tool_workers, int) or tool_workers < 1:
            raise ConfigurationError(f"ToolChat: tool_workers={tool_workers!r}; 1 or more was expected")
        if arguments not in ("object", "text") or reasoning not in ("drop", "field"):
            raise ConfigurationError(
                f"ToolChat: arguments={arguments!r}, reasoning={reasoning!r}",
                hint='arguments is "object" or "text", reasoning is "drop" or "field".',
            )
        self.tools = given
        self.max_turns = max_turns
        self.tool_choice = tool_choice
        self.parallel_tool_calls = parallel_tool_calls
        self.tool_timeout = checked_timeout("ToolChat: tool", tool_timeout)
        self.tool_workers = tool_workers
        self.arguments = arguments
        self.reasoning = reasoning
        self._codes = {
            name: function_identity(tool.function, where=f"the tool {name}") for name, tool in self._tools.items()
        }
        super().__init__(llm, **settings)

    def settings(self) -> dict[str, Any]:
        """The step's settings, the tools' code, and the schemas, which are part of the prompt."""
        return {**super().settings(), "schemas": self._schemas}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """As for every step; one of `messages` and `instruction` must be there."""
        if self.source_of("messages") not in incoming[0]:
            self.require(incoming[0], ("instruction",))
        return super().flow(incoming)

    def request_fields(self) -> dict[str, Any]:
        """The tools."""
        fields: dict[str, Any] = {"tools": self._schemas}
        if self.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        return fields

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        """The row's conversation, or its instruction as the user's message."""
        if row.get("messages") is not None:
            return user_conversation(row["messages"])
        if "instruction" not in row:
            raise TaskFailure("the row has neither 'messages' nor 'instruction'", reason="bad_input")
        return [{"role": "user", "content": text_of(row, "instruction")}]

    def conversation(self, row: Row, ctx: Context) -> list[Message]:
        """The messages, with the system prompt before them unless they have one."""
        messages = self.messages(row, ctx)
        return messages if system_text(messages) is not None else self.with_system(row, messages)

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One conversation to its end."""
        messages = self.conversation(row, ctx)
        sent = system_text(messages)
        if (sent or None) != (self.system_sent(row, ctx, number) or None):
            ctx.notes.setdefault(SYSTEM_SENT, {})[str(number)] = sent
        errors = 0
        for turn in range(self.max_turns):
            choice, completion = await self._turn(ctx, messages, number, turn)
            messages.append(self._message(choice, turn))
            if choice.tool_calls is None:
                return self._outputs(messages, choice, completion, errors)
            results = await all_or_error(
                [
                    self._result(ctx, call, [number, turn, place])
                    for place, call in enumerate(messages[-1]["tool_calls"])
                ]
            )
            errors += sum(is_error for _, is_error in results)
            messages += [message for message, _ in results]
        raise TaskFailure(
            f"after max_turns={self.max_turns} answers the model still calls tools "
            f"({errors} of the calls failed); raise max_turns, or ask for less",
            reason="too_many_turns",
        )

    async def _turn(self, ctx: Context, messages: list[Message], number: int, turn: int) -> tuple[Choice, Completion]:
        """The model's next answer."""
        fields = self.request_fields()
        if turn == 0 and self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice
        return await self.ask(
            ctx,
            list(messages),  # a copy, because the conversation grows
            _whole,
            number=number + turn * _TURN_STRIDE,
            fields=fields,
        )

    def _message(self, choice: Choice, turn: int) -> Message:
        """An answer as the conversation holds it. Each call gets an id, since some servers send none."""
        message = choice.message()
        if choice.tool_calls is not None:
            message["tool_calls"] = [
                call if call.get("id") else {**call, "id": f"call_{turn}_{place}"}
                for place, call in enumerate(choice.tool_calls)
            ]
        if self.reasoning == "field" and choice.reasoning:
            cast(dict[str, Any], message)["reasoning_content"] = choice.reasoning
        return message

    async def _result(self, ctx: Context, call: dict[str, Any], place: list[int]) -> tuple[Message, bool]:
        """The tool message that answers a call, and whether the call failed."""
        function = call.get("function") or {}
        name, given = str(function.get("name")), function.get("arguments")
        parts = ["tool", name, self._codes.get(name), given, place]
        done = await ctx.once(parts, lambda: self._called(ctx, name, given))
        message: Message = {
            "role": "tool", "tool_call_id": str(call["id"]), "name": name, "content": done["content"],
        }  # fmt: skip
        return message, done["is_error"]

    async def _called(self, ctx: Context, name: str, given: Any) -> dict[str, Any]:
        """The result of a tool as text, or its error."""
        tool = self._tools.get(name)
        if tool is None:
            return _error(f"there is no tool {name!r}; the tools are {', '.join(self._tools)}")
        try:
            arguments = tool.arguments(_parsed(given))
        except ValueError as error:
            return _error(str(error))
        try:
            made = await self._run(ctx, tool, arguments)
        except TimedOut:
            return _error(f"{name} did not return within {self.tool_timeout:g} s")
        except (AsyncsynthError, Dropped, Withdrawn, asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too
            return _error(f"{type(error).__name__}: {keepable(error)}")
        try:
            made = plain_json(made)
        except NotPlainJson as error:
            raise TaskFailure(
                f"the tool {name} returned a value that JSON cannot carry: {error}. {error.advice}", reason="not_json"
            ) from None
        return {"content": made if isinstance(made, str) else orjson.dumps(made).decode(), "is_error": False}

    async def _run(self, ctx: Context, tool: Tool, arguments: dict[str, Any]) -> Any:
        call = partial(tool.function, **arguments)
        if not tool.is_async:
            made = await ctx.work.in_thread(self.name, self.tool_workers, call, timeout=self.tool_timeout)
            if not inspect.isawaitable(made):
                return made
            call = partial(_awaited, made)
        try:
            async with asyncio.timeout(self.tool_timeout) as limit:
                return await call()
        except TimeoutError:
            if limit.expired():
                raise TimedOut(f"{tool.name} did not return") from None
            raise

    def _outputs(self, messages: list[Message], choice: Choice, completion: Completion, errors: int) -> Row:
        if self.arguments == "object":
            messages = [for_templates(message) for message in messages]
        return {
            "messages": messages,
            "tools": json.dumps(self._schemas, ensure_ascii=False),
            "generation": choice.text.strip(),
            "tool_errors": errors,
            "model_name": completion.model,
        }


def _whole(choice: Choice) -> Choice:
    """The answer, unless it ended at max_tokens in the middle of a call."""
    if choice.tool_calls is not None and choice.finish_reason == "length":
        raise ParseFailure("the answer ended at max_tokens in the middle of a tool call; raise max_tokens")
    return choice


def _parsed(given: Any) -> Any:
    """A call's arguments as JSON values. Raises ValueError."""
    if not isinstance(given, str):
        return {} if given is None else given
    try:
        return orjson.loads(given) if given.strip() else {}
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the arguments are not JSON: {error}") from None


def _error(said: str) -> dict[str, Any]:
    return {"content": f"Error: {said}", "is_error": True}


async def _awaited(made: Any) -> Any:
    return await made
