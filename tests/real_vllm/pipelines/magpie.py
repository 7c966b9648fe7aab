"""Instructions and answers out of the chat template alone, on a real tokenizer and a real template."""

from asyncsynth import LLM, MagpieGenerator, Pipeline

with Pipeline(name="magpie") as pipeline:
    MagpieGenerator(
        llm=LLM(model="HuggingFaceTB/SmolLM2-135M-Instruct", temperature=1.0, max_tokens=64),
        num_rows=24,
        max_instruction_tokens=128,
    )
