"""Model pooling, then rating, then preference pairs.

    asyncsynth run examples/preference.py --embedded --output runs/preference

Expect one pair per instruction whose two answers were rated differently: `prompt`, `chosen`, `rejected`,
both scores and both models, in runs/preference/result.jsonl. With --embedded one small model answers for
both names (and is named as the one that did); with two servers, the pool is the two models named here.
"""

from pathlib import Path

from asyncsynth import (
    LLM,
    FormPreference,
    GroupColumns,
    KeepColumns,
    LoadJSONL,
    Pipeline,
    TextGeneration,
    UltraFeedback,
)

SMOL = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
QWEN = "Qwen/Qwen2.5-1.5B-Instruct"

with Pipeline(name="preference") as pipeline:
    data = LoadJSONL(Path(__file__).with_name("instructions.jsonl"))

    # Two unlike voices: other models, and other settings too, so that the pool differs even on one model.
    # Room for whole answers: one that is cut at max_tokens is no training target. The penalty keeps a small model from
    # repeating itself until it is cut.
    careful = TextGeneration(
        llm=LLM(model=QWEN, temperature=0.3, frequency_penalty=0.5, max_tokens=384),
        system_prompt="You are a careful expert. Answer correctly and to the point, in one or two short sentences.",
    )
    casual = TextGeneration(
        llm=LLM(model=SMOL, temperature=1.0, frequency_penalty=0.5, max_tokens=384),
        system_prompt="You are a chatty friend. Answer off the top of your head, in one short sentence.",
    )
    group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
    # Each answer is rated alone (no place is the better place), by the rating to be expected from the judge's
    # token probabilities: finer than whole numbers, so there are hardly any ties.
    judge = UltraFeedback(
        llm=LLM(model=QWEN, temperature=0.0, max_tokens=64), rationales=False, one_call=False, expected_rating=True
    )
    pairs = FormPreference(input_mappings={"ratings": "expected_ratings"})
    keep = KeepColumns(
        columns=["prompt", "chosen", "rejected", "score_chosen", "score_rejected", "chosen_model", "rejected_model"]
    )

    data >> [careful, casual] >> group >> judge >> pairs >> keep

if __name__ == "__main__":
    result = pipeline.run(embedded=True, output="runs/preference")
    print(result["default"]["train"][0])
