"""Starts training runs at once: imports everything, then forks a process for each line it reads.

    {"args": [...], "out": FILE, "limit": BYTES or null}  ->  the child's number, later its status

A run's own start takes seconds, nearly all of it imports, and a test that kills thirty runs would
mostly wait for them. Nothing of PyTorch or OpenCV has run in threads when the fork happens.
"""

import json
import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from plumbing.files import run_main  # noqa: E402


def child(args: list[str], out: str, limit: int | None) -> None:
    """Runs train.py with `args` and ends; limit: no file may grow beyond it (EFBIG)."""
    told = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(told, 1)
    os.dup2(told, 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["train.py", *args]
    code = 1
    try:
        code = run_main(train.main, "train.py")
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(**order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
