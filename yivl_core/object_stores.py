"""What the answers of an object store mean for the user, and what of an address may be shown. Calls nothing, imports no client.

The clients are optional packages, so their exceptions are known by the names of their modules and classes. s3fs turns an
answer of the store into an `OSError` whose cause holds the answer (`response`); that no answer came at all, or that the request
was never sent, stays an exception of botocore or aiohttp, which is no `OSError`.
"""

import re
from typing import Any

from yivl_core.errors import ConfigurationError, StorageError, YivlError

_CLIENTS = {"botocore", "aiobotocore", "aiohttp"}
_AGAIN = "run it again later with --resume"
_NEW_CREDENTIALS = f"the credentials have expired; get new ones, and {_AGAIN}"
_WRONG_CREDENTIALS = (
    "the store does not accept the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
)
_NO_CREDENTIALS = (
    "no credentials for the store; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
    "or FSSPEC_S3_ANON=true for a public bucket"
)
_WRONG_REGION = "the bucket lies in another region; set AWS_DEFAULT_REGION to it"

# By the code of the answer; HEAD requests have no other than the number.
_ANSWERS: dict[str, tuple[type[YivlError], str]] = {
    "NoSuchBucket": (
        ConfigurationError,
        "there is no such bucket; check its name, and AWS_ENDPOINT_URL for a store that is not Amazon's",
    ),
    "InvalidBucketName": (ConfigurationError, "this is no name of a bucket; check the address"),
    "InvalidAccessKeyId": (ConfigurationError, _WRONG_CREDENTIALS),
    "SignatureDoesNotMatch": (ConfigurationError, _WRONG_CREDENTIALS),
    "InvalidToken": (ConfigurationError, _WRONG_CREDENTIALS),
    "AuthorizationHeaderMalformed": (ConfigurationError, _WRONG_REGION),
    "PermanentRedirect": (ConfigurationError, _WRONG_REGION),
    "301": (ConfigurationError, _WRONG_REGION),
    "ExpiredToken": (StorageError, _NEW_CREDENTIALS),
    "ExpiredTokenException": (StorageError, _NEW_CREDENTIALS),
    "TokenRefreshRequired": (StorageError, _NEW_CREDENTIALS),
    "RequestTimeTooSkewed": (StorageError, "the clock of this machine is wrong; set it, and run it again with --resume"),
    "400": (StorageError, f"the request is refused; check that the credentials have not expired and the region, and {_AGAIN}"),
    "AccessDenied": (StorageError, "access denied; check the name, and that the credentials have the right to do this there"),
    "403": (StorageError, "access denied; check the name, and that the credentials have the right to do this there"),
    "QuotaExceeded": (StorageError, "the quota of the store is used up; free some space and run it again"),
}

# What happened without an answer, by the name of the exception's class or one of its bases; the first that fits counts.
_FAILURES: dict[str, tuple[type[YivlError], str]] = {
    "NoCredentialsError": (ConfigurationError, _NO_CREDENTIALS),
    "PartialCredentialsError": (ConfigurationError, _NO_CREDENTIALS),
    "CredentialRetrievalError": (ConfigurationError, _NO_CREDENTIALS),
    "ProfileNotFound": (ConfigurationError, "there is no such profile of credentials; check AWS_PROFILE"),
    "SSOError": (StorageError, _NEW_CREDENTIALS),
    "TokenRetrievalError": (StorageError, _NEW_CREDENTIALS),
    "ParamValidationError": (ConfigurationError, "this is no name of a bucket or file; check the address"),
    "ConnectTimeoutError": (StorageError, f"the store does not answer; check the network and AWS_ENDPOINT_URL, or {_AGAIN}"),
    "ReadTimeoutError": (StorageError, f"the store does not answer in time; {_AGAIN}"),
    "FSTimeoutError": (StorageError, f"the store does not answer in time; {_AGAIN}"),
    "ServerTimeoutError": (StorageError, f"the store does not answer in time; {_AGAIN}"),
    "SSLError": (StorageError, "no secure connection to the store; check AWS_ENDPOINT_URL and the certificates (AWS_CA_BUNDLE)"),
    "EndpointConnectionError": (
        StorageError,
        f"no connection to the store; check the network and AWS_ENDPOINT_URL, or {_AGAIN}",
    ),
    "ClientConnectorError": (StorageError, f"no connection to the store; check the network, or {_AGAIN}"),
}


def explain(error: Exception) -> tuple[type[YivlError], str] | None:
    """The kind of error that a failure of an object store is, and what is wrong and how to mend it, in words without secrets.

    Args:
        error: any exception.

    Returns:
        None where the failure is not that of a store, and where it is that of any disk, too: no such file.
    """
    code = answer_code(error)
    if code is not None:
        return _explain_answer(error, code)
    if type(error) is ValueError and str(error).startswith("Invalid endpoint"):
        return ConfigurationError, "AWS_ENDPOINT_URL is no address of a store; write http://HOST:PORT or https://HOST"
    for kind in type(error).__mro__:
        if kind.__name__ in _FAILURES:
            return _FAILURES[kind.__name__]
    if _is_of_client(error):
        return StorageError, f"the request failed ({type(error).__name__}: {without_secrets(error)}); {_AGAIN}"
    return None


def answer_code(error: BaseException) -> str | None:
    """The code of the store's answer that an exception stems from (`NoSuchKey`, `SlowDown`, `404`); None where it has none."""
    response = _response(error)
    if response is not None:
        return str(response.get("Error", {}).get("Code") or _status(error))
    return _status(error) or None


def without_secrets(text: Any) -> str:
    """A text in which addresses show neither user and password nor the values of their queries."""
    text = re.sub(r"(\w://)[^/@\s]*@", r"\1", str(text))
    return re.sub(r"([?&][^=?&/\s]+=)[^&\s\"']+", r"\1...", text)


def _explain_answer(error: BaseException, code: str) -> tuple[type[YivlError], str] | None:
    if code in ("404", "NoSuchKey"):
        return None
    status = _status(error)
    if code in _ANSWERS:
        kind, text = _ANSWERS[code]
        what, _, remedy = text.partition("; ")
        return kind, f"{what} ({code if code == status else f'{status} {code}'}); {remedy}"
    answer = code if code == status else f"{status} ({code})"
    if status.startswith("5") or status == "429" or code in ("SlowDown", "RequestTimeout"):
        return StorageError, f"the store answers {answer} again and again; {_AGAIN}"
    return StorageError, f"the store answers {answer}: {without_secrets(_message(error))}"


def _is_of_client(error: BaseException) -> bool:
    return not _CLIENTS.isdisjoint(kind.__module__.partition(".")[0] for kind in type(error).__mro__)


def _response(error: BaseException) -> dict[str, Any] | None:
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return None


def _status(error: BaseException) -> str:
    """The number of the answer, as HTTP has it; empty where there is none."""
    metadata = (_response(error) or {}).get("ResponseMetadata", {})
    return str(metadata.get("HTTPStatusCode") or (getattr(error, "status", "") if _is_of_client(error) else ""))


def _message(error: BaseException) -> str:
    return str((_response(error) or {}).get("Error", {}).get("Message") or getattr(error, "message", ""))
