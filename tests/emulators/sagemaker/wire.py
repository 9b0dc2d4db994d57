"""Between the socket and moto: notes every call, answers for what is refused, expired or throttled, breaks
connections, and speaks to the tests and to the jobs' credential providers."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from moto.core.request import Request
from moto.core.routing import get_service_router
from moto.moto_server.werkzeug_app import MotoRequestHandler

from tests.emulators.faults import Fault
from tests.emulators.sagemaker.world import World
from tests.emulators.wire import Environ, QuietHandler, Start, cut_off, hang_up

CONTROL = "/_emulator/"
CREDENTIALS = "/_credentials/"
SCOPE = re.compile(r"Credential=(?P<key>[^/]+)/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")
S3_RIGHTS = {
    "ListObjectsV2": "ListBucket", "ListObjects": "ListBucket", "HeadBucket": "ListBucket",
    "HeadObject": "GetObject", "CreateMultipartUpload": "PutObject", "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject", "DeleteObjects": "DeleteObject", "CopyObject": "PutObject",
    "UploadPartCopy": "PutObject", "ListParts": "ListMultipartUploadParts",
    "ListMultipartUploads": "ListBucketMultipartUploads", "ListBuckets": "ListAllMyBuckets",
}  # fmt: skip
"""Operation -> the right that it needs, where they differ."""
XML = "<{outer}<Error>{inner}<Code>{code}</Code><Message>{message}</Message></Error>{end}"


class Wire:
    """The WSGI application around moto's own."""

    def __init__(self, world: World, moto: Callable[[Environ, Start], Iterable[bytes]]) -> None:
        self.world = world
        self.moto = moto

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL):
            return self.control(path.removeprefix(CONTROL), environ, start)
        if path.startswith(CREDENTIALS):
            return _json(start, 200, _credentials(path.removeprefix(CREDENTIALS)))
        key, service, operation = _identify(environ)
        call: dict[str, Any] = {
            "service": service, "operation": operation, "key": key, "role": self.world.is_role(key),
            "time": time.time(), "status": None, "right": right(service, operation),
            "agent": environ.get("HTTP_USER_AGENT", ""),
        }  # fmt: skip
        self.world.calls.append(call)

        def note(status: str, headers: list[Any], *more: Any) -> Any:
            call["status"] = int(status.split()[0])
            return start(status, headers, *more)

        if refusal := self.refusal(key, service, operation):
            return _refuse(note, environ, service, *refusal)
        fault = None if call["role"] else self.world.fault_for(service, operation)
        if fault is None:
            return self.moto(environ, note)
        return self.broken(fault, environ, note, service)

    def refusal(self, key: str | None, service: str, operation: str) -> tuple[int, str, str] | None:
        """(status, code, message) where the caller may not do this."""
        if key in self.world.expired:
            return 403, "ExpiredToken", "The security token included in the request is expired"
        who = self.world.principal(key)
        action = right(service, operation)
        if not self.world.is_denied(who, action):
            return None
        message = f"User: {who} is not authorized to perform: {action}"
        return 403, "AccessDenied", f"{message} because no identity-based policy allows the {action} action"

    def broken(self, fault: Fault, environ: Environ, start: Start, service: str) -> Iterable[bytes]:
        """What the caller sees of a call that meets `fault`."""
        if fault.kind == "throttle":
            return _refuse(start, environ, service, 400, "Throttling", "Rate exceeded")
        if fault.kind == "error":
            return _refuse(start, environ, service, 500, "InternalFailure", "We encountered an internal error.")
        if fault.kind == "unavailable":
            return _refuse(
                start, environ, service, 503, "ServiceUnavailable", "Service is unable to handle request."
            )
        if fault.kind == "slow":
            time.sleep(fault.seconds)
            return self.moto(environ, start)
        if fault.kind == "drop":
            return hang_up(environ)
        answer: list[Any] = []
        body = b"".join(self.moto(environ, lambda *told: answer.extend(told)))
        if fault.kind == "lose":  # it is done, and nobody hears of it
            return hang_up(environ)
        start(answer[0], answer[1])  # its length is told in full
        return cut_off(body, environ)

    def control(self, verb: str, environ: Environ, start: Start) -> Iterable[bytes]:
        try:
            asked = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"{}")
            answer = getattr(self.world, f"do_{verb}")(**asked)
        except (TypeError, ValueError, LookupError, AttributeError) as exc:
            return _json(start, 400, {"problem": f"{type(exc).__name__}: {exc}"})
        return _json(start, 200, {"answer": answer})


def right(service: str, operation: str) -> str:
    """What a policy must allow for the operation: `s3:PutObject` for UploadPart."""
    return f"{service}:{S3_RIGHTS.get(operation, operation) if service == 's3' else operation}"


def role_app(wire: Wire, key: str) -> Callable[[Environ, Start], Iterable[bytes]]:
    """`wire` without the control surface, for the inside of a job: its credentials are its own role's alone."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(CONTROL) or (path.startswith(CREDENTIALS) and path != CREDENTIALS + key):
            return _json(start, 404, {})
        return wire(environ, start)

    return app


class MotoHandler(QuietHandler, MotoRequestHandler):
    """As moto reads requests."""


def _identify(environ: Environ) -> tuple[str | None, str, str]:
    """(access key id, service, operation) of a request; what is not signed is S3."""
    query = environ.get("QUERY_STRING", "")
    signed = environ.get("HTTP_AUTHORIZATION", "")
    if "X-Amz-Credential=" in query:
        signed = "Credential=" + parse_qs(query)["X-Amz-Credential"][0]
    scope = SCOPE.search(signed)
    key, service = (scope["key"], scope["service"]) if scope else (None, "s3")
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return key, service, target.rpartition(".")[2]
    if service != "s3":
        return key, service, _form_action(environ)
    try:
        operation, _ = get_service_router("s3").match(Request(dict(environ, **{"wsgi.input": io.BytesIO()})))
        return key, service, str(operation.name)
    except Exception:  # noqa: BLE001 - a request that no S3 operation has: moto answers it
        return key, service, "?"


def _form_action(environ: Environ) -> str:
    """Action=... of the query protocol; the body is put back."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return parse_qs(body.decode("utf-8", "replace")).get("Action", ["?"])[0]


def _refuse(start: Start, environ: Environ, service: str, status: int, code: str, message: str) -> Iterable[bytes]:
    """An error in the service's own dialect and with its own name for it."""
    if environ.get("HTTP_X_AMZ_TARGET"):
        names = {"Throttling": "ThrottlingException", "ExpiredToken": "ExpiredTokenException",
                 "AccessDenied": "AccessDeniedException"}  # fmt: skip
        code = names.get(code, code)
        status = 400 if status == 403 else status
        return _json(start, status, {"__type": code, "message": message}, [("x-amzn-errortype", code)])
    if service == "s3":
        status, code = {"Throttling": (503, "SlowDown"), "InternalFailure": (500, "InternalError"),
                        "ExpiredToken": (400, "ExpiredToken")}.get(code, (status, code))  # fmt: skip
        body = XML.format(outer="?xml version='1.0'?>", inner="", code=code, message=message, end="")
    else:
        body = XML.format(outer="ErrorResponse>", inner="<Type>Sender</Type>", code=code, message=message,
                          end="<RequestId>emulated</RequestId></ErrorResponse>")  # fmt: skip
    data = b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()
    start(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(data)))])
    return [data]


def _json(start: Start, status: int, told: Any, headers: list[tuple[str, str]] | None = None) -> Iterable[bytes]:
    data = json.dumps(told).encode()
    start(f"{status} told", [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(data))),
                             *(headers or [])])  # fmt: skip
    return [data]


def _credentials(key: str) -> dict[str, str]:
    """What a container's credential provider is told: the role's, good for hours.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
    """
    return {
        "AccessKeyId": key, "SecretAccessKey": "of-the-role", "Token": "of-the-role",
        "Expiration": "2099-01-01T00:00:00Z",
    }  # fmt: skip
