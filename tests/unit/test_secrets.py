"""References become values inside the container, asked of each store as its vendor documents it."""

from __future__ import annotations

import base64
import importlib.util
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.loopback import Loopback
from train_entry import secrets
from train_entry.failure import JobError
from train_entry.secrets import needs_botocore, references, resolve

VALUE = "s3cr" + "et-välue"
TOKEN = "tok" + "en-of-the-job"
VARIABLES = ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "AZURE_CLIENT_ID",
             "DEFAULT_IDENTITY_CLIENT_ID", "AZURE_POD_IDENTITY_AUTHORITY_HOST", "LAUNCH_SECRETS")  # fmt: skip
needs_aws = pytest.mark.skipif(importlib.util.find_spec("botocore") is None, reason="botocore is not installed")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(secrets, "WAITS_S", (0.0, 0.0))
    made = Loopback()
    yield made
    made.close()


def google(store: Loopback, monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", store.host)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", f"{store.url}/")
    store.answers[GOOGLE_IDENTITY] = (200, {"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})
    store.answers[GOOGLE_ENTRY] = (200, {"payload": {"data": base64.b64encode(value).decode()}})


GOOGLE_IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/token"
GOOGLE_ENTRY = "/v1/projects/my-project/secrets/hf-token/versions/latest:access"
GOOGLE = {"HF_TOKEN": "gcp-sm://my-project/hf-token"}


def test_google_is_asked_with_the_service_accounts_token(store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    google(store, monkeypatch, f"{VALUE}\n".encode())
    assert resolve(GOOGLE) == {"HF_TOKEN": VALUE}, "the line feed that echo left is gone"
    (method, _, metadata, _), (asked, path, headers, _) = store.seen
    assert (method, asked, path) == ("GET", "GET", GOOGLE_ENTRY)
    assert metadata["metadata-flavor"] == "Google" and headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("path", "answer", "message", "hint"),
    [
        (GOOGLE_ENTRY, (403, {}), "refuses it (HTTP 403)", "roles/secretmanager.secretAccessor"),
        (GOOGLE_ENTRY, (404, {}), "none of that name", "create it"),
        (GOOGLE_ENTRY, (200, b"<html>"), "not JSON", "secretAccessor"),
        (GOOGLE_ENTRY, (200, {"payload": {}}), "holds no value", None),
        (GOOGLE_ENTRY, (302, {}), "HTTP 302", "secretAccessor"),
        (GOOGLE_IDENTITY, (404, {}), "metadata server refuses", "service account"),
    ],
)
def test_google_refusals_name_the_secret_and_the_right(
    path: str, answer: Any, message: str, hint: str | None, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    google(store, monkeypatch, VALUE.encode())
    store.answers[path] = answer
    with pytest.raises(JobError) as refused:
        resolve(GOOGLE)
    error = refused.value
    assert error.kind == "secrets"
    assert "HF_TOKEN" in error.message and GOOGLE["HF_TOKEN"] in error.message and message in error.message
    assert hint is None or hint in (error.hint or "")
    assert TOKEN not in f"{error.message} {error.hint}" and error.__cause__ is None
    assert not [path for _, path, _, _ in store.seen if path == "/elsewhere"], "the token goes to no other place"


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"a\0b", b"\n"])
def test_a_value_that_is_no_text_is_refused(
    value: bytes, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    google(store, monkeypatch, value)
    with pytest.raises(JobError, match=r"secret HF_TOKEN \(gcp-sm://my-project/hf-token\): its value is"):
        resolve(GOOGLE)


def test_a_store_that_does_not_answer_is_given_up_after_three_tries(
    store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    google(store, monkeypatch, VALUE.encode())
    monkeypatch.setattr(secrets, "TIMEOUT_S", 0.2)
    store.silent = True
    with pytest.raises(JobError, match="the metadata server could not be reached"):
        resolve(GOOGLE)
    assert [path for _, path, _, _ in store.seen] == [GOOGLE_IDENTITY] * 3


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_busy_is_asked_again_and_a_refusal_is_not(
    status: int, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    google(store, monkeypatch, VALUE.encode())
    store.first[GOOGLE_IDENTITY] = [(status, {})]
    store.first[GOOGLE_ENTRY] = [(status, {}), (status, {})]
    assert resolve(GOOGLE) == {"HF_TOKEN": VALUE}
    assert [path for _, path, _, _ in store.seen] == [GOOGLE_IDENTITY] * 2 + [GOOGLE_ENTRY] * 3
    store.answers[GOOGLE_ENTRY] = (403, {})
    with pytest.raises(JobError, match="HTTP 403"):
        resolve(GOOGLE)
    assert len(store.seen) == 7
    store.answers[GOOGLE_ENTRY] = (status, {})
    with pytest.raises(JobError, match=rf"Secret Manager is busy \(HTTP {status}\)"):
        resolve(GOOGLE)


def test_metadata_is_never_asked_through_a_proxy(store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    google(store, monkeypatch, VALUE.encode())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(JobError, match="Secret Manager could not be reached"):
            resolve(GOOGLE)
    assert [path for _, path, _, _ in store.seen] == [GOOGLE_IDENTITY]


AZURE = {"HF_TOKEN": "azure-kv://my-vault/hf-token"}
AZURE_WAYS = {
    "app service": ({"IDENTITY_ENDPOINT": "{}/msi", "IDENTITY_HEADER": "h"}, "/msi", ("x-identity-header", "h"),
                    {"api-version": ["2019-08-01"], "client_id": ["id-1"]}),
    "azure ml": ({"MSI_ENDPOINT": "{}/ml", "MSI_SECRET": "s"}, "/ml", ("secret", "s"),
                 {"api-version": ["2017-09-01"], "clientid": ["id-1"]}),
    "machine": ({"AZURE_POD_IDENTITY_AUTHORITY_HOST": "{}"}, "/metadata/identity/oauth2/token",
                ("metadata", "true"), {"api-version": ["2018-02-01"], "client_id": ["id-1"]}),
}  # fmt: skip


@pytest.mark.parametrize("way", AZURE_WAYS)
def test_azure_is_asked_with_the_managed_identitys_token(
    way: str, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, path, header, query = AZURE_WAYS[way]
    for name, text in variables.items():
        monkeypatch.setenv(name, text.format(store.url))
    monkeypatch.setenv("AZURE_CLIENT_ID", "id-1")
    monkeypatch.setattr(secrets, "AZURE_VAULT", f"{store.url}/{{vault}}")
    store.answers[path] = (200, {"access_token": TOKEN, "expires_on": "1790000000"})
    store.answers["/my-vault/secrets/hf-token"] = (200, {"value": VALUE, "id": "x"})
    assert resolve(AZURE) == {"HF_TOKEN": VALUE}
    (_, asked, headers, _), (_, vault, authorised, _) = store.seen
    assert headers[header[0]] == header[1]
    assert parse_qs(urlsplit(asked).query) == {"resource": ["https://vault.azure.net"], **query}
    assert vault == "/my-vault/secrets/hf-token?api-version=7.4"
    assert authorised["authorization"] == f"Bearer {TOKEN}"


def test_azure_refusal_names_the_role(store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", store.url)
    monkeypatch.setattr(secrets, "AZURE_VAULT", f"{store.url}/{{vault}}")
    with pytest.raises(JobError) as refused:
        resolve(AZURE)
    assert "managed identity" in (refused.value.hint or "")
    store.answers["/metadata/identity/oauth2/token"] = (200, {"access_token": TOKEN})
    store.answers["/my-vault/secrets/hf-token"] = (403, {})
    with pytest.raises(JobError) as refused:
        resolve(AZURE)
    assert "Key Vault Secrets User" in (refused.value.hint or "") and "HF_TOKEN" in refused.value.message


def aws(store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("SECRETS_MANAGER", "SSM"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA" + "TEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "no" + "ne")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@needs_aws
@pytest.mark.parametrize(
    ("ref", "target", "asked", "answer"),
    [
        ("aws-sm://eu-west-1/team/hf-token", "secretsmanager.GetSecretValue", {"SecretId": "team/hf-token"},
         {"SecretString": VALUE}),
        ("aws-sm://eu-west-1/x", "secretsmanager.GetSecretValue", {"SecretId": "x"},
         {"SecretBinary": base64.b64encode(VALUE.encode()).decode()}),
        ("aws-ssm://eu-west-1/team/hf", "AmazonSSM.GetParameter", {"Name": "/team/hf", "WithDecryption": True},
         {"Parameter": {"Value": VALUE}}),
        ("aws-ssm://eu-west-1/hf", "AmazonSSM.GetParameter", {"Name": "hf", "WithDecryption": True},
         {"Parameter": {"Value": VALUE}}),
    ],
)  # fmt: skip
def test_aws_is_asked_with_a_signed_request(
    ref: str, target: str, asked: Any, answer: Any, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(store, monkeypatch)
    store.answers["/"] = (200, answer)
    assert resolve({"HF_TOKEN": ref}) == {"HF_TOKEN": VALUE}
    method, path, headers, body = store.seen[0]
    assert (method, path, headers["x-amz-target"], json.loads(body)) == ("POST", "/", target, asked)
    assert "/eu-west-1/" in headers["authorization"] and "Signature=" in headers["authorization"]


@needs_aws
@pytest.mark.parametrize(
    ("status", "code", "told", "hint"),
    [
        (400, "AccessDeniedException", "AWS refuses it (AccessDeniedException)", "secretsmanager:GetSecretValue"),
        (400, "ResourceNotFoundException", "none of that name in eu-west-1", "create it"),
    ],
)
def test_aws_refusals_name_the_secret_and_the_right(
    status: int, code: str, told: str, hint: str, store: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(store, monkeypatch)
    store.answers["/"] = (status, {"__type": code, "message": "x"})
    with pytest.raises(JobError) as refused:
        resolve({"HF_TOKEN": "aws-sm://eu-west-1/hf"})
    assert told in refused.value.message and "HF_TOKEN" in refused.value.message
    assert hint in (refused.value.hint or "")


PLAIN = "http://store.invalid"


@pytest.mark.parametrize("address", [PLAIN, "store.invalid:80", "http://127.0.0.1.store.invalid"])
def test_a_token_goes_nowhere_without_tls(address: str, store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    google(store, monkeypatch, VALUE.encode())
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", address)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", store.url)
    monkeypatch.setattr(secrets, "AZURE_VAULT", f"{address}/{{vault}}")
    store.answers["/metadata/identity/oauth2/token"] = (200, {"access_token": TOKEN})
    for refs in (GOOGLE, AZURE):
        with pytest.raises(JobError, match="without TLS") as refused:
            resolve(refs)
        assert refused.value.hint and "HF_TOKEN" in refused.value.message and TOKEN not in refused.value.message


@needs_aws
@pytest.mark.parametrize("scheme", ["aws-sm", "aws-ssm"])
def test_aws_is_not_asked_without_tls(scheme: str, store: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    aws(store, monkeypatch)
    for service in ("SECRETS_MANAGER", "SSM"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", PLAIN)
    with pytest.raises(JobError, match=r"at http://store\.invalid, without TLS"):
        resolve({"HF_TOKEN": f"{scheme}://eu-west-1/hf"})


@pytest.mark.parametrize("ref", ["hf_plain", "vault://x/y", "gcp-sm://project", "gcp-sm:///x", "aws-sm://r/"])
def test_what_is_no_reference_is_refused(ref: str) -> None:
    with pytest.raises(JobError, match=r"secret NAME: .* is not a reference"):
        resolve({"NAME": ref})


def test_references_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_SECRETS", raising=False)
    assert references() == {} and not needs_botocore({})
    monkeypatch.setenv("LAUNCH_SECRETS", json.dumps(GOOGLE))
    assert references() == GOOGLE and not needs_botocore(GOOGLE)
    assert needs_botocore({"A": "aws-ssm://r/x"})
    monkeypatch.setenv("LAUNCH_SECRETS", "{")
    with pytest.raises(JobError, match="LAUNCH_SECRETS"):
        references()
