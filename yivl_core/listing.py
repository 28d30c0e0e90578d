"""What lies in a remote folder, at any depth: a million files one by one, in the memory of a page of them.

fsspec's own `find` and `walk` hold the whole tree, or the whole of a folder's page after page.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from yivl_core.filesystems import filesystem_of, is_s3, within_patience
from yivl_core.storage import storage_errors
from yivl_core.url_variables import is_web, literally

_MD5 = re.compile(r"[0-9a-f]{32}")
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it, without a look into it.

    Attributes:
        name: relative to the folder, with `/` between its parts.
        num_bytes: its size.
        state: changes whenever the content does; the same from `list_tree` and from `file_state`. On a disk size and time of
            change (ns), on an object store the ETag, or what else it has.
        content_key: the same for files of the same content, and for no others: an ETag of S3 that is an MD5, as that of a file
            sent in one piece is, unless the store encrypts with a key of its own for each file. None where nothing of that kind
            is known.
    """

    name: str
    num_bytes: int
    state: str
    content_key: str | None


def list_tree(url: str) -> Iterator[StoredFile]:
    """All files in a remote folder and in the folders below it, dot files too; in no order that can be relied on.

    Marks of empty folders on an object store are left out.

    Raises:
        StorageError: there is no such folder, or it cannot be listed; raised when the first file is asked for, or a later one.
    """
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        for file in _list_objects(filesystem, path) if is_s3(filesystem) else _walk(filesystem, path):
            yield replace(file, name=literally(file.name)) if is_web(url) else file


def file_state(url: str) -> StoredFile:
    """One remote file; its name is the last part of the address.

    Raises:
        StorageError: there is no such file (then `is_missing` says so), or it is a folder.
    """
    with storage_errors(url):
        filesystem, path = filesystem_of(url)
        info = filesystem.info(path, **within_patience(filesystem))
        if info["type"] != "file":
            raise _error(errno.EISDIR, path)
        return _remote_file(path.rsplit("/", 1)[-1], info, is_s3(filesystem) and _has_md5s(filesystem, path))


def _list_objects(filesystem: Any, path: str) -> Iterator[StoredFile]:
    """Pages of a thousand; the client decodes the names, which the store sends percent-encoded."""
    bucket, key, _ = filesystem.split_path(path)
    prefix = key.rstrip("/") + "/" if key else ""
    request = {"Bucket": bucket, "Prefix": prefix}
    is_there = not prefix  # an empty bucket is an empty folder
    has_md5s = None
    while True:
        page = filesystem.call_s3("list_objects_v2", **request, **within_patience(filesystem))
        for entry in page.get("Contents", ()):
            is_there = True
            if not (entry["Key"].endswith("/") and entry["Size"] == 0):
                if has_md5s is None:
                    has_md5s = _has_md5s(filesystem, f"{bucket}/{entry['Key']}")
                yield _remote_file(entry["Key"][len(prefix) :], entry, has_md5s)
        if not page.get("IsTruncated"):
            break
        request["ContinuationToken"] = page["NextContinuationToken"]
    if not is_there:
        raise _error(errno.ENOENT, path)


def _walk(filesystem: Any, root: str) -> Iterator[StoredFile]:
    """Folder by folder, in the memory of one folder and the names of those that are still to be visited."""
    folders = [root]
    while folders:
        folder = folders.pop()
        for entry in filesystem.ls(folder, detail=True):
            name = entry["name"].rstrip("/")
            if name == root.rstrip("/"):
                raise _error(errno.ENOTDIR, root)
            if entry["type"] == "directory":
                folders.append(name)
            else:
                yield _remote_file(name[len(root.rstrip("/")) + 1 :], entry, has_md5s=False)


_buckets_with_md5s: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


def _has_md5s(filesystem: Any, path: str) -> bool:
    """Whether the ETags of a bucket tell files of the same content, as those of one that is asked about first.

    Files that are encrypted under a key management service, or by a customer's key, have ETags of the same form that do not:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    bucket, key, _ = filesystem.split_path(path)
    known = _buckets_with_md5s.setdefault(filesystem, {})
    if bucket not in known:
        try:
            answer = filesystem.call_s3("head_object", Bucket=bucket, Key=key, **within_patience(filesystem))
        except OSError:  # of this one file; its reader will be told
            return False
        known[bucket] = "kms" not in answer.get("ServerSideEncryption", "") and "SSECustomerAlgorithm" not in answer
    return known[bucket]


def file_on_disk(name: str, status: os.stat_result) -> StoredFile:
    """A file of this machine, by what the system tells of it."""
    return StoredFile(name, status.st_size, f"{status.st_size} {status.st_mtime_ns}", None)


def _remote_file(name: str, info: dict[str, Any], has_md5s: bool) -> StoredFile:
    """A file by what a listing or a question for the one file tells; the two differ in more than their keys."""
    size = info["Size"] if "Size" in info else info["size"]
    etag = next((info[key].strip('"') for key in _ETAGS if info.get(key)), None)
    if etag is not None:
        return StoredFile(name, size, etag, etag if has_md5s and _MD5.fullmatch(etag) else None)
    changed = next((info[key] for key in _TIMES if info.get(key)), "")
    return StoredFile(name, size, f"{size} {changed.timestamp() if isinstance(changed, datetime) else changed}", None)


def _error(number: int, place: str) -> OSError:
    return OSError(number, os.strerror(number), place)
