"""The errors that a user can meet, and the exit code that the command line gives each.

```
YivlError                 something the user can mend; shown as one message, without a traceback
├── ConfigurationError    a setting, or settings that do not go together            exit 2
├── DatasetError          records or images that cannot be used                     exit 1
├── CheckpointError       a model or adapter folder that is not what it should be   exit 2
├── OutputError           an output folder that holds something else                exit 2
│   └── IncompleteError   predictions that are not all there yet                    exit 4
├── BusyError             an output folder that another process works in            exit 75
├── StorageError          reading or writing failed; may pass, so tasks try again   exit 74
├── FileTooLargeError     a file that is larger than what may be read             exit 1
├── ChildFailedError      a child process died without a report                     exit 70
└── Interrupted           stopped on request; what was finished is kept             exit 130
```

74 and 75 are the numbers of sysexits.h for a failed input or output, and for what may work later.

A message says what is wrong (with the value), where, and how to mend it. Our own invariants are `assert`ed instead.
"""


class YivlError(Exception):
    """Base of all errors that are the user's to mend."""

    exit_code = 2


class ConfigurationError(YivlError):
    """A setting has a value that cannot work, or settings contradict each other."""


class DatasetError(YivlError):
    """Records or images cannot be used as they are."""

    exit_code = 1


class CheckpointError(YivlError):
    """A model or adapter folder lacks something, or holds something that does not fit."""


class OutputError(YivlError):
    """An output folder is not empty, or belongs to a run with other settings."""


class IncompleteError(OutputError):
    """Parts of the predictions are missing: the run that writes them has not finished."""

    exit_code = 4


class BusyError(YivlError):
    """Another process works in the output folder."""

    exit_code = 75


class StorageError(YivlError):
    """Reading or writing failed for a reason outside the program: full disk, permission, network."""

    exit_code = 74


class FileTooLargeError(YivlError):
    """A file is larger than the reader allows."""

    exit_code = 1


class ChildFailedError(YivlError):
    """A child process ended without saying why: killed, out of memory, past its deadline."""

    exit_code = 70


class Interrupted(YivlError):
    """The work was stopped on request. What had been finished is kept, and the run can be resumed."""

    exit_code = 130
