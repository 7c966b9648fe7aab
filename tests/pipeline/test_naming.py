"""A pipeline without a name has that of its file, wherever it is run from."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.engine.options import RunOptions
from asyncsynth.storage.manifest import Manifest
from tests.kit.user_modules import HEAD, loaded

BODY = """    LoadDataFromDicts([{"instruction": "q"}]) >> TextGeneration(llm=LLM(model="m"), system_prompt=PROMPT)
"""
ONE = f"{HEAD}PROMPT = None\nwith Pipeline() as pipeline:\n{BODY}"


def place(pipeline: Pipeline, **options: object) -> str:
    return pipeline.resolved(RunOptions(**options)).directory.name  # type: ignore[arg-type]


def test_the_name_is_that_of_the_file_however_it_is_edited(tmp_path: Path) -> None:
    with loaded(tmp_path, {"p.py": ONE}) as pipeline:
        assert (pipeline.name, place(pipeline), pipeline.is_named) == ("p", "p", False)
    with loaded(tmp_path, {"p.py": ONE.replace("None", "'Be brief.'")}) as pipeline:
        assert place(pipeline) == "p"
    with loaded(tmp_path, {"p.py": ONE.replace("Pipeline()", "Pipeline('named')")}) as pipeline:
        assert place(pipeline) == "named"


def test_it_is_the_same_when_the_file_is_run_by_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ONE)
    assert runpy.run_path(str(tmp_path / "mine.py"), run_name="__main__")["pipeline"].name == "mine"


def test_a_package_names_it_by_its_folder(tmp_path: Path) -> None:
    for file in ("__init__.py", "__main__.py"):
        (tmp_path / "pool").mkdir(exist_ok=True)
        (tmp_path / "pool" / file).write_text(ONE)
        assert runpy.run_path(str(tmp_path / "pool" / file))["pipeline"].name == "pool"


@pytest.mark.parametrize(
    ("made", "names"),
    [
        ("with Pipeline() as a:\n{0}with Pipeline() as b:\n{0}", {"a": "p", "b": "p-b"}),
        ("with Pipeline('x') as a:\n{0}with Pipeline() as b:\n{0}", {"a": "x", "b": "p"}),
        ("a = Pipeline()\nwith a:\n{0}b = Pipeline(description='two')\nwith b:\n{0}", {"a": "p", "b": "p-b"}),
        (
            "import asyncsynth\nwith asyncsynth.Pipeline() as a:\n{0}with asyncsynth.Pipeline(\n) as b:\n{0}",
            {"a": "p", "b": "p-b"},
        ),
        (
            "def make():\n    return Pipeline()\na = make()\nwith a:\n{0}with Pipeline() as p:\n{0}b = p\n"
            "with Pipeline() as p:\n{0}c = p\n",
            {"a": "p", "b": "p-p", "c": "p-3"},
        ),
    ],
)
def test_several_pipelines_of_a_file_are_told_apart(tmp_path: Path, made: str, names: dict[str, str]) -> None:
    (tmp_path / "p.py").write_text(f"{HEAD}PROMPT = None\n{made.format(BODY)}")
    scope = runpy.run_path(str(tmp_path / "p.py"))
    assert {name: scope[name].name for name in names} == names


def test_a_loop_that_makes_several_keeps_them_apart_and_says_so(tmp_path: Path) -> None:
    def build(temperature: float) -> Pipeline:
        with Pipeline() as pipeline:
            LoadDataFromDicts([{"instruction": "q"}]) >> TextGeneration(llm=LLM(model="m", temperature=temperature))
        return pipeline

    made = [build(temperature) for temperature in (0.1, 0.2, 0.1)]
    assert [place(pipeline) for pipeline in made] == ["test_naming", "test_naming-2", "test_naming"]
    [note] = made[1].resolved(RunOptions()).plan.notes
    assert "made 2 pipelines without a name" in note
    assert place(build(0.3), update=True) == "test_naming", "it is the first one, changed"


def test_what_has_no_file_is_known_by_what_it_does() -> None:
    def build(prompt: str) -> Pipeline:
        scope: dict[str, object] = {}
        exec(compile(ONE.replace("None", repr(prompt)), "<cell 1>", "exec"), scope)  # as a notebook does
        made = scope["pipeline"]
        assert isinstance(made, Pipeline)
        return made

    assert build("a").name == "pipeline"
    assert place(build("a")) == place(build("a")) != place(build("b"))
    assert place(build("a")).startswith("pipeline-")


def test_a_run_that_lies_where_its_content_says_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCSYNTH_RUNS", str(tmp_path / "runs"))
    with loaded(tmp_path, {"p.py": ONE}) as pipeline:
        old = f"pipeline-{pipeline.checked().fingerprint[:8]}"
    (tmp_path / "runs" / old).mkdir(parents=True)
    Manifest("id", "pipeline", 0, "position", {}, [], "").save(tmp_path / "runs" / old)
    with loaded(tmp_path, {"p.py": ONE}) as pipeline:
        assert place(pipeline) == old
    with loaded(tmp_path, {"p.py": ONE.replace("None", "'edited'")}) as pipeline:
        assert place(pipeline) == "p"
