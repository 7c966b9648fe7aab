"""Two models answer, one rates, pairs are formed: the pooling example on the models that are served here."""

from asyncsynth import LLM, FormPreference, GroupColumns, LoadDataFromDicts, Pipeline, TextGeneration, UltraFeedback

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY = "Qwen/Qwen2.5-tiny"
SUBJECTS = ["a river", "bread", "the moon", "a bridge", "old maps", "a violin", "winter", "a clock"]

with Pipeline(name="pooling") as pipeline:
    data = LoadDataFromDicts(
        data=[{"instruction": f"Tell me {n + 1} things about {SUBJECTS[n % len(SUBJECTS)]}."} for n in range(64)]
    )
    smol = TextGeneration(llm=LLM(model=SMOL, max_tokens=48))
    tiny = TextGeneration(llm=LLM(model=TINY, max_tokens=48))
    group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "generation_models"])
    judge = UltraFeedback(
        llm=LLM(model=SMOL, temperature=0.0, max_tokens=32), rationales=False, one_call=False, expected_rating=True
    )
    data >> [smol, tiny] >> group >> judge >> FormPreference(input_mappings={"ratings": "expected_ratings"})
