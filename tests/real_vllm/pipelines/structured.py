"""A schema that holds even for a model that says noise: then it is the server that constrains, not the prompt."""

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, StructuredGeneration

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad", "calm"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "tags"],
    "additionalProperties": False,
}

with Pipeline(name="structured") as pipeline:
    data = LoadDataFromDicts(data=[{"instruction": f"Invent sailor number {n}."} for n in range(32)])
    data >> StructuredGeneration(
        llm=LLM(model="Qwen/Qwen2.5-tiny", temperature=1.0, max_tokens=200),
        schema=SCHEMA,
        show_schema=False,
        max_reasks=0,
    )
