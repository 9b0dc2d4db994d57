"""Between the socket and the services: notes every call, refuses, breaks connections, takes REST apart."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf import json_format

from tests.emulators.faults import Fault
from tests.emulators.vertex import services
from tests.emulators.vertex.gcs import Answer, CloudStorage
from tests.emulators.vertex.world import DEVELOPER, Refused, World, invalid, not_found
from tests.emulators.wire import Environ, Start, cut_off, hang_up

CONTROL = "/_emulator/"
App = Callable[[Environ, Start], Iterable[bytes]]


class Wire:
    """The WSGI application. `methods`: of api.py, handed in, since jobs reach this module too."""

    def __init__(self, world: World, methods: Iterable[Any], operation: Callable[[World, str], Any]) -> None:
        self.world = world
        self.storage = CloudStorage(world)
        self._methods = tuple(methods)
        self._operation = operation

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(CONTROL):
            return self.control(environ["PATH_INFO"].removeprefix(CONTROL), environ, start)
        return self.serve(environ, start, DEVELOPER)

    def serve(self, environ: Environ, start: Start, who: str) -> Iterable[bytes]:
        request = _Request(environ)
        service, operation = self.name_of(request)
        call = {"service": service, "operation": operation, "who": who, "path": request.path, "status": None,
                "time": time.time()}  # fmt: skip
        self.world.calls.append(call)
        fault = self.world.fault_for(service, operation) if who == DEVELOPER else None
        if fault is not None and fault.kind == "drop":
            return hang_up(environ)
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.seconds)
        status, headers, body = self.answer(request, service, operation, who, fault)
        call["status"] = status
        if fault is not None and fault.kind == "lose":  # it is done, and nobody hears of it
            return hang_up(environ)
        start(f"{status} told", [*headers.items(), ("Content-Length", str(len(body)))])
        if fault is not None and fault.kind == "cut":
            return cut_off(body, environ)
        return [b"" if request.method == "HEAD" else body]

    def name_of(self, request: _Request) -> tuple[str, str]:
        """(service, operation) of a request."""
        path = request.path
        if "/storage/v1/" in request.raw_path:
            return "storage", CloudStorage.operation(request.method, request.raw_path, request.query)
        if path == "v2/entries:list":
            return "logging", "ListLogEntries"
        if "/secrets" in path:
            return "secretmanager", path.rpartition(":")[2] if ":" in path else request.method
        if not path or path.startswith("computeMetadata/"):
            return "metadata", "Get"
        if path == "v1/userinfo":
            return "openidconnect", "Get"
        if "/serviceAccounts" in path:
            return "iam", path.rpartition(":")[2] if ":" in path else "Get"
        if re.fullmatch(r"v1/projects/[^/]+:getIamPolicy", path):
            return "cloudresourcemanager", "GetIamPolicy"
        if "/services/" in path:
            return "serviceusage", "Get"
        if "/manifests/" in path or path.endswith("/dockerImages"):
            return "artifactregistry", "Get"
        method = self.method_of(request)
        return "aiplatform", method[0].name if method else "GetOperation"

    def answer(self, request: _Request, service: str, operation: str, who: str, fault: Fault | None) -> Answer:
        try:
            if who == DEVELOPER and self.world.expired:
                raise Refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
            if self.world.is_denied(who, f"{service}.{operation}"):
                raise Refused(403, "PERMISSION_DENIED", f"Permission '{service}.{operation}' denied")
            if fault is not None and fault.kind in BROKEN:
                raise Refused(*BROKEN[fault.kind])
            return self.told(request, service, who)
        except Refused as exc:
            return _json(exc.code, {"error": {"code": exc.code, "message": str(exc), "status": exc.status}})

    def told(self, request: _Request, service: str, who: str) -> Answer:
        world, path = self.world, request.path
        if service == "storage":
            return self.storage.answer(
                request.method, request.raw_path, request.query, request.headers, request.body
            )
        if service == "logging":
            return _json(200, services.list_entries(world, request.json()))
        if service == "secretmanager":
            return _json(200, services.secret(
                world, self.caller(request, who), request.method, path.removeprefix("v1/"), request.query,
                request.body,
            ))  # fmt: skip
        if service == "metadata":
            account = world.settings.machine_account if who == DEVELOPER else who
            if account is None:
                raise not_found(path)
            return _metadata(services.metadata(world, account, path, request.headers))
        if service == "openidconnect":
            return _json(200, services.user(world))
        if service == "iam":
            return _json(200, services.identity(world, request.method, path, request.body))
        if service == "cloudresourcemanager":
            return _json(200, services.project_policy(world))
        if service == "serviceusage":
            return _json(200, services.usage(world, request.raw_path))
        if service == "artifactregistry" and path.endswith("/dockerImages"):
            return _json(200, services.images(path))
        if service == "artifactregistry":
            return 200, services.manifest(world, path), b""
        return self.of_platform(request)

    def caller(self, request: _Request, who: str) -> str:
        """A job must show the token of its own service account."""
        if who == DEVELOPER:
            return who
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.world.tokens.get(token) != who:
            raise Refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        return who

    def of_platform(self, request: _Request) -> Answer:
        if re.search(r"/operations/\d+$", request.path):
            # Google's REST client looks for operations below /ui/.
            found = self._operation(self.world, re.sub(r"^(v1|ui)/", "", request.path))
            return _json(200, json_format.MessageToDict(found))
        if (match := self.method_of(request)) is None:
            raise not_found(f"no method {request.method} {request.path}")
        method, name = match
        message = method.request.pb(method.request())
        query = {k: v for k, v in request.query.items() if not k.startswith("$")}
        asked: dict[str, Any] = {**query, method.field: name}
        if method.body == "*":
            asked |= request.json()
        elif method.body:
            asked[method.body] = request.json()
        try:
            json_format.ParseDict(asked, message)
        except json_format.ParseError as exc:
            raise invalid(f"Invalid JSON payload received. {exc}") from exc
        found = method.answer(self.world, method.request(message))
        with self.world.lock:
            return _json(200, json_format.MessageToDict(getattr(found, "_pb", found)))

    def method_of(self, request: _Request) -> tuple[Any, str] | None:
        path = request.path.removeprefix("v1/")
        for method in self._methods:
            if method.verb == request.method and (match := re.fullmatch(method.path, path)):
                return method, match[1]
        return None

    def control(self, verb: str, environ: Environ, start: Start) -> Iterable[bytes]:
        try:
            asked = _Request(environ).json()
            told: Any = {"answer": getattr(self.world, f"do_{verb}")(**asked)}
        except (TypeError, ValueError, LookupError, AttributeError, StopIteration) as exc:
            told = {"problem": f"{type(exc).__name__}: {exc}"}
        status, headers, body = _json(200, told)
        start(f"{status} told", [*headers.items(), ("Content-Length", str(len(body)))])
        return [body]


def job_app(world: World, account: str) -> App:
    """What a job with this service account finds inside: the same services, and no control address."""

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        found: Iterable[bytes] = world.app.serve(environ, start, account or "custom-code-service-agent")
        return found

    return app


BROKEN = {
    "throttle": (429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Requests' and limit 'a minute'"),
    "error": (500, "INTERNAL", "Internal error encountered."),
    "unavailable": (503, "UNAVAILABLE", "The service is currently unavailable."),
}


class _Request:
    def __init__(self, environ: Environ) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        uri = environ.get("REQUEST_URI") or environ.get("RAW_URI") or environ["PATH_INFO"]
        self.raw_path: str = uri.partition("?")[0]
        self.path: str = environ["PATH_INFO"].lstrip("/")
        self.query: Mapping[str, str] = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        self.headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or name == "CONTENT_TYPE"
        }
        if environ.get("wsgi.input_terminated"):
            self.body: bytes = environ["wsgi.input"].read()
        else:
            self.body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body or b"{}")
        return found


def _metadata(told: Any) -> Answer:
    """What is one word is no JSON there."""
    status, headers, body = _json(200, told)
    return status, {**headers, "Metadata-Flavor": "Google"}, told.encode() if isinstance(told, str) else body


def _json(status: int, told: Any) -> Answer:
    return status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(told).encode()
