"""One model, served once, does several tasks side by side.

    asyncsynth run examples/shared_model.py --embedded --output runs/shared

Expect each instruction with a harder version of itself and an answer to both, all from one server: the pool
gives later steps the free slots first, so that work in flight ends before new work begins.
"""

from pathlib import Path

from asyncsynth import LLM, CombineOutputs, EvolInstruct, LoadJSONL, Pipeline, TextGeneration

llm = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", max_tokens=96)

with Pipeline(name="shared") as pipeline:
    load = LoadJSONL(Path(__file__).with_name("instructions.jsonl"))
    plain = TextGeneration(llm=llm, output_mappings={"generation": "answer"})
    evolve = EvolInstruct(llm=llm, num_evolutions=1)
    harder = TextGeneration(
        llm=llm,
        input_mappings={"instruction": "evolved_instruction"},
        output_mappings={"generation": "answer_to_evolved"},
    )
    both = CombineOutputs()

    load >> [plain, evolve]
    evolve >> harder
    [plain, harder] >> both
