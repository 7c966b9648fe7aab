"""Rewrites an answer into a better one.

    python examples/smol_course/evol_quality.py

Expect the row with an `evolved_response`, from the embedded model.
"""

from asyncsynth import LLM, EvolQuality

llm = LLM.embedded()
evol_quality = EvolQuality(llm=llm, num_evolutions=1)
evol_quality.load()

instruction = "What is synthetic data?"
completion = "Synthetic data is artificially generated data that mimics real-world usage."

print(next(evol_quality.process([{"instruction": instruction, "response": completion}])))
