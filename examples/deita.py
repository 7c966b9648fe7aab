"""DEITA: evolve instructions and answers, score both, keep the best that are unlike each other.

    asyncsynth run examples/deita.py --embedded --limit 4 --output runs/deita

Expect at most 20 rows, with the highest complexity x quality, no two of them alike. What was left out is
counted as over_budget, too_similar or no_score.
"""

from pathlib import Path

from asyncsynth import (
    LLM,
    ComplexityScorer,
    DeitaFilter,
    EvolComplexity,
    EvolQuality,
    ExpandColumns,
    KeepColumns,
    LoadJSONL,
    Pipeline,
    QualityScorer,
    TextGeneration,
)

WRITER = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=0.8, max_tokens=128)
JUDGE = LLM(model="Qwen/Qwen2.5-7B-Instruct", temperature=0.0, max_tokens=128)

with Pipeline(name="deita") as pipeline:
    load = LoadJSONL(Path(__file__).with_name("instructions.jsonl"), output_mappings={"instruction": "seed"})

    # Versions of each instruction, from the plain one to harder ones, compared with one another.
    harder = EvolComplexity(
        llm=WRITER,
        num_evolutions=2,
        store_evolutions=True,
        include_original_instruction=True,
        input_mappings={"instruction": "seed"},
    )
    complexity = ComplexityScorer(
        llm=JUDGE,
        input_mappings={"instructions": "evolved_instructions"},
        output_mappings={"scores": "complexity_scores"},
    )
    each = ExpandColumns({"evolved_instructions": "instruction", "complexity_scores": "complexity_scores"})

    # An answer to each, and versions of that answer, compared likewise.
    answer = TextGeneration(llm=WRITER, output_mappings={"generation": "response"})
    better = EvolQuality(llm=WRITER, num_evolutions=1, store_evolutions=True, include_original_response=True)
    quality = QualityScorer(
        llm=JUDGE,
        input_mappings={"responses": "evolved_responses"},
        output_mappings={"scores": "quality_scores"},
    )
    versions = ExpandColumns({"evolved_responses": "generation", "quality_scores": "quality_scores"})

    best = DeitaFilter(columns=["instruction", "generation"], data_budget=20)
    keep = KeepColumns(columns=["instruction", "generation", "complexity_scores", "quality_scores"])

    load >> harder >> complexity >> each >> answer >> better >> quality >> versions >> best >> keep
