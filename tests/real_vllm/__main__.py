"""python -m tests.real_vllm: everything on a real vLLM, on this machine's CPU.

    python -m tests.real_vllm                     install, make the models, all parts, write docs/real-vllm.md
    python -m tests.real_vllm --only kill drain   some parts; nothing is written
    python -m tests.real_vllm --folder DIR        where the environment and the models are kept

The environment (2.4 GB) and the models are made once, under the user's cache folder, and used again while they are
complete. One line for each part says what was tried and what held; exit code 1 where something did not. Needs Linux
on x86-64 (AVX2), two cores, 6 GB of memory; about ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from asyncsynth.serving.weights import cache_dir
from tests.real_vllm.environment import Environment
from tests.real_vllm.page import PAGE, write_page
from tests.real_vllm.parts import PARTS, Check, Part


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_dir() / "vllm-cpu")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts; the page is not written")
    parser.add_argument("--keep", action="store_true", help="keep the work folder, with all logs")
    options = parser.parse_args()
    environment = Environment(options.folder)
    parts = [_timed("install", lambda: _install(environment)), _timed("models", lambda: _models(environment))]
    for part in parts:
        _tell(part)
    work = Path(tempfile.mkdtemp(prefix="asyncsynth-vllm-"))
    check = Check(environment, work)
    try:
        for name in options.only or PARTS:
            parts.append(_timed(name, lambda name=name: PARTS[name](check)))
            _tell(parts[-1])
    finally:
        check.close()
        held = all(part.held for part in parts)
        if options.keep or not held:
            print(f"logs and runs: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    if not options.only:
        write_page(parts, check)
        print(f"written: {PAGE}")
    return 0 if held else 1


def _timed(name: str, make: object) -> Part:
    began = time.monotonic()
    try:
        part: Part = make()  # type: ignore[operator]
    except SystemExit as error:
        part = Part(name, "", False, str(error))
    part.seconds = time.monotonic() - began
    return part


def _tell(part: Part) -> None:
    print(
        f"{'held' if part.held else 'FAILED':6} {part.name:14} {part.seconds:5.0f} s  {part.tried}: {part.found}",
        flush=True,
    )


def _install(environment: Environment) -> Part:
    new = environment.install()
    versions = environment.versions()
    found = f"vllm-cpu {versions['vllm-cpu']}, torch {versions['torch']}, transformers {versions['transformers']}"
    return Part("install", "the pinned set in its own environment" + ("" if new else " (it was there)"), True, found)


def _models(environment: Environment) -> Part:
    new = environment.make_models()
    names = ", ".join(sorted(path.name for path in environment.models.iterdir()))
    return Part(
        "models", "made from the packaged GGUF, and on the spot" + ("" if new else " (they were there)"), True, names
    )


if __name__ == "__main__":
    sys.exit(main())
