"""Rates two answers.

    python examples/smol_course/ultrafeedback.py

Expect two `ratings` from 1 to 5 and two `rationales`, from the embedded model.
"""

from asyncsynth import LLM, UltraFeedback

llm = LLM.embedded()
ultrafeedback = UltraFeedback(llm=llm)
ultrafeedback.load()

instruction = "What is synthetic data?"
completion_a = "Synthetic data is artificially generated data that mimics real-world usage."
completion_b = "Synthetic data refers to data that has been generated artificially."

print(next(ultrafeedback.process([{"instruction": instruction, "generations": [completion_a, completion_b]}])))
