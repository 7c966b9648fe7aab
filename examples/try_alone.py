"""A task on its own, before it is wired into a pipeline: in a notebook, or as a script.

    python examples/try_alone.py

Expect the answers of the embedded model to two instructions, in order, with the model that gave them.
"""

from asyncsynth import LLM, TextGeneration

task = TextGeneration(llm=LLM.embedded(temperature=0.3, max_tokens=48), system_prompt="Answer in one sentence.")
task.load()

rows = next(task.process([{"instruction": "What is a mutex?"}, {"instruction": "What is a semaphore?"}]))
for row in rows:
    print(f"{row['instruction']} -> {row['generation']}  [{row['model_name']}]")

task.unload()
