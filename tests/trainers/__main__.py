"""python -m tests.trainers: TRL's trainers take the rows that runs export.

    python -m tests.trainers                 install, run the pipelines, train, write docs/trainers.md
    python -m tests.trainers --folder DIR    where the environment is kept
    python -m tests.trainers --python PATH   an interpreter that has trl, torch and datasets

The environment (about 2 GB with a CPU build of torch) is made once, under the user's cache folder. Each line says what
one trainer made of one file; exit code 1 if one refused its rows or lost a text. Needs a package index, and no model
hub and no GPU; about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from asyncsynth.serving.weights import cache_dir
from tests.trainers.rows import CASES, write_rows

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "trainers.md"
BEGIN, END = "<!-- result: written by python -m tests.trainers -->", "<!-- end of the result -->"
#: What the environment holds. A CPU build of torch is tried first, from where it is hosted and from the usual index.
PACKAGES = ("trl==1.16.0", "transformers==5.24.0", "datasets==5.2.0")
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_VERSIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({n: m.version(n) for n in ('trl', 'transformers', 'datasets', 'torch')}))"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_dir() / "trainers")
    parser.add_argument("--python", type=Path, help="an interpreter that has trl, torch and datasets")
    options = parser.parse_args()
    python = options.python or _installed(options.folder)
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="asyncsynth-trainers-") as made:
        folder = Path(made)
        write_rows(folder)
        for trainer in ("sft", "dpo", "reward"):
            names = [f"{case.name}{suffix}" for case in CASES if case.trainer == trainer for suffix in case.suffixes]
            found += _trained(python, folder, trainer, names)
    _write_page(found, versions)
    print(f"written: {PAGE}")
    return 0 if all(_held(each) for each in found) else 1


def _installed(folder: Path) -> Path:
    """The interpreter of an environment with the packages."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    if subprocess.run([python, "-c", "import trl, torch"], capture_output=True, check=False).returncode:
        install = [python, "-m", "pip", "install", "--quiet"]
        for more in ([], ["--extra-index-url", TORCH_INDEX]):
            if not subprocess.run([*install, TORCH, *more], capture_output=True, check=False).returncode:
                break
        done = subprocess.run([*install, *PACKAGES], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip could not install the trainers:\n{done.stderr[-3000:]}")
    return python


def _trained(python: Path, folder: Path, trainer: str, names: list[str]) -> list[dict[str, Any]]:
    """What a trainer made of each file."""
    command = [python, HERE / "train.py", folder, trainer, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
    silent = [name for name in names if name not in {each["file"] for each in said}]
    said += [{"file": name, "error": f"no result, exit {done.returncode}: {done.stderr[-300:]}"} for name in silent]
    for each in said:
        print(f"{'held' if _held(each) else 'FAILED':6} {trainer:6} {each['file']:28} {_told(each)}", flush=True)
        each["trainer"] = trainer
    return said


def _held(each: dict[str, Any]) -> bool:
    return "error" not in each and not each["lost"]


def _told(each: dict[str, Any]) -> str:
    if "error" in each:
        return str(each["error"])
    return f"{each['rows']} rows, loss {each['loss']}" + (f", lost: {each['lost']}" if each["lost"] else "")


def _write_page(found: list[dict[str, Any]], versions: dict[str, str]) -> None:
    """The result between the page's marks."""
    head = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{datetime.datetime.now(datetime.UTC).date()}, Python {platform.python_version()}; {head}.",
        "",
        "| trainer | file | held | what was found |",
        "| --- | --- | --- | --- |",
        *(f"| {e['trainer']} | {e['file']} | {'yes' if _held(e) else 'NO'} | {_told(e)} |" for e in found),
    ]
    page = PAGE.read_text(encoding="utf-8")
    result = "\n".join([BEGIN, "", *lines, "", END])
    page = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: result, page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
