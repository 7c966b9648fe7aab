"""Where things may come from and go to: files inside the run directory, addresses from the user, no code from data."""

from __future__ import annotations

import ast
import asyncio
import os
import stat
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.errors import AsyncsynthError, InputError, PipelineError, TaskFailure
from asyncsynth.servers.configs import parse_servers
from asyncsynth.storage.exports import export
from asyncsynth.tasks.templates import check_template, render
from asyncsynth.testing import FaultServer
from tests.kit.files import ROOT
from tests.security.corpus import TEXTS

OUTSIDE = ("../evil", "a/../../evil", "/tmp/evil", "..", ".hidden", "a\\b", "a\0b", "")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_become_paths_stay_inside(name: str) -> None:
    with pytest.raises(PipelineError):
        Pipeline(name=name)
    if name not in ("..", ".hidden"):  # a step's name is only a part of a file's
        with Pipeline(), pytest.raises(PipelineError):
            TextGeneration(llm=LLM(model="m"), name=name)


def test_rows_choose_neither_files_nor_servers_and_all_files_are_private(tmp_path: Path) -> None:
    """Ids and columns that look like paths and settings, under an open umask: data, nothing else."""

    async def scene() -> None:
        async with FaultServer(models=["m"]) as server, FaultServer(models=["m"]) as other:
            url = other.base_url
            bad = {"base_url": url, "llm": {"base_url": url}, "model": "x", "api_key_env": "HOME", "servers": [url]}
            data = [{"id": name or "empty", "instruction": "x", **bad} for name in OUTSIDE]
            with Pipeline(name="p") as pipeline:
                LoadDataFromDicts(data=data, id_column="id") >> TextGeneration(llm=LLM(model="m"))
            result = await pipeline.arun(servers=[server.base_url], output=tmp_path / "out" / "run")
            assert result.report.counts.ok == len(data)
            assert other.connections == 0

    before = os.umask(0)
    try:
        asyncio.run(scene())
        export(tmp_path / "out" / "run", tmp_path / "out" / "run" / "result.jsonl")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for path in (tmp_path / "out").rglob("*"):
        wanted = (
            0o700 if path.is_dir() else 0o666 if path.name == "result.jsonl" else 0o600
        )  # an export obeys the umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_link_in_the_way_of_an_export_is_replaced_not_followed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with FaultServer(models=["m"]) as server:
            with Pipeline(name="p") as pipeline:
                LoadDataFromDicts(data=[{"instruction": "x"}]) >> TextGeneration(llm=LLM(model="m"))
            await pipeline.arun(servers=[server.base_url], output=tmp_path / "run")

    asyncio.run(scene())
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / "result.jsonl").symlink_to(tmp_path / "precious")
    export(tmp_path / "run", tmp_path / "run" / "result.jsonl")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "run" / "result.jsonl").is_symlink()


ATTACKS = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ x.__init__.__globals__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(x) }}",
    "{{ '{0.__class__}'|format(x) or ''.format_map({}) }}{{ x.__class__ }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self._TemplateReference__context.environment }}{{ self.__init__.__globals__ }}",
    "{% set _ = data.append(1) %}",
    "{% set _ = mapping.update({'a': 1}) %}",
    "{% for x in range(10000000) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
)


@pytest.mark.parametrize("source", ATTACKS)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    values = {"x": "x", "data": [0], "mapping": {}}
    with pytest.raises(TaskFailure):
        render(source, values)
    assert values == {"x": "x", "data": [0], "mapping": {}}


@pytest.mark.parametrize("source", ATTACKS)
def test_a_template_in_a_row_is_text(source: str) -> None:
    check_template("{{ instruction }}")
    assert render("{{ instruction }}", {"instruction": source}) == source


def test_texts_come_out_of_a_template_unchanged() -> None:
    for text in TEXTS.values():
        assert render("a{{ instruction }}b", {"instruction": text}) == f"a{text}b"


@pytest.mark.parametrize(
    "yaml",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "servers: !!python/object/apply:os.system ['touch {marker}']",
        "servers:\n  - url: !!python/object/apply:os.system ['touch {marker}']\n",
        "model: !!python/name:os.system\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]\n",
    ],
)
def test_yaml_makes_values_only(tmp_path: Path, yaml: str) -> None:
    (tmp_path / "evil.yaml").write_text(yaml.format(marker=tmp_path / "owned"))
    with pytest.raises((InputError, AsyncsynthError)):
        parse_servers([str(tmp_path / "evil.yaml")])
    assert not (tmp_path / "owned").exists()


#: What turns data into code, and the one place that may: a pipeline file is code that its user chose to run.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle",
             "joblib", "runpy", "system", "popen", "mktemp", "unsafe_load", "full_load", "getstatusoutput"}  # fmt: skip
#: The compiled text of a user's file is compared with the code that runs, and is itself never run.
ALLOWED = {("asyncsynth/cli/pipeline_file.py", "runpy"), ("asyncsynth/pipeline/codetext.py", "compile")}


def names_used(tree: ast.AST) -> set[str]:
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            used.add(node.func.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if owner != "re":  # re.compile
                used.add(node.func.attr)
            if owner == "yaml" and node.func.attr == "load":
                used.add("unsafe_load")
            if any(word.arg == "shell" for word in node.keywords):
                used.add("system")
            if any(word.arg == "verify" and _is_false(word.value) for word in node.keywords):
                used.add("unsafe_load")
    return used


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.slow
def test_no_code_comes_from_data() -> None:
    found = set()
    for path in sorted((ROOT / "asyncsynth").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        found |= {(place, name) for name in names_used(ast.parse(path.read_text())) & FORBIDDEN}
    assert found - ALLOWED == set()


def test_the_search_finds_what_it_looks_for() -> None:
    for code in ("import pickle", "from pickle import loads", "eval('1')", "yaml.load(x)", "os.system('x')",
                 "subprocess.run(x, shell=True)", "httpx.get(x, verify=False)"):  # fmt: skip
        assert names_used(ast.parse(code)) & FORBIDDEN, code


def test_every_dependency_of_the_tests_is_pinned_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + extras["local"] + extras["dev"] + project["build-system"]["requires"]
    lines = (ROOT / ".ci" / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line.rstrip(" \\")) for line in lines if line and line[0] not in " #-"]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins)
    for requirement in map(Requirement, wanted):
        pinned = versions.get(canonicalize_name(requirement.name))
        assert pinned, f"{requirement} is not pinned: run .ci/pin"
        assert requirement.specifier.contains(pinned), f"{requirement}, but {pinned} is pinned: run .ci/pin"
