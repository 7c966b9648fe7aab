"""Wrong uses of the public names: the type checkers must refuse each line marked so. Nothing runs this file."""

from __future__ import annotations

from typing import Any, Unpack

from asyncsynth import (
    LLM,
    ChatGeneration,
    Deduplicate,
    EvolComplexity,
    EvolInstruct,
    EvolQuality,
    FormSFT,
    GenerateSentencePair,
    GroupColumns,
    Jury,
    LoadJSONL,
    Magpie,
    MagpieGenerator,
    MergeBranches,
    PairwiseJudge,
    Pipeline,
    RetryPolicy,
    RowStep,
    RunOptions,
    SelfInstruct,
    StructuredGeneration,
    TaskContext,
    TextClassification,
    TextGeneration,
    ToolChat,
    UltraFeedback,
    step,
    task,
)
from asyncsynth.records import Row
from asyncsynth.tasks.base import TaskSettings

llm = LLM(model="m")

LLM()  # wrong
LLM("m")  # wrong
LLM(model="m", temprature=0.2)  # wrong
LLM.embedded(temprature=0.2)  # wrong
LLM.embedded(max_tokens="8")  # wrong
Jury([llm, llm], quorom=2)  # wrong
RetryPolicy(deadline_s=3.0)  # wrong

TextGeneration()  # wrong
TextGeneration("m")  # wrong
TextGeneration(llm, "{{ text }}")  # wrong
TextGeneration(llm, templat="x")  # wrong
TextGeneration(llm, num_generations="2")  # wrong
ChatGeneration(llm, template="x")  # wrong
ToolChat(llm)  # wrong
ToolChat(llm, tools=[len], arguments="dict")  # wrong
SelfInstruct(llm, num_instruction=3)  # wrong
EvolInstruct(llm, num_evolution=3)  # wrong
EvolComplexity(llm, num_evolutions="3")  # wrong
EvolQuality(llm, max_reask=1)  # wrong
UltraFeedback(llm, aspects="honesty")  # wrong
Magpie(llm, n_turn=2)  # wrong
Magpie(llm, system_prompt=3)  # wrong
MagpieGenerator(llm)  # wrong
MagpieGenerator(llm, num_rows=3, n_turn=2)  # wrong
PairwiseJudge(llm, criteria="x")  # wrong
StructuredGeneration(llm, shema={})  # wrong
TextClassification(llm)  # wrong
TextClassification(llm, labels=["a", "b"], multilabel=True)  # wrong
GenerateSentencePair(llm, tripplet=True)  # wrong

LoadJSONL()  # wrong
LoadJSONL("rows.jsonl", on_bad_row="ignore")  # wrong
LoadJSONL("rows.jsonl", id_colum="id")  # wrong
GroupColumns(["a"], output_column=["b"])  # wrong
MergeBranches("either")  # wrong
Deduplicate(["a"], treshold=0.5)  # wrong
FormSFT(truncate="drop")  # wrong


class Tagged(TextGeneration):
    """A user's task that passes the settings of all tasks on."""

    def __init__(self, llm: LLM, *, tag: str = "x", **settings: Unpack[TaskSettings]) -> None:
        super().__init__(llm, **settings)
        self.tag = tag


class Same(RowStep):
    """A user's step."""

    def apply(self, row: Row) -> Row:
        return row


@step(inputs=["text"], outputs=["words"])
def words(row: Row) -> Row:
    return {"words": len(row["text"].split())}


@task(llm=llm, inputs=["text"], outputs=["title"])
async def title(row: Row, ctx: TaskContext) -> dict[str, Any]:
    return {"title": row["text"]}


Tagged(llm, tagg="y")  # wrong
Tagged(llm, templat="y")  # wrong
Same(nam="x")  # wrong
words(nam="x")  # wrong
title(num_generation=2)  # wrong
step(input=["text"], outputs=["words"])  # wrong
task(inputs=["text"], output=["words"])  # wrong

RunOptions(limits=3)  # wrong
RunOptions(limit="3")  # wrong


async def run(pipeline: Pipeline) -> None:
    """The front door."""
    pipeline.run(limits=3)  # wrong
    pipeline.run(limit="3")  # wrong
    pipeline.run("out")  # wrong
    pipeline.run(leaf="default")  # wrong
    await pipeline.arun(outptu="out")  # wrong
    pipeline.stream(leef="default")  # wrong
    pipeline.stream(seed=None)  # wrong
