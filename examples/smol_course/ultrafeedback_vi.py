"""Rates two answers.

    python examples/smol_course/ultrafeedback_vi.py

Expect two `ratings` from 1 to 5 and two `rationales`, from the embedded model.
"""

from asyncsynth import LLM, UltraFeedback

llm = LLM.embedded()
ultrafeedback = UltraFeedback(llm=llm)
ultrafeedback.load()

instruction = "Dữ liệu giả lập (synthetic data) là gì?"
completion_a = "Dữ liệu giả lập là dữ liệu được tạo ra nhân tạo, bắt chước cách sử dụng trong thế giới thực."
completion_b = "Dữ liệu giả lập đề cập đến dữ liệu đã được tạo ra một cách nhân tạo."

print(next(ultrafeedback.process([{"instruction": instruction, "generations": [completion_a, completion_b]}])))
