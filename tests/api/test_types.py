"""The type checkers refuse every wrong use and accept every right one; what is written twice is the same."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import asyncsynth
from asyncsynth import LLM, Magpie, Pipeline, RunOptions, Step, Task
from asyncsynth.client.llm import LLMSettings
from asyncsynth.engine.options import RunSettings
from asyncsynth.tasks.base import SettingsWithoutPrompt, TaskSettings
from asyncsynth.tasks.magpie import MagpieSettings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent


def marked() -> set[int]:
    """The lines of wrong.py that must be refused."""
    lines = (HERE / "wrong.py").read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}


def checked(command: list[str]) -> str:
    """What a type checker says of both files."""
    # The program finds the Python whose packages it looks at by PATH.
    environ = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode < 2, done.stdout + done.stderr
    return done.stdout


def pyright() -> str:
    """The path of pyright, or skips: it is no dependency, since it brings Node along."""
    found = shutil.which("pyright", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("pyright is not installed")
    return found


def refused(found: list[tuple[str, int, str]]) -> set[int]:
    """The lines of wrong.py among (file, line, message); there must be none of the other file."""
    assert not [error for error in found if error[0] != "wrong.py"]
    return {line for _, line, _ in found}


def test_mypy_refuses_the_wrong_uses_and_no_others() -> None:
    said = checked([sys.executable, "-m", "mypy", "tests/api/right.py", "tests/api/wrong.py"])
    found = re.findall(r"^tests/api/(\w+\.py):(\d+): error: (.*)$", said, re.MULTILINE)
    assert refused([(file, int(line), text) for file, line, text in found]) == marked()


def test_pyright_refuses_the_wrong_uses_and_no_others() -> None:
    said = json.loads(checked([pyright(), "--outputjson", "tests/api/right.py", "tests/api/wrong.py"]))
    errors = [each for each in said["generalDiagnostics"] if each["severity"] == "error"]
    found = [(Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"]) for each in errors]
    assert refused(found) == marked()


def test_pyright_knows_the_types_of_the_public_symbols() -> None:
    said = json.loads(checked([pyright(), "--outputjson", "--verifytypes", "asyncsynth", "--ignoreexternal"]))
    report = said["typeCompleteness"]
    if not report["symbols"]:
        pytest.skip("asyncsynth is not installed where pyright looks")
    unknown = [each["name"] for each in report["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    assert report["completenessScore"] >= 0.98, unknown


# --- one definition ----------------------------------------------------------------------------------------------


def keywords(function: Any) -> dict[str, Any]:
    """The parameters that are given by name only, with their types."""
    hints = get_type_hints(function)
    named = inspect.signature(function).parameters.values()
    return {each.name: hints[each.name] for each in named if each.kind is each.KEYWORD_ONLY}


def test_the_keywords_of_run_are_the_fields_of_its_options() -> None:
    fields = {field.name: field for field in dataclasses.fields(RunOptions)}
    assert list(get_type_hints(RunSettings)) == list(fields)
    assert get_type_hints(RunSettings) == get_type_hints(RunOptions)
    # No keyword is required, so each field has a default.
    assert not RunSettings.__required_keys__
    empty = dataclasses.MISSING
    assert not [name for name, one in fields.items() if one.default is empty and one.default_factory is empty]


@pytest.mark.parametrize("method", ["run", "arun", "stream"])
def test_the_ways_to_run_take_the_same_options(method: str) -> None:
    signature = inspect.signature(getattr(Pipeline, method))
    assert signature.parameters["options"].annotation == "Unpack[RunSettings]"


def test_the_settings_of_all_tasks_are_those_of_the_base() -> None:
    assert get_type_hints(TaskSettings) == keywords(Task.__init__)
    assert set(get_type_hints(SettingsWithoutPrompt)) == set(get_type_hints(TaskSettings)) - {"system_prompt"}
    assert not TaskSettings.__required_keys__


def test_the_settings_of_magpie_are_its_keywords() -> None:
    assert get_type_hints(MagpieSettings) == {**get_type_hints(SettingsWithoutPrompt), **keywords(Magpie.__init__)}


def test_the_settings_of_an_embedded_model_are_an_llms() -> None:
    own = {"model", "is_embedded"}  # what `embedded` itself says
    assert get_type_hints(LLMSettings) == {name: kind for name, kind in get_type_hints(LLM).items() if name not in own}


def test_no_public_constructor_takes_just_any_keyword() -> None:
    public = [getattr(asyncsynth, name) for name in asyncsynth.__all__]
    for kind in [each for each in public if inspect.isclass(each) and issubclass(each, Step)]:
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                assert str(parameter.annotation).startswith("Unpack["), f"{kind.__name__}: **{parameter.name}"
