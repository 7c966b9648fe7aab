"""Names that users of distilabel look for, and what to write here. `docs/from-distilabel.md` shows the same table.

Names that are the same in both libraries (`TextGeneration`, `GroupColumns`, ...) are not listed.
"""

from __future__ import annotations

_ANY_SERVER = "LLM(model=..., base_url=...) asks any OpenAI-compatible server"

#: distilabel's name -> (name here or "", what to write)
INSTEAD: dict[str, tuple[str, str]] = {
    "LoadDataFromHub": ("LoadHub", 'LoadHub("owner/name", split="train")'),
    "LoadDataFromDisk": ("LoadDisk", 'LoadDisk("folder")'),
    "LoadDataFromFileSystem": ("LoadJSONL", 'LoadJSONL("rows.jsonl") or LoadParquet("rows.parquet")'),
    "CombineColumns": ("GroupColumns", 'GroupColumns(columns=["generation"])'),
    "FormatTextGenerationSFT": ("FormSFT", "FormSFT()"),
    "FormatChatGenerationSFT": ("FormSFT", "FormSFT(); it reads `messages` as well"),
    "FormatTextGenerationDPO": ("FormPreference", "FormPreference()"),
    "FormatChatGenerationDPO": ("FormPreference", 'FormPreference(layout="conversational")'),
    "MinHashDedup": ("Deduplicate", 'Deduplicate(["instruction"], method="minhash")'),
    "DeitaFiltering": ("DeitaFilter", "DeitaFilter()"),
    "CLAIR": ("Revision", "Revision(llm=...)"),
    "GeneratorStep": ("LoadDataFromDicts", "a loader, or MagpieGenerator; your own source subclasses SourceStep"),
    "Distiset": ("Result", 'pipeline.run() returns a Result: result["default"]["train"]'),
    "RayPipeline": ("Pipeline", "Pipeline(); `asyncsynth run --workers N` uses several processes"),
    "OpenAILLM": ("LLM", 'LLM(model="gpt-4o", base_url="https://api.openai.com/v1"); the key is OPENAI_API_KEY'),
    "vLLM": ("LLM", 'LLM(model="Qwen/Qwen2.5-1.5B-Instruct"), served by `asyncsynth serve` or `vllm serve`'),
    "ClientvLLM": ("LLM", 'LLM(model=..., base_url="http://127.0.0.1:8000/v1")'),
    "LlamaCppLLM": ("LLM", "LLM.embedded(), or llama.cpp's server and LLM(model=..., base_url=...)"),
    "TransformersLLM": ("LLM", "LLM.embedded() runs a small model on this CPU; serve larger ones with vLLM"),
    **dict.fromkeys(
        ("AnyscaleLLM", "AzureOpenAILLM", "GroqLLM", "InferenceEndpointsLLM", "LiteLLM", "MistralLLM", "MlxLLM",
         "OllamaLLM", "SGLang", "TogetherLLM", "VertexAILLM"),
        ("LLM", _ANY_SERVER),
    ),
}  # fmt: skip


def hint(name: str) -> str | None:
    """What to write instead of one of distilabel's names; None for a name that is not one."""
    found = INSTEAD.get(name)
    if found is None:
        return None
    ours, words = found
    return f"asyncsynth has no {name!r}; its name here is {ours}: {words}"
