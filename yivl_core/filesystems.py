"""An address -> the fsspec filesystem that reads and writes it, lists anew each time, and gives up in reasonable time.

Endpoint and credentials of an object store come from the environment, as its client reads them: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_PROFILE ..., or FSSPEC_S3_... for what s3fs alone knows. Those of a web server stand in the address, as
`${NAME}` (`url_variables.py`), and are put in here. Nothing is kept here between calls: fsspec has
one client for each process, which a child does not inherit.
"""

import os
from typing import Any

from fsspec import get_filesystem_class
from fsspec.implementations.local import LocalFileSystem

from yivl_core.errors import ConfigurationError
from yivl_core.object_stores import without_secrets
from yivl_core.url_variables import is_web, with_values

_NUM_CLIENT_TRIES = 2  # of s3fs, each with the tries of botocore: of 5 and 5, half a minute and more, no user has a gain
_PATIENCE_S = 60.0  # for one call; 503 for ever is given up before, after 15 s as a rule and 31 s at most
_SLOWEST_BYTES_PER_S = 250_000  # of a connection that is good enough


def filesystem_of(url: str) -> tuple[Any, str]:
    """What fsspec reads and writes an address with, and the address as that takes it.

    Raises:
        ConfigurationError: there is no such kind of address, the package for it is not installed, or a variable in it is not set.
    """
    protocol, separator, _ = url.partition("://")
    if not separator:
        return LocalFileSystem(), os.path.abspath(url)  # noqa: PTH100  (`Path` would drop what its text may end in)
    try:  # not `url_to_fs`, for which `::` in the name of a file begins another address
        kind = get_filesystem_class(protocol)
        filesystem, path = kind(use_listings_cache=False, **kind._get_kwargs_from_urls(url)), str(kind._strip_protocol(url))
    except (ValueError, ImportError) as error:
        remedy = "pip install 'yivl[s3]'" if url.startswith(("s3://", "s3a://")) else "give a path of this machine"
        raise ConfigurationError(f"{without_secrets(url)}: addresses of this kind cannot be used ({error}); {remedy}") from error
    if is_web(url):
        path = with_values(url)
    if protocol == "memory" and not path.startswith("/"):  # which it leaves out where a name holds `::`
        path = f"/{path}"
    if is_s3(filesystem):
        filesystem.retries = _NUM_CLIENT_TRIES
    return filesystem, path


def is_s3(filesystem: Any) -> bool:
    """Whether a filesystem is that of s3fs."""
    return hasattr(filesystem, "call_s3")


def s3_endpoint(url: str) -> str:
    """The address of the object store that `s3://` URLs are read from, as its client has it from all its settings."""
    filesystem, _ = filesystem_of(url)
    return str(filesystem.s3.meta.endpoint_url)


def within_patience(filesystem: Any, num_bytes: int = 0) -> dict[str, float]:
    """The argument that ends a call of s3fs after a while, whatever the store does; longer for more bytes, nothing for others.

    Its own limits do not suffice: the time-outs of nested tries add up to minutes, and a store that takes the head of an upload
    and never asks for the rest (`Expect: 100-continue`) is waited for without any limit.
    """
    return {"timeout": _PATIENCE_S + num_bytes / _SLOWEST_BYTES_PER_S} if is_s3(filesystem) else {}
