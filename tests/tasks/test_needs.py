"""Every task says what its requests ask of a server: each is driven, and what it really sends is compared."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import orjson
import pytest

import asyncsynth.tasks
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice, Completion, ModelRequest
from asyncsynth.client.needs import Feature, Need, features_of
from asyncsynth.errors import ConfigurationError, RecordError
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task
from asyncsynth.tasks.chat_generation import ChatGeneration
from asyncsynth.tasks.complexity_scorer import ComplexityScorer
from asyncsynth.tasks.evol_complexity import EvolComplexity
from asyncsynth.tasks.evol_instruct import EvolInstruct
from asyncsynth.tasks.evol_quality import EvolQuality
from asyncsynth.tasks.instruction_backtranslation import InstructionBacktranslation
from asyncsynth.tasks.magpie import Magpie
from asyncsynth.tasks.pairwise_judge import PairwiseJudge
from asyncsynth.tasks.quality_scorer import QualityScorer
from asyncsynth.tasks.revision import Revision
from asyncsynth.tasks.self_instruct import SelfInstruct
from asyncsynth.tasks.sentence_pair import GenerateSentencePair
from asyncsynth.tasks.structured_generation import StructuredGeneration
from asyncsynth.tasks.task_decorator import FunctionTask, task
from asyncsynth.tasks.text_classification import TextClassification
from asyncsynth.tasks.text_generation import TextGeneration
from asyncsynth.tasks.tool_chat import ToolChat
from asyncsynth.tasks.ultra_feedback import UltraFeedback
from asyncsynth.testing.answers import schema_instance

M = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", max_tokens=50)
OTHER = LLM(model="judge-2", max_tokens=70, extra_body={"top_k": 5})
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
EVOLVED = "Explain why the ocean rises twice each day, citing the moon, the sun and local geography in detail."
ROW: Row = {
    "instruction": "Explain why the ocean rises.",
    "response": "Because of the moon, mostly.",
    "generation": "Because of the moon, mostly.",
    "generations": ["The moon pulls.", "The sun pushes."],
    "instructions": ["Name a colour.", "Prove a theorem."],
    "responses": ["Red.", "QED."],
    "messages": [{"role": "user", "content": "Hi"}],
    "input": "Tides come from the moon.",
    "text": "What a lovely day.",
    "anchor": "The cat sleeps.",
    "schema": SCHEMA,
}


def look_up(word: str) -> str:
    """Looks a word up."""
    return word


class Server:
    """Answers as an obedient model, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []

    async def send(self, request: ModelRequest) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)
        if isinstance(request, ChatRequest) and request.schema is not None:
            text = orjson.dumps(schema_instance(request.schema, b"%d" % len(self.requests))).decode()
        else:
            text = EVOLVED
        return Completion([Choice(text, "stop")], model=request.model)


def sent_by(made: Task) -> dict[tuple[str, Feature], int]:
    """The features of all requests that the task sends for a row, with the largest amounts."""
    server = Server()
    columns = (*made.inputs, *made.optional_inputs)
    row = {name: value for name, value in ROW.items() if name in columns}
    context = Context(key="0", run_seed=0, step_id="s", send=server.send)
    with contextlib.suppress(RecordError):  # an answer that it cannot read: what it sent is what matters here
        asyncio.run(made.generate(row, context))
    found: dict[tuple[str, Feature], int] = {}
    for request in server.requests:
        for feature, amount in features_of(request).items():
            key = (request.model, feature)
            found[key] = max(amount, found.get(key, 0))
    assert found, f"{made!r} sent nothing"
    return found


CASES: list[Callable[[], Task]] = [
    lambda: TextGeneration(M),
    lambda: ChatGeneration(M),
    lambda: ToolChat(M, tools=[look_up]),
    lambda: StructuredGeneration(M, schema=SCHEMA),
    lambda: StructuredGeneration(M, show_schema=False),
    lambda: TextClassification(M, labels=["good", "bad"]),
    lambda: GenerateSentencePair(M),
    lambda: SelfInstruct(M),
    lambda: SelfInstruct(M, structured=True),
    lambda: InstructionBacktranslation(M),
    lambda: Revision(M),
    lambda: ComplexityScorer(M),
    lambda: QualityScorer(M),
    lambda: PairwiseJudge(M),
    lambda: UltraFeedback(M),
    lambda: UltraFeedback(M, expected_rating=True, one_call=False),
    lambda: UltraFeedback([M, OTHER], expected_rating=True),
    lambda: EvolInstruct(M),
    lambda: EvolInstruct(M, check_gain=True),
    lambda: EvolInstruct(M, generate_answers=True),
    lambda: EvolComplexity(M),
    lambda: EvolQuality(M),
    lambda: Magpie(M),
    lambda: Magpie(M, only_instruction=True, max_instruction_tokens=80),
    lambda: Magpie(M, n_turns=3, end_with_user=True),
]


@pytest.mark.parametrize("make", CASES, ids=lambda make: type(make()).__name__)
def test_a_task_declares_what_it_sends(make: Callable[[], Task]) -> None:
    made = make()
    declared = {(need.model, need.feature): need.amount for need in made.needs()}
    assert declared == sent_by(made)


@pytest.mark.parametrize("make", CASES, ids=lambda make: type(make()).__name__)
def test_the_fields_to_be_tried_are_those_that_are_sent(make: Callable[[], Task]) -> None:
    made, server = make(), Server()
    row = {name: value for name, value in ROW.items() if name in (*made.inputs, *made.optional_inputs)}
    with contextlib.suppress(RecordError):
        asyncio.run(made.generate(row, Context(key="0", run_seed=0, step_id="s", send=server.send)))
    for request in server.requests:
        feature = Feature.CHAT if isinstance(request, ChatRequest) else Feature.COMPLETIONS
        [need] = [need for need in made.needs() if (need.model, need.feature) == (request.model, feature)]
        assert set(request.params) == set(need.fields)


def test_no_task_is_missing_here() -> None:
    kinds = {type(make()) for make in CASES}
    for module in pkgutil.iter_modules(asyncsynth.tasks.__path__):
        members = vars(importlib.import_module(f"asyncsynth.tasks.{module.name}")).values()
        for found in members:
            if isinstance(found, type) and issubclass(found, Task) and not inspect.isabstract(found):
                concrete = bool(found.outputs) and hasattr(found, "generate")
                is_base = any(issubclass(other, found) and other is not found for other in kinds)
                if concrete and not is_base and found is not FunctionTask:
                    assert found in kinds, f"{found.__name__} has no case in this test"


def required(made: Task) -> set[str]:
    return {str(need.feature) for need in made.needs() if need.required} - {"chat", "context"}


def test_what_a_task_cannot_do_without() -> None:
    assert required(StructuredGeneration(M, schema=SCHEMA)) == set()
    assert required(StructuredGeneration(M, schema=SCHEMA, show_schema=False)) == {"schema"}
    assert required(UltraFeedback(M)) == set()
    assert required(UltraFeedback(M, expected_rating=True)) == {"logprobs"}
    assert required(Magpie(M)) == {"completions"}


def test_a_prompt_and_earlier_turns_take_room() -> None:
    def room(made: Task) -> int:
        return max(need.prompt_tokens for need in made.needs() if need.feature is Feature.CONTEXT)

    assert room(UltraFeedback(M)) > room(TextGeneration(M))
    assert room(Magpie(M, n_turns=3, end_with_user=True)) - room(Magpie(M)) == 2 * (512 + 50)


def test_a_function_says_what_it_needs() -> None:
    @task(llm=M, inputs=["text"], outputs=["title"], needs=["logprobs", "prefill"])
    async def titled(row: Row, ctx: Any) -> Row:
        return {"title": "x"}

    assert titled().needs() == (
        Need(step="titled", model=M.model, feature=Feature.LOGPROBS),
        Need(step="titled", model=M.model, feature=Feature.PREFILL),
    )
    with pytest.raises(ConfigurationError, match=r"'logprob' \(did you mean 'logprobs'"):
        task(llm=M, inputs=["text"], outputs=["title"], needs=["logprob"])
