"""ToolChat: the model calls functions, turn by turn; each turn is paid once, and every error is counted."""

import asyncio
import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest

from asyncsynth import LLM, FormSFT, LoadDataFromDicts, Pipeline, ToolChat
from asyncsynth.client.messages import ChatRequest, Choice
from asyncsynth.engine.result import Result
from asyncsynth.errors import ConfigurationError, ParseFailure, PipelineError, RecordError, TaskFailure
from asyncsynth.pipeline import Dropped
from asyncsynth.tasks.tool_schema import Tool
from asyncsynth.testing.faults import Fault, RequestInfo
from tests.kit.loops import run_async
from tests.kit.models import Model, generate
from tests.kit.pipelines import server

M = LLM(model="model-a")


def add(a: int, b: int = 2) -> int:
    """Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


async def greet(name: str, style: Literal["short", "long"] = "short") -> dict[str, Any]:
    """Greets somebody."""
    await asyncio.sleep(0)
    return {"text": f"hello {name}", "style": style}


def call(name: str, arguments: Any, number: int = 1, **more: Any) -> dict[str, Any]:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": given}, **more}


def calling(*calls: dict[str, Any], text: str = "") -> Choice:
    return Choice(text, "tool_calls", tool_calls=list(calls))


def model(*answers: Choice | str) -> Model:
    left = iter(answers)
    return Model(by=lambda _: next(left))


ROW = {"instruction": "How much is 1 + 2?"}


def test_the_model_calls_until_it_answers() -> None:
    asked = model(
        calling(call("add", {"a": 1}), call("greet", {"name": "Ann"}, 2), text="Let me see."),
        calling(call("add", {"a": 3, "b": 4}, 3)),
        " It is 7. ",
    )
    task = ToolChat(llm=M, tools=[add, greet], system_prompt="Be exact.", tool_choice="required")
    [made] = generate(task, ROW, asked)
    conversation = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "How much is 1 + 2?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("add", {"a": 1}), call("greet", {"name": "Ann"}, 2)],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "name": "greet", "content": '{"text":"hello Ann","style":"short"}'},
        {"role": "assistant", "content": None, "tool_calls": [call("add", {"a": 3, "b": 4}, 3)]},
        {"role": "tool", "tool_call_id": "c3", "name": "add", "content": "7"},
        {"role": "assistant", "content": " It is 7. "},
    ]
    # What is sent is what the server said, and each request continues the one before.
    assert [request.messages for request in asked.requests] == [
        conversation[:2], conversation[:5], conversation[:7],
    ]  # fmt: skip
    assert [request.params.get("tool_choice") for request in asked.requests] == ["required", None, None]
    assert len({request.params["seed"] for request in asked.requests}) == 3
    assert {orjson.dumps(request.params["tools"]) for request in asked.requests} == {orjson.dumps(task._schemas)}
    # The training data has the arguments as objects.
    assert made["messages"][2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert [message["role"] for message in made["messages"]] == [message["role"] for message in conversation]
    assert json.loads(made["tools"]) == task._schemas
    assert (made["generation"], made["tool_errors"], made["model_name"]) == ("It is 7.", 0, "model-that-answered")
    as_text = ToolChat(llm=M, tools=[add, greet], system_prompt="Be exact.", arguments="text")
    answers = [calling(call("add", {"a": 1})), "3"]
    [made] = generate(as_text, ROW, model(*answers))
    assert made["messages"][2]["tool_calls"] == [call("add", {"a": 1})]


def test_the_row_is_a_training_example_as_it_is_and_through_form_sft() -> None:
    [made] = generate(ToolChat(llm=M, tools=[add]), ROW, model(calling(call("add", {"a": 1})), "3"))
    formed = FormSFT(input_mappings={"conversation": "messages"}).apply({**ROW, **made})
    assert formed["messages"] == made["messages"]
    assert formed["tools"] == made["tools"]


def test_a_conversation_may_be_given_and_keeps_its_keys() -> None:
    messages = [
        {"role": "system", "content": "S", "cache": 1},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]},
    ]
    asked = model("ok")
    [made] = generate(ToolChat(llm=M, tools=[add], system_prompt="other"), {"messages": messages}, asked)
    assert asked.requests[0].messages == messages
    assert made["messages"] == [*messages, {"role": "assistant", "content": "ok"}]
    with pytest.raises(TaskFailure, match="neither 'messages' nor 'instruction'"):
        generate(ToolChat(llm=M, tools=[add]), {}, model())


def broken(what: str) -> str:
    """Does not work."""
    if what == "record":
        raise RecordError("not this row", reason="mine")
    if what == "drop":
        raise Dropped("unwanted")
    if what == "exit":
        sys.exit("gone")
    if what == "hang":
        threading.Event().wait(5)
    raise ValueError(f"no {what}")


def odd(x: int) -> Any:
    return {x}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (call("nothing", {}), "there is no tool 'nothing'; the tools are add, broken, odd, greet"),
        (call("add", "{a: 1"), "the arguments are not JSON"),
        (call("add", [1]), "the arguments must be a JSON object, not list"),
        (call("add", {}), "the arguments lack 'a'"),
        (call("add", {"a": "one"}), 'a is "one"; integer was expected'),
        (call("add", {"a": 1, "c": 2}), "the arguments have 'c', which is not asked for"),
        (call("greet", {"name": "x", "style": "loud"}), 'style is "loud", none of'),
        (call("broken", {"what": "luck"}), "ValueError: no luck"),
        (call("broken", {"what": "exit"}), "SystemExit: gone"),
        (call("broken", {"what": "hang"}), "broken did not return within 0.5 s"),
    ],
)
def test_an_error_goes_back_to_the_model_and_is_counted(wrong: dict[str, Any], said: str) -> None:
    asked = model(calling(wrong, call("add", {"a": 1}, 2)), "done")
    [made] = generate(ToolChat(llm=M, tools=[add, broken, odd, greet], tool_timeout=0.5), ROW, asked)
    first, second = asked.requests[1].messages[-2:]
    assert first["content"].startswith("Error: ")
    assert said in first["content"]
    assert (first["tool_call_id"], second["content"]) == ("c1", "3")
    assert made["tool_errors"] == 1


def test_a_tool_decides_on_its_row_and_json_alone_is_a_result() -> None:
    for what, kind in (("record", RecordError), ("drop", Dropped)):
        with pytest.raises(kind, match=r"not this row|unwanted"):
            generate(ToolChat(llm=M, tools=[broken]), ROW, model(calling(call("broken", {"what": what}))))
    with pytest.raises(TaskFailure, match="the tool odd returned a value that JSON cannot carry") as caught:
        generate(ToolChat(llm=M, tools=[odd]), ROW, model(calling(call("odd", {"x": 1}))))
    assert caught.value.reason == "not_json"


def test_turns_are_bounded_and_a_cut_call_is_asked_again() -> None:
    endless = Model(by=lambda _: calling(call("add", {"a": 1})))
    with pytest.raises(TaskFailure, match="after max_turns=3 answers") as caught:
        generate(ToolChat(llm=M, tools=[add], max_turns=3), ROW, endless)
    assert caught.value.reason == "too_many_turns"
    assert len(endless.requests) == 3
    cut = Choice("", "length", tool_calls=[call("add", '{"a"')])
    [made] = generate(ToolChat(llm=M, tools=[add]), ROW, model(cut, "3"))
    assert [message["role"] for message in made["messages"]] == ["user", "assistant"]
    with pytest.raises(ParseFailure, match="in the middle of a tool call"):
        generate(ToolChat(llm=M, tools=[add], max_reasks=0), ROW, model(cut))


def test_reasoning_and_missing_ids() -> None:
    thought = Choice("", "tool_calls", reasoning="I add.", tool_calls=[call("add", {"a": 1}, id="")])
    asked = model(thought, Choice("3", reasoning="So."))
    [made] = generate(ToolChat(llm=M, tools=[add], reasoning="field"), ROW, asked)
    assert [message.get("reasoning_content") for message in made["messages"]] == [None, "I add.", None, "So."]
    assert asked.requests[1].messages[1]["reasoning_content"] == "I add."  # type: ignore[typeddict-item]
    assert made["messages"][1]["tool_calls"][0]["id"] == made["messages"][2]["tool_call_id"] == "call_0_0"


def test_several_conversations_a_row() -> None:
    asked = Model(by=lambda request: "7" if request.messages[-1]["role"] == "tool" else calling(call("add", {"a": 5})))
    made = generate(ToolChat(llm=M, tools=[add], num_generations=3), ROW, asked)
    assert [row["generation"] for row in made] == ["7", "7", "7"]
    assert len({request.params["seed"] for request in asked.requests}) == 6


# --- schemas ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Place:
    city: str
    zip: int | None = None


def test_schemas_come_from_signatures() -> None:
    def many(
        a: str, b: list[int], c: dict[str, float], d: int | None = None, *, e: Any = 1, f: Literal[1, "x"] = 1
    ) -> None:
        """Many things.

        :param a: the first
        """

    function = Tool(many).schema["function"]
    assert (function["name"], function["description"]) == ("many", "Many things.")
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "string", "description": "the first"},
            "b": {"type": "array", "items": {"type": "integer"}},
            "c": {"type": "object", "additionalProperties": {"type": "number"}},
            "d": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "e": {"default": 1},
            "f": {"enum": [1, "x"], "default": 1},
        },
        "required": ["a", "b", "c"],
        "additionalProperties": False,
    }


def test_other_types_are_made_by_pydantic() -> None:
    pytest.importorskip("pydantic")
    seen: list[Any] = []

    def visit(place: Place) -> str:
        """Visits."""
        seen.append(place)
        return place.city

    answers = [calling(call("visit", {"place": {"city": "Rome"}})), "ok"]
    [made] = generate(ToolChat(llm=M, tools=[visit]), ROW, model(*answers))
    assert (seen, made["tool_errors"]) == ([Place("Rome")], 0)
    assert Tool(visit).schema["function"]["parameters"]["properties"]["place"]["type"] == "object"
    with pytest.raises(ValueError, match="place"):
        Tool(visit).arguments({"place": {"city": 3}})


def no_hint(x) -> None:  # type: ignore[no-untyped-def]
    pass


def stars(*x: int) -> None:
    pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tools": []}, "a list of functions was expected"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "a list of functions was expected"),
        ({"tools": [add, add]}, "two tools have the name 'add'"),
        ({"tools": [no_hint]}, "its parameter 'x' has no type hint"),
        ({"tools": [stars]}, "cannot be given by name"),
        ({"tools": [add], "max_turns": 0}, "max_turns=0"),
        ({"tools": [add], "tool_timeout": -1}, "timeout=-1"),
        ({"tools": [add], "arguments": "dict"}, "arguments='dict'"),
    ],
)
def test_what_cannot_work_is_refused_where_the_task_is_made(settings: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ToolChat(llm=M, **settings)


def test_a_prompt_is_needed() -> None:
    with Pipeline(name="none") as pipeline:
        LoadDataFromDicts(data=[{"text": "x"}]) >> ToolChat(llm=M, tools=[add])
    with pytest.raises(PipelineError, match="needs the column 'instruction'"):
        pipeline.checked()


# --- in a run --------------------------------------------------------------------------------------


def counting(log: Path) -> Callable[..., Any]:
    """A tool that notes its calls in a file: what it holds itself would be part of the fingerprint."""

    def count(word: str) -> dict[str, int]:
        """Counts letters."""
        with log.open("a") as file:
            file.write(f"{word}\n")
        return {"letters": len(word)}

    return count


def tools_pipeline(log: Path, rows: int = 5, **settings: Any) -> Pipeline:
    with Pipeline(name="tools") as pipeline:
        data = [{"instruction": f"Count {number}."} for number in range(rows)]
        LoadDataFromDicts(data=data) >> ToolChat(llm=M, tools=[counting(log)], **settings)
    return pipeline


@pytest.mark.row(48)
def test_an_interrupted_conversation_pays_no_turn_and_calls_no_tool_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stuck = 0
    is_stuck = True

    def hang_after_tools(info: RequestInfo) -> Fault | None:
        nonlocal stuck
        if is_stuck and b'"role":"tool"' in info.body:
            stuck += 1
            if stuck == 5:
                all_stuck.set()
            return Fault("hang")
        return None

    async def main() -> Result:
        nonlocal is_stuck, all_stuck
        all_stuck = asyncio.Event()
        async with server(script=hang_after_tools, keep_requests=True) as fake:
            options: dict[str, Any] = {"servers": [fake.base_url], "output": tmp_path / "run"}
            run = asyncio.create_task(tools_pipeline(log).arun(**options))
            await all_stuck.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert fake.log is not None
            before, calls = len(fake.log), log.read_text()
            is_stuck = False
            result = await tools_pipeline(log).arun(**options)
            asked = [info.body for info in fake.log[before:] if b"Count " in info.body]
            assert len(asked) == 5
            assert all(b'"role":"tool"' in body for body in asked)
            assert log.read_text() == calls
            return result

    all_stuck: asyncio.Event
    result = run_async(main())
    rows = list(result["default"]["train"])
    assert result.report.complete
    assert len(rows) == 5
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles[:2] == ["user", "assistant"]
        assert roles[-2:] == ["tool", "assistant"]
        assert row["tool_errors"] == 0
        assert isinstance(row["messages"][1]["tool_calls"][0]["function"]["arguments"], dict)


def test_a_server_without_tools_is_refused_before_the_run(tmp_path: Path) -> None:
    from asyncsynth.errors import AsyncsynthError
    from asyncsynth.testing import Abilities

    async def main() -> None:
        async with server(abilities=Abilities(refused=frozenset({"tools"}))) as fake:
            with pytest.raises(AsyncsynthError, match=r"refuses `tools`"):
                await tools_pipeline(tmp_path / "log").arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())


def test_the_code_of_the_tools_is_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> dict[str, Any]:
        return ToolChat(llm=M, tools=[scaled]).settings()

    before = made()
    assert made() == before
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert made() != before
    monkeypatch.undo()
    assert made() == before
    monkeypatch.setattr(scaled, "__doc__", "Another description.")
    assert made() != before


FACTOR = 2


def scaled(x: int) -> int:
    """Scales."""
    return FACTOR * x


def test_requests_are_chats() -> None:
    asked = model("ok")
    generate(ToolChat(llm=M, tools=[add]), ROW, asked)
    assert isinstance(asked.requests[0], ChatRequest)
