"""The guardian of one server process: when the program that started it is gone, it kills all that is left.

Run by path by `guarded.GuardedProcess`, never imported: it imports nothing of asyncsynth, so that it starts fast
and works wherever the package lies.

    python guardian.py PARENT_PID COMMAND...

stdin is a socket to the parent. The parent may write ``t`` (SIGTERM to the server). When the socket ends, since the
parent closed it or died, the server's whole process group is killed. The guardian writes one JSON line when the
server runs (``{"pid": N}``) or could not be started (``{"error": ...}``), and one when it and all of its children
are gone (``{"ended": exit code}``, negative for a signal). The server gets the guardian's stdout and stderr.

It is a process of its own since nothing else outlives `kill -9` of the parent on every platform; the server
is in a group of its own, so that it can be killed without this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LINUX = sys.platform == "linux"


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Guardian:
    """Starts the server, listens to the parent, cleans up."""

    def __init__(self, parent: int, command: list[str]) -> None:
        self.control: socket.socket = socket.socket(fileno=os.dup(0))
        self.woken: socket.socket
        self.woken, wake = socket.socketpair()
        self.woken.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # seen through the wake-up socket
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
        # Where every copy of the socket leaked into other processes, the kernel still tells.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent died come to us
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)
        self.me: int = os.getpid()
        self.server: subprocess.Popen[bytes] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=self._in_child, close_fds=True
        )

    def _in_child(self) -> None:
        """Between fork and exec: die with the guardian, were that one killed."""
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.me:
            os._exit(1)

    def say(self, **what: object) -> None:
        """One line to the parent, if it is still there."""
        with contextlib.suppress(OSError):
            self.control.sendall(json.dumps(what).encode() + b"\n")

    def watch(self) -> int:
        """Returns the server's exit code once it and all that it started are gone."""
        self.say(pid=self.server.pid)
        while True:
            ready, _, _ = select.select([self.control, self.woken], [], [])
            if self.control in ready:
                try:
                    said = self.control.recv(64)
                except OSError:
                    said = b""
                if not said:
                    return self.end()
                if b"t" in said:
                    self.terminate()
            if self.woken in ready:
                numbers = self.woken.recv(1024)
                if signal.SIGHUP in numbers:
                    return self.end()
                if signal.SIGTERM in numbers:
                    self.terminate()
                if self._has_ended():
                    return self.end()

    def terminate(self) -> None:
        """SIGTERM to the server. Not Popen's: that would reap it, and its number could be another's then."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server.pid, signal.SIGTERM)

    def _has_ended(self) -> bool:
        """Whether the server is gone; it is not reaped yet, so that its group's number stays its own."""
        if not hasattr(os, "waitid"):
            return self.server.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.server.pid, flags) is not None

    def end(self) -> int:
        """Kill what is left of the server's group and, on Linux, of every process that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.server.pid, signal.SIGKILL)
        code = self.server.wait()
        while _LINUX:
            for pid in self._children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        return code

    def _children(self) -> list[int]:
        found: list[int] = []
        if not _LINUX:  # /proc is Linux's
            return found
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                # pid (name) state ppid: the name may hold spaces and brackets.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == self.me:
                    found.append(int(entry.name))
        return found


def main() -> None:
    """Guard one command."""
    try:
        guardian = Guardian(int(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(0, json.dumps({"error": f"{error.strerror}: {error.filename}"}).encode() + b"\n")
        sys.exit(127)
    guardian.say(ended=guardian.watch())


if __name__ == "__main__":
    main()
