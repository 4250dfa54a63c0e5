"""The process of a vLLM server: vLLM's own, unmodified; it ends when the process that started it ends.

It is run as ``python -m merganser.serving.vllm_process CORES FLAG...``, with the server's flags.
``CORES`` are the numbers of the cores that it may use, separated by commas; ``all`` for all.
Standard input is a pipe that the starting process holds open.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

MODULE = "vllm.entrypoints.openai.api_server"


def main() -> None:
    """Run the server."""
    cores = sys.argv.pop(1)
    if cores != "all":
        os.sched_setaffinity(0, map(int, cores.split(",")))
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    runpy.run_module(MODULE, run_name="__main__", alter_sys=False)


def _end_with_the_pipe() -> None:
    """Kill this process and its children once the pipe is closed."""
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
