"""The command `yivl`: options in, one flow or core function, summary and exit code out. Only a flow imports Prefect."""

import argparse
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module, metadata
from typing import Any

from pydantic import BaseModel

from flows.commands import COMMANDS, GROUPS, Command
from flows.configuration import InferConfig
from flows.options import add_options, read_options, usage
from flows.secrets import refuse_secrets
from yivl_core.child import INTERNAL_ERROR, interrupt_on_sigterm, lasting_os_errors
from yivl_core.errors import Interrupted, StorageError, YivlError

_EPILOG = """yivl COMMAND --help tells all options of a command, with an example

runs are kept by Prefect: on the server of PREFECT_API_URL, or in PREFECT_HOME (default ~/.prefect) if that is not set
exit code: 0 done, 1 findings, unusable data or a regression by the gate, 2 wrong usage or settings, 3 not comparable with the
baseline, 4 predictions are incomplete or too many rows failed, 70 internal error, 74 reading or writing failed, 75 another
process works in the output folder, 130 interrupted"""

_PREFECT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = _parser().parse_args(arguments)
    command = COMMANDS[given.command]
    interrupt_on_sigterm()
    config: BaseModel | None = None
    try:
        config = read_options(given, command.config, command.spelling)
        if command.flow:
            refuse_secrets(config, command.spelling.option_of)
        with lasting_os_errors():
            summary = _run_flow(command, config) if command.flow else _run_function(command, config)
    except YivlError as error:
        _complain(given.command, str(error) + (_how_to_go_on(config) if isinstance(error, StorageError) else ""))
        return error.exit_code
    except KeyboardInterrupt:
        _complain(given.command, f"stopped{_how_to_go_on(config)}")
        return Interrupted.exit_code
    except Exception:
        traceback.print_exc()
        _complain(given.command, "this is a bug in yivl or in what it uses, see above; what had been published is kept")
        return INTERNAL_ERROR
    print(json.dumps(asdict(summary), ensure_ascii=False) if given.json else command.describe(summary))
    return command.exit_code(summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yivl",
        description="Pipeline for the Yi-VL vision-language models: validate, fine-tune, merge, infer, evaluate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"yivl {metadata.version('yivl')}")
    groups = {"": parser.add_subparsers(dest="command", required=True, metavar="COMMAND")}
    for name, text in GROUPS.items():
        group = groups[""].add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        groups[name] = group.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        group_name, _, last_name = name.rpartition(" ")
        subparser = groups[group_name].add_parser(
            last_name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            usage=" ".join(["yivl", name, *usage(command.config, command.spelling), *command.required_flags, "[OPTION ...]"]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(subparser, command.config, command.spelling)
        for flag, text in command.required_flags.items():
            subparser.add_argument(flag, action="store_true", required=True, help=text)
        subparser.set_defaults(command=name)  # of a group, argparse has noted the name of the group alone
        subparser.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else, on stdout")
    return parser


def _run_flow(command: Command, config: BaseModel) -> Any:
    """Run the command's flow, on the user's Prefect server or a temporary one, showing what it does."""
    for name, value in _PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from flows.server import prefect_server
    from flows.terminal import Terminal, WarningHandler
    from tasks.progress import watching

    needs_workers = isinstance(config, InferConfig) and config.where == "workers"
    with Terminal() as terminal, prefect_server(terminal.say, needs_workers=needs_workers), watching(terminal):
        flow = _named(command.flow)
        logging.getLogger().handlers = [WarningHandler(terminal)]  # in place of Prefect's, which repeats what is shown already
        return flow(config)


def _run_function(command: Command, config: BaseModel) -> Any:
    """Call the command's function of the core, showing what it does."""
    from flows.terminal import Terminal

    with Terminal() as terminal:
        return _named(command.function)(config, on_progress=terminal)


def _named(place: str) -> Any:
    """What is at `module:name`."""
    module_name, name = place.split(":")
    return getattr(import_module(module_name), name)


def _complain(command: str, message: str) -> None:
    print(f"yivl {command}: {message}", file=sys.stderr)


def _how_to_go_on(config: BaseModel | None) -> str:
    output = getattr(config, "output", None)
    if output is None:
        return ""
    how = "with --resume" if getattr(config, "resume", None) is False else "again"
    return f"; what had been published in {output} is kept, run the same command {how} to go on"


if __name__ == "__main__":
    sys.exit(main())
