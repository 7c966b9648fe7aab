"""Where the package runs: another system is told so, before an import fails at a name that it lacks."""

from __future__ import annotations

import subprocess
import sys


def test_windows_is_told_what_is_supported() -> None:
    code = "import sys; sys.platform = 'win32'; import asyncsynth"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "ImportError: asyncsynth runs on Linux and macOS" in ran.stderr
    assert "WSL" in ran.stderr
