"""Starts runs of batch inference that are killed, each in a process group of its own, without importing torch for each of them.

Reads one line of settings (JSON) for each run on stdin, and writes two for each on stdout: its process id, and how it ended.
"""

import os
import sys

import yivl_core.inference.batch  # noqa: F401  (once, before the forks)
from yivl_core.child import run_door
from yivl_core.doors import DOORS


def ignore(_: object) -> None:
    pass


def main() -> None:
    for line in sys.stdin:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.write(write_end, b".")
            os._exit(run_door(DOORS["infer"], line, ignore))
        os.read(read_end, 1)  # it leads its group now
        os.close(read_end)
        os.close(write_end)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
