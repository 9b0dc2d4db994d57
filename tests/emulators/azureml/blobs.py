"""Blob storage as azure-storage-blob and a job's mounts need it: containers are folders, blobs are files.

https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api (read 2026-11-25)
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import time
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4
from xml.sax.saxutils import escape

from tests.emulators.azureml.wire import Answer, Request
from tests.emulators.azureml.world import World

VERSION = "2023-11-03"
AUDIENCE = "https://storage.azure.com"
PAGE = 1000
NEEDED = {"GET": "r", "HEAD": "r", "PUT": "w", "DELETE": "d"}


def operation(request: Request) -> str:
    """Its name in Azure's reference."""
    comp, of_container = request.query.get("comp"), request.query.get("restype") == "container"
    if of_container:
        return "ListBlobs" if comp == "list" else f"{request.method.capitalize()}Container"
    if comp:
        return f"{request.method.capitalize()}{comp.capitalize()}"
    if request.method == "PUT" and "x-ms-copy-source" in request.headers:
        return "CopyBlob"
    return f"{request.method.capitalize()}Blob"


def answer(world: World, request: Request) -> Answer:
    """Check who asks, then do it."""
    problem = _refusal(world, request)
    if problem is not None:
        return problem
    container, _, key = request.path.strip("/").partition("/")
    folder, name = world.container(container), operation(request)
    if name == "PutContainer":
        folder.mkdir(parents=True, exist_ok=True)
        return Answer(status=201)
    if not folder.is_dir():
        return _error(404, "ContainerNotFound")
    if name.endswith("Container"):
        return Answer()
    if name == "ListBlobs":
        return _list(folder, request)
    path = (folder / key).resolve()
    if not path.is_relative_to(folder.resolve()):
        return _error(400, "InvalidUri")
    if name in ("PutBlob", "PutBlock", "PutBlocklist", "CopyBlob"):
        return _write(world, request, name, path)
    if name == "GetBlocklist":
        return _blocks(world, path)
    if not path.is_file():
        return _error(404, "BlobNotFound")
    if name == "DeleteBlob":
        path.unlink()
        return Answer(status=202)
    if name == "PutMetadata":
        found = {k[10:]: v for k, v in request.headers.items() if k.startswith("x-ms-meta-")}
        world.metadata[str(path)] = found
        return Answer(headers=_marks(path))
    return _read(world, request, path)


def _refusal(world: World, request: Request) -> Answer | None:
    header, needed = request.headers.get("authorization"), NEEDED[request.method]
    if header:
        if world.holder(header, AUDIENCE) is None:
            return _error(401, "InvalidAuthenticationInfo")
        return None
    granted, ends = world.signatures.get(request.query.get("sig", ""), ("", 0.0))
    if ends < time.time():
        return _error(403, "AuthenticationFailed")
    if needed not in granted and not (needed == "r" and "l" in granted and request.query.get("comp") == "list"):
        return _error(403, "AuthorizationPermissionMismatch")
    return None


def _write(world: World, request: Request, name: str, path: Path) -> Answer:
    told_md5 = request.headers.get("content-md5")
    if told_md5 and base64.b64encode(hashlib.md5(request.body).digest()).decode() != told_md5:
        return _error(400, "Md5Mismatch")
    staged = _staged(world, path)
    if name == "PutBlock":
        staged.mkdir(parents=True, exist_ok=True)
        (staged / request.query["blockid"].replace("/", "_")).write_bytes(request.body)
        return Answer(status=201)
    if request.headers.get("if-none-match") == "*" and path.exists():
        return _error(409, "BlobAlreadyExists")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.upload")  # a writer each: several come at once
    if name == "CopyBlob":
        return _copy(world, request, path)
    if name == "PutBlocklist":
        ids = re.findall(r"<(?:Latest|Uncommitted|Committed)>([^<]+)<", request.body.decode())
        parts = [staged / one.replace("/", "_") for one in ids]
        if not all(part.is_file() for part in parts):
            return _error(400, "InvalidBlockList")
        temporary.write_bytes(b"".join(part.read_bytes() for part in parts))
        shutil.rmtree(staged, ignore_errors=True)
    else:
        temporary.write_bytes(request.body)
    temporary.replace(path)
    return Answer(status=201, headers=_marks(path))


def _copy(world: World, request: Request, path: Path) -> Answer:
    source = urlsplit(request.headers["x-ms-copy-source"])
    container, _, key = unquote(source.path).strip("/").partition("/")
    original = world.container(container) / key
    if not original.is_file():
        return _error(404, "CannotVerifyCopySource")
    shutil.copyfile(original, path)
    world.metadata[f"{path}#copied"] = {"status": "success"}
    return Answer(status=202, headers={**_marks(path), "x-ms-copy-id": "copy-1", "x-ms-copy-status": "success"})


def _blocks(world: World, path: Path) -> Answer:
    staged = _staged(world, path)
    if not staged.is_dir() and not path.is_file():
        return _error(404, "BlobNotFound")
    found = "".join(
        f"<Block><Name>{block.name.replace('_', '/')}</Name><Size>{block.stat().st_size}</Size></Block>"
        for block in (sorted(staged.iterdir()) if staged.is_dir() else ())
    )
    return _xml(f"<BlockList><CommittedBlocks/><UncommittedBlocks>{found}</UncommittedBlocks></BlockList>")


def _read(world: World, request: Request, path: Path) -> Answer:
    whole = path.read_bytes()
    headers = {
        **_marks(path), "x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        **{f"x-ms-meta-{k}": v for k, v in world.metadata.get(str(path), {}).items()},
    }  # fmt: skip
    if f"{path}#copied" in world.metadata:
        headers |= {"x-ms-copy-id": "copy-1", "x-ms-copy-status": "success"}
    if request.method == "HEAD":
        return Answer(headers={**headers, "Content-Length": str(len(whole))})
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("x-ms-range", request.headers.get("range", "")))
    if asked is None:
        return Answer(body=whole, headers=headers)
    start, end = int(asked[1]), min(int(asked[2] or len(whole) - 1), len(whole) - 1)
    if start >= len(whole):
        refusal = _error(416, "InvalidRange")
        refusal.headers["Content-Range"] = f"bytes */{len(whole)}"
        return refusal
    headers["Content-Range"] = f"bytes {start}-{end}/{len(whole)}"
    return Answer(status=206, body=whole[start : end + 1], headers=headers)


def _list(folder: Path, request: Request) -> Answer:
    prefix, start = request.query.get("prefix", ""), int(request.query.get("marker") or 0)
    below = folder / prefix.rpartition("/")[0]
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in below.rglob("*")
        if path.is_file() and not path.name.endswith(".upload")
    )
    found = [name for name in names if name.startswith(prefix)]
    page = found[start : start + PAGE]
    blobs = "".join(_item(folder / name, name) for name in page if (folder / name).is_file())
    marker = f"<NextMarker>{start + PAGE}</NextMarker>" if start + PAGE < len(found) else "<NextMarker/>"
    return _xml(
        f'<EnumerationResults ContainerName="{folder.name}"><Prefix>{escape(prefix)}</Prefix>'
        f"<Blobs>{blobs}</Blobs>{marker}</EnumerationResults>"
    )


def _item(path: Path, name: str) -> str:
    marks = _marks(path)
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{marks['Last-Modified']}</Last-Modified>"
        f"<Etag>{marks['ETag']}</Etag><Content-Length>{path.stat().st_size}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )


def _staged(world: World, path: Path) -> Path:
    return world.folder / "blocks" / hashlib.sha256(str(path).encode()).hexdigest()


def _marks(path: Path) -> dict[str, str]:
    found = path.stat()
    tag = f"0x{found.st_mtime_ns:X}{found.st_size:X}"
    return {"ETag": tag, "Last-Modified": formatdate(found.st_mtime, usegmt=True)}


def _xml(text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
    return Answer(body=body, headers={"Content-Type": "application/xml"})


def _error(status: int, code: str) -> Answer:
    made = _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")
    made.status, made.headers["x-ms-error-code"] = status, code
    return made
