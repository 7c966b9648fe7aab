"""Magpie at scale, near-duplicates removed, as training examples.

    asyncsynth run examples/magpie_sft.py --embedded --limit 12 --output runs/magpie

Expect conversations that the model made up from its own chat template, each a row with `messages` as TRL's
SFT trainer reads them, the system prompt first. Questions that repeat an earlier one nearly word for word are
dropped and counted, and so are conversations whose answer was cut at max_tokens.
"""

from asyncsynth import LLM, Deduplicate, FormSFT, KeepColumns, MagpieGenerator, Pipeline

# A system prompt says what users will ask about, not what to generate; the weights say how often.
USERS = {
    "math": ("You're an AI assistant that will help users solving math problems.", 0.5),
    "letters": ("You're an AI assistant that will help users writing clear letters.", 0.3),
    "cooking": ("You're an AI assistant that will help users cooking simple meals.", 0.2),
}

with Pipeline(name="magpie") as pipeline:
    conversations = MagpieGenerator(
        llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=1.0, frequency_penalty=0.3, max_tokens=384),
        num_rows=10_000,
        system_prompt=USERS,
    )
    unlike = Deduplicate(columns=["instruction"], method="minhash", threshold=0.7)

    conversations >> unlike >> FormSFT() >> KeepColumns(columns=["messages"])
