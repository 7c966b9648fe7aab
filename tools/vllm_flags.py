"""Write asyncsynth/serving/vllm/flags.json: the flags of `vllm serve`, out of vLLM's own argument parser.

    pip download vllm==0.33.0 --no-deps --dest /tmp/wheel        # 336 MB; nothing is installed
    python tools/vllm_flags.py --python VENV/bin/python --wheel /tmp/wheel/vllm-0.33.0-*.whl
    python tools/vllm_flags.py --python VENV/bin/python --wheel /tmp/wheel/vllm-0.33.0-*.whl --check
    python tools/vllm_flags.py --python VENV/bin/python          # the version installed there, to the screen

VENV is the environment that `python -m tests.real_vllm` makes: it has vLLM's dependencies, without a GPU. The
wheel's Python files are unpacked into a temporary folder and imported there; its CUDA parts are not needed to
build the parser. To follow a new vLLM: change the `vllm` extra in pyproject.toml, run this, read the difference.

The table, one entry for each long name that a `--config` file may hold:

    type       int, float, str, bool or json
    list       several values are allowed (YAML list)
    choices    the only values that are taken
    suffixes   an int that may be written 16k, 2M (k = 1,000, K = 1,024)
    text       a json value that may be any other text instead
    negations  names that say the opposite of a bool; where there is none, `false` in a file has no effect
    alias_of   another name of the same flag; giving both is giving it twice
    deprecated vLLM warns that the flag will go
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent.parent / "asyncsynth" / "servers" / "vllm" / "flags.json"
#: Their parsers take JSON where vLLM's types are functions without a telling name.
_JSON_PARSERS = {"loads", "parse_dataclass"}
_INTS_WITH_SUFFIX = {"human_readable_int", "human_readable_int_or_auto"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python that has vLLM's dependencies")
    parser.add_argument("--wheel", type=Path, help="the wheel to read; without it, the vLLM installed there is shown")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the table differs")
    parser.add_argument("--dump", metavar="VERSION", help=argparse.SUPPRESS)  # what this script asks of itself
    options = parser.parse_args()
    if options.dump is not None:
        json.dump(table_of(options.dump), sys.stdout)
        return 0
    if options.wheel is None:
        sys.stdout.write(_ask(options.python, "installed", []))
        return 0
    text = from_wheel(options.python, options.wheel)
    if options.check:
        same = TABLE.read_text(encoding="utf-8") == text
        print(f"{TABLE.name} {'is' if same else 'is NOT'} what {options.wheel.name} says")
        return 0 if same else 1
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE}: {len(json.loads(text)['flags'])} names of vLLM {json.loads(text)['version']}")
    return 0


def from_wheel(python: str, wheel: Path) -> str:
    """The table of a wheel that is not installed."""
    version = wheel.name.split("-")[1]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith((".py", ".json"))])
        # vLLM asks its own distribution for its version, and takes "cpu" in it for the platform.
        facts = Path(folder) / f"vllm-{version}+cpu.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        return _ask(python, version, [folder])


def _ask(python: str, version: str, path: list[str]) -> str:
    code = f"import sys; sys.path[:0] = {path!r}; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(  # the user names the interpreter
        [python, "-c", f"import sys; sys.argv = {[str(Path(__file__)), '--dump', version]!r}; {code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),  # a folder named vllm beside us is not to be imported
    )
    if done.returncode:
        raise SystemExit(f"{python} could not build vLLM's parser:\n{done.stderr[-3000:]}")
    table = json.loads(done.stdout.splitlines()[-1])  # vLLM may log before
    flags = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table["flags"].items())
    return f'{{\n  "version": {json.dumps(table["version"])},\n  "flags": {{\n{flags}\n  }}\n}}\n'


def table_of(version: str) -> dict[str, Any]:
    """The table of the vLLM that can be imported here."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.common.cli_args import make_arg_parser
    except ImportError:  # its place up to 0.32
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    if version == "installed":
        from vllm import __version__ as version
    parser = make_arg_parser(FlexibleArgumentParser())
    flags: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        if action.dest not in ("help", "config", "model_tag"):
            flags |= _entries(action, parser._deprecated)
    return {"version": version, "flags": dict(sorted(flags.items()))}


def _entries(action: Any, deprecated: set[Any]) -> dict[str, dict[str, Any]]:
    """The entries of one action of argparse: its first long name and its aliases."""
    negative = sorted(name[2:] for name in getattr(action, "negative_option_strings", ()))
    # Names that argparse knows but that are left out of the help (--no-disable-x) are in neither list.
    longs = [name[2:] for name in action.option_strings if name.startswith("--") and name[2:] not in negative]
    if not hasattr(action, "negative_option_strings") and "BooleanOptional" in type(action).__name__:
        negative = [name for name in longs if name.startswith("no-")]
        longs = [name for name in longs if name not in negative]
    entry = _value_of(action)
    if negative:
        entry["negations"] = negative
    if action in deprecated or "Deprecated" in type(action).__name__:
        entry["deprecated"] = True
    return {name: entry | ({"alias_of": longs[0]} if index else {}) for index, name in enumerate(longs)}


def _value_of(action: Any) -> dict[str, Any]:
    if action.nargs == 0:
        return {"type": "bool"}
    name = _parser_name(action.type)
    entry: dict[str, Any] = {"type": name if name in ("int", "float") else "str"}
    if name in _INTS_WITH_SUFFIX:
        entry = {"type": "int", "suffixes": True}
    elif name in _JSON_PARSERS:
        entry = {"type": "json"}
    elif name == "union_dict_and_str":
        entry = {"type": "json", "text": True}
    if action.nargs in ("+", "*") or isinstance(action.nargs, int):
        entry["list"] = True
    if action.choices:
        entry["choices"] = [choice for choice in action.choices if choice is not None]
    return entry


def _parser_name(kind: Any) -> str:
    """The name of the function that reads a value; vLLM wraps it in others that add None."""
    while (inner := getattr(kind, "__closure__", None)) and callable(inner[0].cell_contents):
        if kind.__name__ not in ("_optional_type", "_parse_type"):
            break
        kind = inner[0].cell_contents
    return getattr(kind, "__name__", "str") if kind is not None else "str"


if __name__ == "__main__":
    raise SystemExit(main())
