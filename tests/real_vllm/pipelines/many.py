"""Many short answers of the tiny model: something to interrupt."""

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration

with Pipeline(name="many") as pipeline:
    rows = LoadDataFromDicts(data=lambda: ({"instruction": f"Say something about number {n}."} for n in range(100_000)))
    rows >> TextGeneration(llm=LLM(model="Qwen/Qwen2.5-tiny", max_tokens=64, extra_body={"ignore_eos": True}))
