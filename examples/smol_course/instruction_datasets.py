"""Instruction data, a task at a time: prompting, SelfInstruct, EvolInstruct, Magpie.

    python examples/smol_course/instruction_datasets.py

Expect what each task makes of its row, from the embedded model.
"""

from asyncsynth import LLM, EvolInstruct, Magpie, SelfInstruct, TextGeneration

# %%
llm = LLM.embedded()
gen = TextGeneration(llm=llm)
gen.load()

# %%
print(
    next(gen.process([{"instruction": "Generate a questions about the Hugging Face Smol-Course on small AI models."}]))
)

# %%
print(next(gen.process([{"instruction": "What is the purpose of Smol-Course?"}])))

# %%
self_instruct = SelfInstruct(llm=llm)
self_instruct.load()

text = "..."

print(next(self_instruct.process([{"input": text}]))["instructions"][0])

# %%
evol_instruct = EvolInstruct(llm=llm, num_evolutions=1)
evol_instruct.load()

text = "What is the process of generating synthetic data through manual prompting"

print(next(evol_instruct.process([{"instruction": text}])))

# %%
magpie = Magpie(llm=llm)
magpie.load()

print(next(magpie.process([{"system_prompt": "You are a helpful assistant."}])))
