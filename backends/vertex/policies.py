"""What a project must allow, least privilege: the commands that make what is missing."""

from __future__ import annotations

from collections.abc import Mapping

SERVICES = ("aiplatform", "storage", "logging", "secretmanager", "artifactregistry", "iam", "serviceusage")
JOB_ROLES = ("roles/artifactregistry.reader", "roles/logging.logWriter", "roles/secretmanager.secretAccessor")
"""Of the jobs' service account in the project; its bucket it gets alone."""
REPOSITORY = "finelaunch"
"""Of images, in Artifact Registry."""
USER_ROLES = (
    "roles/aiplatform.user",
    "roles/artifactregistry.reader",
    "roles/logging.viewer",
    "roles/secretmanager.admin",
    "roles/serviceusage.serviceUsageConsumer",
)


def advice(known: Mapping[str, str]) -> str:
    """Commands that make bucket and service account, and the roles of both sides."""
    project, region = known.get("project", "YOUR-PROJECT"), known.get("region", "us-central1")
    bucket = known.get("bucket", "YOUR-BUCKET")
    account = known.get("service_account", f"finelaunch-training@{project}.iam.gserviceaccount.com")
    bind = f"gcloud projects add-iam-policy-binding {project} --condition=None"
    on_bucket = f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --role roles/storage"
    repository = f"{region}-docker.pkg.dev/{project}/{REPOSITORY}"
    parts = [
        ("the services", f"gcloud services enable {' '.join(f'{s}.googleapis.com' for s in SERVICES)} "
         f"--project {project}"),
        ("a bucket in the jobs' region",
         f"gcloud storage buckets create gs://{bucket} --project {project} --location {region} "
         "--uniform-bucket-level-access"),
        ("a service account that the jobs run as",
         f"gcloud iam service-accounts create {account.partition('@')[0]} --project {project}"),
        ("what the jobs may do", "\n".join([
            f"{on_bucket}.objectAdmin --member serviceAccount:{account}",
            *(f"{bind} --role {role} --member serviceAccount:{account}" for role in JOB_ROLES),
        ])),
        ("what you may do", "\n".join([
            f"{on_bucket}.objectAdmin --member user:YOU",
            f"{on_bucket}.legacyBucketReader --member user:YOU",  # storage.buckets.get, which objectAdmin lacks
            *(f"{bind} --role {role} --member user:YOU" for role in USER_ROLES),
            f"gcloud iam service-accounts add-iam-policy-binding {account} --project {project} "
            "--role roles/iam.serviceAccountUser --member user:YOU",
        ])),
        ("an image", "\n".join([
            f"gcloud artifacts repositories create {REPOSITORY} --project {project} --location {region} "
            "--repository-format docker",
            f"gcloud auth configure-docker {region}-docker.pkg.dev",
            f"docker build -f docker/Dockerfile -t {repository}/train:1 . && docker push {repository}/train:1",
        ])),
        ("then", f"launch setup vertex --project {project} --region {region} --bucket {bucket} "
         f"--service-account {account} --image {known.get('image', f'{repository}/train:1')}"),
    ]  # fmt: skip
    return "\n\n".join(f"# {title}\n{text}" for title, text in parts)
