"""A question, then its answer: outputs renamed by output_mappings.

    asyncsynth run examples/smol_course/pipeline.py --embedded

Expect one row with an `instruction` and a `response`.
"""

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration

with Pipeline() as pipeline:
    data = LoadDataFromDicts(data=[{"instruction": "Generate a short question about the Hugging Face Smol-Course."}])
    llm = LLM(model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
    gen_a = TextGeneration(llm=llm, output_mappings={"generation": "instruction"})
    gen_b = TextGeneration(llm=llm, output_mappings={"generation": "response"})
    data >> gen_a >> gen_b

if __name__ == "__main__":
    distiset = pipeline.run(use_cache=False)
    print(distiset["default"]["train"][0])
