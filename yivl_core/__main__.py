"""`python -m yivl_core DOOR [SETTINGS.json]`: one core function in a process of its own, without Prefect."""

import argparse
import os
import sys
from pathlib import Path

from yivl_core.child import interrupt_on_sigterm, json_lines, private_stdout, run_door, stop_when_stdin_ends
from yivl_core.doors import DOORS

_EPILOG = """settings are JSON, with the fields of the function's config; progress and the summary come out as JSON lines

example:
  echo '{"predictions": "runs/p", "output": "runs/report"}' | python -m yivl_core evaluate

exit code: 0 done, 1 the data cannot be used, 2 wrong settings, 70 internal error, 74 reading or writing failed,
75 another process works in the output folder, 130 interrupted"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m yivl_core",
        description="Run one function of the core in this process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("door", choices=DOORS, help="what to run")
    parser.add_argument("settings", nargs="?", metavar="SETTINGS.json", help="file with the settings; default: stdin")
    parser.add_argument(
        "--supervised", action="store_true", help="read the settings from the first line of stdin, and stop when stdin ends"
    )
    return parser


def _read_settings(arguments: argparse.Namespace) -> str:
    if arguments.settings is not None:
        return Path(arguments.settings).read_text(encoding="utf-8")
    if arguments.supervised:
        return sys.stdin.buffer.readline().decode()
    return sys.stdin.read()


def main() -> int:
    """Run the door that the command line names; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        settings = _read_settings(arguments)
    except OSError as error:
        parser.error(f"{arguments.settings}: {error.strerror}")
    for name, value in DOORS[arguments.door].variables.items():
        os.environ.setdefault(name, value)
    interrupt_on_sigterm()
    if arguments.supervised:
        stop_when_stdin_ends()
    with private_stdout() as events:
        return run_door(DOORS[arguments.door], settings, json_lines(events))


if __name__ == "__main__":
    sys.exit(main())
