"""From documents to judged answers: SelfInstruct, answers, a judge, a filter.

    asyncsynth run examples/documents.py --embedded --output runs/documents

Expect up to three questions per document of examples/documents.jsonl, each answered and rated; answers below
the threshold leave the result as `filtered`, counted.
"""

from pathlib import Path

from asyncsynth import (
    LLM,
    ExpandColumns,
    Filter,
    KeepColumns,
    LoadJSONL,
    MergeColumns,
    Pipeline,
    SelfInstruct,
    TextGeneration,
    UltraFeedback,
)

WRITER = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=0.8, max_tokens=256)
JUDGE = LLM(model="Qwen/Qwen2.5-7B-Instruct", temperature=0.0, max_tokens=64)

with Pipeline(name="documents") as pipeline:
    load = LoadJSONL(Path(__file__).with_name("documents.jsonl"), output_mappings={"text": "input"})
    ask = SelfInstruct(llm=WRITER, num_instructions=3)
    each = ExpandColumns({"instructions": "instruction"})
    answer = TextGeneration(
        llm=WRITER, template="Answer from this text.\n\nText: {{ input }}\n\nQuestion: {{ instruction }}"
    )
    pool = MergeColumns(columns=["generation"], output_column="generations")
    judge = UltraFeedback(llm=JUDGE, aspect="truthfulness", rationales=False)
    good = Filter(lambda row: (row["ratings"][0] or 0) >= 2, columns=["ratings"], reason="rated below 2")
    keep = KeepColumns(columns=["input", "instruction", "generations", "ratings"])

    load >> ask >> each >> answer >> pool >> judge >> good >> keep
