"""Runs a module as a program that ends with the process that started it: ``python -m infra.child_process MODULE ...``.

A server whose parent was killed would otherwise live on, holding its port. It knows nothing of what it runs.
"""

import os
import runpy
import signal
import sys
import threading
import time

CHECK_SECONDS = 0.5
GRACE_SECONDS = 20.0


def main() -> None:
    """Run the module named by the first argument with the others as its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit an ignored one
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
