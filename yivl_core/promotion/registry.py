"""Which model is the current one, which were so before, and why: one file, replaced in one step.

```
registry.json   format, version
                current     the entry of the current model, or null
                previous    entries that a rollback goes back to, the latest last
                history     what was done, when and why, the latest last
```

In a local folder one process at a time changes it. Object stores have no lock: there, of two changes at the same time the later
one stands, so let one promotion run at a time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from yivl_core.errors import OutputError
from yivl_core.locks import LOCK_NAME, sole_user
from yivl_core.object_stores import without_secrets
from yivl_core.settings import explain_validation_error
from yivl_core.storage import exists, is_local, join, publish_bytes, read_bytes

REGISTRY_NAME = "registry.json"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entry(_Stored):
    """A model that is or was the current one.

    Attributes:
        model: its checkpoint folder.
        digest: of the checkpoint's content.
        report: folder of the evaluation report that it was promoted by.
        report_sha256: of the report.json in it.
        predictions: folder of the answers that the report is about; None where nobody told it.
        predictions_digest: content digest of these.
    """

    model: str
    digest: str
    report: str
    report_sha256: str
    predictions: str | None
    predictions_digest: str


class Event(_Stored):
    """One change of the current model.

    Attributes:
        action: what was done.
        time: when, in UTC.
        model, digest: of the model that became the current one.
        reason: a sentence.
    """

    action: Literal["promote", "rollback"]
    time: str
    model: str
    digest: str
    reason: str


class Registry(_Stored):
    """The content of registry.json."""

    format: Literal["yivl registry"] = "yivl registry"
    version: Literal[1] = 1
    current: Entry | None = None
    previous: tuple[Entry, ...] = ()
    history: tuple[Event, ...] = ()


def read_registry(folder: str) -> Registry:
    """The registry in a folder; an empty one where there is none yet.

    Raises:
        OutputError: the file is no registry.
        StorageError: it cannot be read.
    """
    url = join(folder, REGISTRY_NAME)
    if not exists(url):
        return Registry()
    try:
        return Registry.model_validate_json(read_bytes(url))
    except ValidationError as error:
        lines = explain_validation_error(error).replace("\n", "; ")
        raise OutputError(f"{without_secrets(url)} is no registry of models ({lines}); restore it, or choose another") from error


def write_registry(folder: str, registry: Registry) -> None:
    """Replace the registry in one step.

    Raises:
        StorageError: it cannot be written.
    """
    text = json.dumps(registry.model_dump(mode="json"), indent=1, ensure_ascii=False)
    publish_bytes(join(folder, REGISTRY_NAME), text.encode() + b"\n")


@contextmanager
def changing(folder: str) -> Iterator[None]:
    """Within this block no other process changes a registry of this machine.

    Raises:
        BusyError: another one does, and did not end within a few seconds.
        StorageError: the lock cannot be written.
    """
    if not is_local(folder):
        yield
        return
    with sole_user(Path(folder), Path(folder) / LOCK_NAME):
        yield
