"""Clean an existing preference set by judging its pairs again.

    asyncsynth run examples/rejudge.py --embedded --output runs/rejudge

Expect the pairs of examples/preferences.jsonl with new scores; where the judge disagrees with the old order,
`chosen` and `rejected` have changed places, and pairs with no difference are dropped and counted.
"""

from pathlib import Path

from asyncsynth import LLM, FormPreference, KeepColumns, LoadJSONL, MergeColumns, Pipeline, UltraFeedback

JUDGE = LLM(model="Qwen/Qwen2.5-7B-Instruct", temperature=0.0, max_tokens=64)

with Pipeline(name="rejudge") as pipeline:
    load = LoadJSONL(
        Path(__file__).with_name("preferences.jsonl"),
        output_mappings={"prompt": "instruction", "chosen": "old_chosen", "rejected": "old_rejected"},
    )
    pool = MergeColumns(columns=["old_chosen", "old_rejected"], output_column="generations")
    judge = UltraFeedback(llm=JUDGE, rationales=False, one_call=False, expected_rating=True)
    pairs = FormPreference(input_mappings={"ratings": "expected_ratings"})
    keep = KeepColumns(columns=["prompt", "chosen", "rejected", "score_chosen", "score_rejected"])

    load >> pool >> judge >> pairs >> keep
