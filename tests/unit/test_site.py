"""Account facts: kept once, checked for their form, overridden by the job file, visible where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import Fact, Site, placeholders
from backends.container import merged, with_examples
from launcher.errors import ConfigError
from launcher.site import load_site, save_site, sites_file
from launcher.spec import JobSpec

FACTS = (
    Fact(name="bucket", what="bucket for bundles", example="my-bucket", pattern=r"[a-z0-9-]{3,63}"),
    Fact(name="key", what="encryption key", example="key-1", pattern=r"key-\d+", required=False),
)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCH_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config"


def job(**site: str) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "x", "model": "a/b", "task": "generation", "data": {"train": "t.jsonl"}, "site": {"cloud": site}}
    )


def test_facts_are_kept_a_backend_beside_the_other() -> None:
    save_site("cloud", {"bucket": "mine"})
    save_site("other", {"bucket": "theirs"})
    assert load_site("cloud", FACTS).facts == {"bucket": "mine", "key": None}
    assert load_site("other", FACTS).facts["bucket"] == "theirs"


def test_the_job_file_wins_over_what_was_kept() -> None:
    save_site("cloud", {"bucket": "mine", "key": "key-1"})
    assert load_site("cloud", FACTS, job(bucket="jobs-own")).facts == {"bucket": "jobs-own", "key": "key-1"}


def test_malformed_and_unknown_facts_are_all_named_with_their_place() -> None:
    with pytest.raises(ConfigError) as refusal:
        load_site("cloud", FACTS, job(bucket="No Bucket", buckte="x"))
    assert [p.split(":")[0] for p in refusal.value.problems] == ["site.cloud.bucket", "site.cloud.buckte"]
    assert "my-bucket" in refusal.value.problems[0]


@pytest.mark.parametrize("content", ["- a list", "cloud: text", "cloud: {a: [", "\x00"])
def test_a_damaged_file_is_named_and_left_as_it_is(content: str) -> None:
    sites_file().parent.mkdir(parents=True)
    sites_file().write_text(content)
    with pytest.raises(ConfigError, match=r"sites\.yaml"):
        load_site("cloud", FACTS)
    with pytest.raises(ConfigError):
        save_site("cloud", {"bucket": "mine"})
    assert sites_file().read_text() == content


def test_a_missing_fact_is_a_placeholder_that_is_found_again_and_validated_by_its_example() -> None:
    site = Site(backend="cloud", facts={"bucket": None})
    request = {"to": f"s3://{site.need('bucket')}/x", "list": [site.need("bucket"), 1]}
    assert request["to"] == "s3://<set cloud.bucket>/x"
    assert placeholders(request) == [("cloud", "bucket")]
    assert with_examples(request, FACTS) == {"to": "s3://my-bucket/x", "list": ["my-bucket", 1]}
    assert Site(backend="cloud", facts={"bucket": "mine"}).need("bucket") == "mine"


def test_raw_options_are_laid_over_the_request_and_ours_are_kept() -> None:
    request = {"Name": "token", "Vpc": {"A": 1, "B": [1]}, "Spot": True}
    assert merged(request, {"Vpc": {"B": [2]}, "Spot": None, "New": {"x": 1}}, frozenset({"Name"})) == {
        "Name": "token",
        "Vpc": {"A": 1, "B": [2]},
        "New": {"x": 1},
    }
    assert request == {"Name": "token", "Vpc": {"A": 1, "B": [1]}, "Spot": True}
    with pytest.raises(ConfigError, match="Name is set by launch itself"):
        merged(request, {"Name": "other"}, frozenset({"Name"}))
