"""The `asyncsynth` command, as it starts: it takes the signals first, and then loads everything else.

Loading takes a fifth of a second. Nothing needs cleaning up in that time, so that a signal may end the process at once.
"""

import contextlib
import os
import signal
import sys
from types import FrameType

from asyncsynth.errors import EXIT_STOPPED


def main() -> None:
    """The `asyncsynth` command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell for a background job, has it
            signal.signal(number, _end)
    from asyncsynth.cli.commands import main as run_command

    run_command()


def _end(number: int, frame: FrameType | None) -> None:
    """Ends the process with the documented exit code. Writes without buffers, which the signal may have interrupted."""
    message = f"{signal.Signals(number).name}: stopped. Run the same command again to continue."
    event = f'{{"event":"error","error":"Stopped","message":"{message}","exit_code":{EXIT_STOPPED}}}'
    lines = [(2, message), *([(1, event)] if "--json" in sys.argv else [])]
    for stream, line in lines:
        with contextlib.suppress(OSError):  # nothing reads it
            os.write(stream, f"{line}\n".encode())
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
