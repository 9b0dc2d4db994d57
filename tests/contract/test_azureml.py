"""The backend contract on emulated Azure ML, with real training processes in the folders that it mounts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.azureml import AzureMLBackend
from backends.azureml.azure import Azure, workspace_path
from backends.azureml.storage import Storage
from backends.base import Backend, Bundle, BundleFile, JobRef, Plan, Site
from launcher.errors import CredentialsError, UnreachableError
from launcher.testing import BackendContract
from tests.emulators.azureml.emulator import AzureMLEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


class TestAzureML(BackendContract):
    sdk = ("azure", "msal", "torch")
    azure: AzureMLEmulator

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def subscription(cls, image: Callable[[str], Path]) -> Iterator[None]:
        AzureMLEmulator.needed()
        with AzureMLEmulator(image("azureml"), grace_s=60.0) as azure, pytest.MonkeyPatch.context() as patch:
            for name, value in azure.environment.items():
                patch.setenv(name, value)
            cls.azure = azure
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return AzureMLBackend(home)

    def site(self) -> Site:
        facts = {
            "subscription": self.azure.subscription, "resource_group": self.azure.group,
            "workspace": self.azure.workspace, "key_vault": self.azure.vault, "identity": self.azure.identity,
        }  # fmt: skip
        return Site(backend="azureml", facts=facts, owner="anna")

    @contextlib.contextmanager
    def plant_secret(self, value: str) -> Iterator[None]:
        self.make_backend(Path("unused")).put_secret(self.site(), self.secret, value)  # type: ignore[attr-defined]
        yield

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        # The half of a bundle has the hash of the whole: it lies in the same place.
        prefix = f"finelaunch/bundles/{plan.bundle.sha256}/"
        return {key.removeprefix(prefix): mark for key, mark in self.azure.blobs(prefix).items()}

    def damaged(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        nowhere = {**request["job"], "id": "/subscriptions/x/jobs/y"}
        return [*super().damaged(request), {**request, "job": nowhere}]

    def unknown_ref(self, backend: Backend) -> JobRef:
        scope = f"{self.azure.subscription}:{self.azure.group}:{self.azure.workspace}"
        return JobRef(backend.name, scope, "any")

    def test_no_other_host_is_asked(self) -> None:
        assert self.azure.strangers() == []

    def test_a_large_file_goes_on_where_its_upload_broke_off_and_is_copied_into_the_next_bundle(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("backends.storage", "backends.azureml.storage"):
            monkeypatch.setattr(f"{module}.LARGE", 1000)
        content = random.Random(1).randbytes(3500)
        (tmp_path / "large").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        file = BundleFile(path="large", size=3500, sha256=sha256, source=tmp_path / "large")
        self.azure.clear()
        self.azure.fault("error", "PutBlock", times=100, skip=2)
        with pytest.raises(UnreachableError), pytest.MonkeyPatch.context() as patch:
            patch.setattr("backends.azureml.storage.ATTEMPTS", 0)
            self._storage().put_bundle(Bundle(sha256="a" * 64, files=(file,)), "one", lambda line: None)
        self.azure.clear()
        storage = self._storage()
        storage.put_bundle(Bundle(sha256="a" * 64, files=(file,)), "one", lambda line: None)
        assert len(self.azure.calls("PutBlock")) == 2
        storage.put_bundle(Bundle(sha256="b" * 64, files=(file,)), "two", lambda line: None)
        assert len(self.azure.calls("PutBlock")) == 2
        for bundle in ("a", "b"):
            assert storage.get(f"finelaunch/bundles/{bundle * 64}/large") == content
            storage.drop_bundle(bundle * 64, "one" if bundle == "a" else "two")
        assert list(storage.keys("finelaunch/bundles/aaaa")) == list(storage.keys("finelaunch/uses/aaaa")) == []

    def test_an_upload_that_hangs_is_given_up_and_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("backends.azureml.storage.READ_S", 0.5)
        monkeypatch.setattr("backends.azureml.storage.ATTEMPTS", 0)
        self.azure.fault("slow", "PutBlob", seconds=3)
        with pytest.raises(UnreachableError, match="can't be reached") as problem:
            self._storage().put("finelaunch/hangs", b"x")
        assert problem.value.hint

    def test_a_signature_that_has_ended_is_told_and_asked_for_anew(self) -> None:
        self.azure.clear()
        storage = self._storage()
        storage.put("finelaunch/signed", b"x")
        self.azure.expire()
        with pytest.raises(CredentialsError):
            storage.get("finelaunch/signed")
        self.azure.login()
        assert storage.get("finelaunch/signed") == b"x"
        storage.remove("finelaunch/signed")

    def test_what_the_workspace_lacks_is_found_with_its_fix(self, planned: Plan) -> None:
        backend = self.make_backend(Path("unused"))
        self.azure.clear()
        facts = {**self.site().facts, "workspace": "elsewhere"}
        (missing,) = backend.check(Site(backend="azureml", facts=facts))
        assert "az ml workspace create --name elsewhere" in missing.fix
        self.azure.deny("vault:*", "arm:ListUsages")
        told = backend.check(self.site(), planned)
        assert {problem.fatal for problem in told} == {False}
        assert len(told) == 2
        self.azure.clear()

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"vault_roles": []}, "--role 'Key Vault Secrets User' --scope /subscriptions/"),
            ({"vault_roles": ["21090545-7ca7-4776-b22c-e363652d74d2"]}, "az role assignment create"),
            ({"vault_policies": ["list"]}, "az keyvault set-policy --name fakevault --object-id 5555"),
            ({"vault_roles": ["b86a8fe4-44ce-4948-aee5-eccb2c155cd7"]}, None),
            ({"vault_roles": ["made-here-custom"]}, None),
            ({"vault_policies": ["Get", "List"]}, None),
        ],
    )
    def test_the_jobs_identity_must_be_able_to_read_the_vault(
        self, planned: Plan, settings: dict[str, Any], said: str | None
    ) -> None:
        self.azure.clear()
        self.azure.set(**settings)
        told = [
            p for p in self.make_backend(Path("unused")).check(self.site(), planned) if "may not read" in p.what
        ]
        self.azure.clear()
        assert [p.fatal for p in told] == ([] if said is None else [True])
        assert all(said and said in p.fix for p in told)

    def test_an_identity_or_a_vault_that_is_not_there_is_told(self, planned: Plan) -> None:
        self.azure.clear()
        backend = self.make_backend(Path("unused"))
        for changed, said in (("identity", "az identity create"), ("key_vault", "az keyvault list")):
            wrong = {"identity": "0" * 8 + "-0000-0000-0000-" + "0" * 12, "key_vault": "elsewhere"}[changed]
            site = dataclasses.replace(self.site(), facts={**self.site().facts, changed: wrong})
            assert any(said in p.fix for p in backend.check(site, planned))
        assert self.azure.strangers() == []  # a vault that is not there has no address to be waited for

    def test_an_image_that_is_not_there_is_told(self, planned: Plan) -> None:
        self.azure.clear()
        backend, told = self.make_backend(Path("unused")), {}
        for image in ("fakeregistry.azurecr.io/finelaunch/train:1", "fakeregistry.azurecr.io/finelaunch/train:2"):
            properties = {"image": image, "isAnonymous": False}
            request = {**planned.request, "environment": {"properties": properties}}
            plan = dataclasses.replace(planned, request=request)
            told[image[-1]] = [p for p in backend.check(self.site(), plan) if "image" in p.what]
        assert told["1"] == []
        (missing,) = told["2"]
        assert missing.fatal
        assert "az acr repository show-tags --name fakeregistry" in missing.fix
        self.azure.deny("registry:*")
        (unsure,) = [p for p in backend.check(self.site(), plan) if "image" in p.what]
        self.azure.clear()
        assert not unsure.fatal
        assert "az acr repository show" in unsure.fix

    def test_a_cluster_is_held_against_the_job(self, planned: Plan) -> None:
        size = planned.offer.instance_type
        self.azure.set(computes={"small": {"vmSize": size, "maxNodeCount": 0}, "other": {"vmSize": "Standard_D2"}})
        backend = self.make_backend(Path("unused"))
        told = {}
        for name in ("small", "other", "none"):
            site = dataclasses.replace(self.site(), facts={**self.site().facts, "compute": name})
            request = backend.render(
                planned.job, planned.offer, planned.bundle, site, planned.token, planned.lineage
            )
            plan = dataclasses.replace(planned, site=site, request=request)
            told[name] = [p.what for p in backend.check(site, plan) if p.fatal and "secret" not in p.what]
        self.azure.clear()
        assert "0 machines at most" in told["small"][0]
        assert "size Standard_D2" in told["other"][0]
        assert "no compute none" in told["none"][0]

    def _storage(self) -> Storage:
        path = workspace_path(f"{self.azure.subscription}:{self.azure.group}:{self.azure.workspace}")
        return Storage(Azure(), path, "workspaceblobstore")
