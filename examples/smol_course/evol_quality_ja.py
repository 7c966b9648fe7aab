"""Rewrites an answer into a better one.

    python examples/smol_course/evol_quality_ja.py

Expect the row with an `evolved_response`, from the embedded model.
"""

from asyncsynth import LLM, EvolQuality

llm = LLM.embedded()
evol_quality = EvolQuality(llm=llm, num_evolutions=1)
evol_quality.load()

instruction = "合成データとは何ですか？"
completion = "合成データは、実際の使用状況を模倣する人工的に生成されたデータです。"

print(next(evol_quality.process([{"instruction": instruction, "response": completion}])))
