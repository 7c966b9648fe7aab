"""Rewrites an answer into a better one.

    python examples/smol_course/evol_quality_vi.py

Expect the row with an `evolved_response`, from the embedded model.
"""

from asyncsynth import LLM, EvolQuality

llm = LLM.embedded()
evol_quality = EvolQuality(llm=llm, num_evolutions=1)
evol_quality.load()

instruction = "Dữ liệu giả lập (synthetic data) là gì?"
completion = "Dữ liệu giả lập là dữ liệu được tạo ra nhân tạo, bắt chước cách sử dụng trong thế giới thực."

print(next(evol_quality.process([{"instruction": instruction, "response": completion}])))
