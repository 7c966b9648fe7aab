"""Right uses of the public names, for the type checkers; nothing runs this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from asyncsynth import (
    LLM,
    ChatGeneration,
    CombineOutputs,
    ComplexityScorer,
    Context,
    Deduplicate,
    DeitaFilter,
    DiversitySelect,
    EvolComplexity,
    EvolInstruct,
    EvolQuality,
    ExpandColumns,
    Filter,
    FormPreference,
    FormSFT,
    GenerateSentencePair,
    GroupColumns,
    InstructionBacktranslation,
    Jury,
    KeepColumns,
    LoadDataFromDicts,
    LoadDisk,
    LoadHub,
    LoadJSONL,
    LoadParquet,
    Magpie,
    MagpieGenerator,
    MergeBranches,
    MergeColumns,
    PairwiseJudge,
    Pipeline,
    QualityScorer,
    RenameColumns,
    Result,
    RetryPolicy,
    Revision,
    RowStep,
    RunOptions,
    SelfInstruct,
    StructuredGeneration,
    Task,
    TaskContext,
    TextClassification,
    TextGeneration,
    ToolChat,
    UltraFeedback,
    step,
    task,
)
from asyncsynth.client.messages import Choice, Message
from asyncsynth.engine.options import RunSettings
from asyncsynth.engine.runner import Runner
from asyncsynth.records import Row
from asyncsynth.tasks.base import TaskSettings

llm = LLM(model="m", temperature=0.2, top_p=0.9, max_tokens=64, stop=["\n"], extra_body={"top_k": 5}, reasoning="keep")
small = LLM.embedded("SmolLM2-135M-Instruct", temperature=0.0, max_tokens=8)
jury = Jury([llm, small], how="median", quorum=1)

# Every task has the settings of all tasks.
TextGeneration(llm, template="{{ text }}", system_prompt="Be brief.", num_generations=2, group_generations=True)
TextGeneration(llm=llm, max_reasks=0, provenance=("server",), name="gen", input_mappings={"instruction": "prompt"})
TextGeneration(llm, output_mappings={"generation": "response"}, name=None, system_prompt=None)
ChatGeneration(llm, system_prompt="Be brief.", num_generations=2, tools=[{"type": "function"}], tool_choice="auto")
ToolChat(llm, tools=[len], max_turns=3, tool_timeout=2.5, arguments="text", reasoning="field", num_generations=2)
SelfInstruct(llm, num_instructions=3, structured=True, max_reasks=1)
EvolInstruct(llm, num_evolutions=2, store_evolutions=True, mutations=["deepen"], check_gain=True, name="evolve")
EvolComplexity(llm, num_evolutions=2, generate_answers=True, provenance=["model"])
EvolQuality(llm, num_evolutions=2, store_evolutions=True, include_original_response=True, num_generations=2)
InstructionBacktranslation(llm, name="score")
Revision(llm, input_mappings={"generation": "response"})
ComplexityScorer(llm, max_reasks=3)
QualityScorer(llm=llm, system_prompt="Be strict.")
UltraFeedback(llm, aspect="honesty", rationales=False, one_call=True, expected_rating=True, name="rate")
UltraFeedback([llm, small], name="rate2")
UltraFeedback(jury)
Magpie(llm, system_prompt=["a", "b"], n_turns=2, end_with_user=True, chat_template="chatml", num_generations=2)
Magpie(llm, system_prompt={"maths": ("You help with maths.", 2.0)}, chat_template=Path("tokenizer_config.json"))
MagpieGenerator(llm, num_rows=3, n_turns=2, name="make", output_mappings={"instruction": "prompt"}, max_reasks=1)
PairwiseJudge(llm, criterion="Which is shorter?", allow_ties=False, rationales=False, max_reasks=1)
StructuredGeneration(llm, schema={"type": "object"}, show_schema=False, dump=False, num_generations=2)
TextClassification(llm, labels={"spam": "unwanted", "ham": "wanted"}, multi_label=True, context="mail", name="label")
GenerateSentencePair(llm, action="query", triplet=True, hard_negative=True, context="", max_reasks=4)

LoadDataFromDicts([{"instruction": "Name a river."}], id_column="instruction", on_bad_row="skip", name="load")
LoadJSONL("rows.jsonl", output_mappings={"prompt": "instruction"})
LoadParquet(Path("rows.parquet"), columns=["instruction"])
LoadDisk("folder", split="train")
LoadHub("owner/name", config="en", split="train", revision="main", streaming=False)
GroupColumns(["generation"], ["generations"], missing="none", name="group")
CombineOutputs(missing="drop")
MergeBranches(name="either")
KeepColumns("instruction")
RenameColumns({"old": "new"}, name="rename")
ExpandColumns({"instructions": "instruction"})
MergeColumns(["a", "b"], "both")
Filter(lambda row: bool(row["score"]), columns="score", reason="low")
Deduplicate(["instruction"], method="minhash", threshold=0.7, action="flag")
DiversitySelect("instruction", n=10, seed=3)
DeitaFilter(["instruction"], data_budget=10, max_similarity=0.4)
FormPreference(layout="standard", rejected="random", min_margin=1.0, keep=["score"])
FormSFT(layout="conversational", truncated="drop", reasoning="field", input_mappings={"generation": "response"})


class Tagged(TextGeneration):
    """A user's task that passes the settings of all tasks on."""

    def __init__(self, llm: LLM, *, tag: str = "x", **settings: Unpack[TaskSettings]) -> None:
        super().__init__(llm, **settings)
        self.tag = tag


class Title(Task):
    """A user's task without a constructor of its own."""

    inputs = ("text",)
    outputs = ("title", "model_name")

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        return [{"role": "user", "content": row["text"]}]

    def parse(self, choice: Choice, row: Row) -> Row:
        return {"title": choice.text}


class Counted(RowStep):
    """A user's step."""

    inputs = ("text",)
    outputs = ("words",)

    def apply(self, row: Row) -> Row:
        return self.merge(row, {"words": len(row["text"].split())})


@step(inputs=["text"], outputs=["words"], optional_inputs=["title"])
def words(row: Row) -> Row:
    return {"words": len(row["text"].split())}


@task(llm=llm, inputs=["text"], outputs=["title"], needs=["chat"])
async def title(row: Row, ctx: TaskContext) -> dict[str, Any]:
    return {"title": (await ctx.chat("Say x.", max_tokens=3, temperature=0)).text}


Tagged(llm, tag="y", system_prompt="Be brief.", num_generations=2)
Title(llm, name="title", num_generations=2)
Counted(name="words", input_mappings={"text": "generation"})
words(name="words")
title(num_generations=2, max_reasks=0)
title(small)

retry = RetryPolicy(record_deadline_s=60.0, budget_ratio=0.5)
options = RunOptions(output="out", servers=["http://127.0.0.1:8000/v1"], limit=3, retry=retry)
kept: RunSettings = {"limit": 3, "seed": 1}


def watch(runner: Runner) -> None:
    """Shows nothing."""


def run(pipeline: Pipeline, rest: dict[str, Any]) -> Result:
    """All options, some of them, and those that a program put together."""
    pipeline.run()
    pipeline.run(output=Path("out"), limit=3, max_failures="5%", embedded=True, answers=False, use_cache=False)
    pipeline.run(on_runner=watch, concurrency=4, window=8, window_bytes=1 << 20, retry_failed=True, update=True)
    pipeline.run(
        on_download=lambda got, of: None,
        on_servers=lambda servers: None,
        on_wait=lambda line: None,
        shard=None,
        share=None,
        start=None,
    )
    pipeline.run(**kept)
    return pipeline.run(**rest)


async def arun(pipeline: Pipeline) -> str:
    """The same in a running loop."""
    async for row in pipeline.stream(leaf="default", servers=("http://127.0.0.1:8000/v1",), seed=3):
        row["instruction"].strip()
    result = await pipeline.arun(on_runner=watch, retry=retry, answers="run")
    return str(result.report.exit_code)
