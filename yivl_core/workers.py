"""Processes that help a process: forked from a server that knows one module and nothing else, and never left behind."""

import multiprocessing
import os
import threading
from multiprocessing import connection, context, forkserver


def worker_context(module: str) -> context.BaseContext:
    """How helpers are started: forked from a process that has imported a module, so that not each of them imports it.

    That process is started once, for all helpers of this one.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([module])
    return found


def start_server(module: str) -> None:
    """Starts the process that helpers are forked from, which takes seconds for its imports, and does not wait for it."""
    worker_context(module)
    forkserver.ensure_running()


def end_with_parent() -> None:
    """Lets this helper end when the process that it helps does, however that came about."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
