"""Rates two answers.

    python examples/smol_course/ultrafeedback_ja.py

Expect two `ratings` from 1 to 5 and two `rationales`, from the embedded model.
"""

from asyncsynth import LLM, UltraFeedback

llm = LLM.embedded()
ultrafeedback = UltraFeedback(llm=llm)
ultrafeedback.load()

instruction = "合成データとは何ですか？"
completion_a = "合成データは、実際の使用状況を模倣する人工的に生成されたデータです。"
completion_b = "合成データとは、人工的に生成されたデータを指します。"

print(next(ultrafeedback.process([{"instruction": instruction, "generations": [completion_a, completion_b]}])))
