"""The jobs that every backend renders, and the raw options that put one of them into a private network."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "name": "triage",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "task": "classification",
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
    "resources": {"gpu": "A100", "max_hours": 4},
    "tags": {"team": "support"},
}
DIGEST = "sha256:" + "0123456789abcdef" * 4

CASES: dict[str, dict[str, Any]] = {
    "one_gpu": {},
    "eight_gpus": {"resources": {"gpu": "H100", "gpus": 8, "max_hours": 4}},
    "two_nodes": {"resources": {"gpu": "H100", "gpus": 8, "nodes": 2, "max_hours": 4}},
    "spot": {"resources": {"gpu": "A100", "spot": True, "max_hours": 4, "max_wait_hours": 6}},
    "spot_whenever": {"resources": {"gpu": "A100", "spot": True, "max_hours": 4}},  # some can't limit the wait
    "own_image_private_network": {
        "resources": {"gpu": "A100", "image": f"registry.example.com/team/train@{DIGEST}"}
    },
    "offline": {
        "model": "model",  # a folder beside the job file
        "resources": {"gpu": "A100", "offline": True},
    },
    "secrets": {"secrets": ["HF_TOKEN"]},
    "qlora": {"tuning": "qlora"},
    "full": {"tuning": "full", "output": {"merged": False}},
    "model_cache": {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct", "cache": True}},
    "env_and_disk": {"env": {"COLOUR": "blue"}, "resources": {"gpu": "A100", "disk_gib": 500, "region": "REGION"}},
}
"""Case -> what it changes in BASE; REGION stands for a region of the backend's."""

PRIVATE_NETWORK: dict[str, dict[str, Any]] = {
    "sagemaker": {
        "VpcConfig": {"Subnets": ["subnet-0a1b2c3d4e5f60718"], "SecurityGroupIds": ["sg-0a1b2c3d4e5f60718"]},
        "EnableInterContainerTrafficEncryption": True,
        "ResourceConfig": {"KeepAlivePeriodInSeconds": 1800},
        "OutputDataConfig": {"KmsKeyId": "alias/team-ml"},
        "AlgorithmSpecification": {
            "TrainingImageConfig": {
                "TrainingRepositoryAuthConfig": {
                    "TrainingRepositoryCredentialsProviderArn": (
                        "arn:aws:lambda:us-east-1:123456789012:function:registry-login"
                    )
                }
            }
        },
    },
    "vertex": {
        "customJob": {
            "encryptionSpec": {
                "kmsKeyName": "projects/team-ml/locations/europe-west4/keyRings/ml/cryptoKeys/jobs"
            },
            "jobSpec": {
                "network": "projects/123456789012/global/networks/ml",
                "reservedIpRanges": ["vertex-range"],
                "workerPoolSpecs": {
                    "machineSpec": {"reservationAffinity": {"reservationAffinityType": "ANY_RESERVATION"}}
                },
            },
        }
    },
    "azureml": {  # a cluster in the team's own network, in the place of serverless compute
        "job": {
            "properties": {
                "computeId": (
                    "/subscriptions/00000000-0000-0000-0000-00000000a2a2/resourceGroups/team-ml/providers/"
                    "Microsoft.MachineLearningServices/workspaces/team-ml/computes/vnet-a100"
                ),
                "resources": {"instanceType": None, "shmSize": "16g"},
            }
        }
    },
    "skypilot": {"config": {"gcp": {"vpc_name": "team-vpc"}}},
}
"""Backend -> the raw options of own_image_private_network."""

REGIONS: dict[str, str] = {
    "sagemaker": "us-west-2",
    "vertex": "us-east4",
    "azureml": "westus3",
    "skypilot": "europe-west4",
}
"""Backend -> a region of its own."""

FACTS: dict[str, dict[str, str]] = {
    "sagemaker": {
        "role": "arn:aws:iam::123456789012:role/team-ml-training",
        "bucket": "team-ml-training",
        "region": "us-east-1",
    },
    "vertex": {
        "project": "team-ml",
        "region": "europe-west4",
        "bucket": "team-ml-training",
        "service_account": "trainer@team-ml.iam.gserviceaccount.com",
        "image": f"europe-west4-docker.pkg.dev/team-ml/finelaunch/train@{DIGEST}",
    },
    "azureml": {
        "subscription": "00000000-0000-0000-0000-00000000a2a2",
        "resource_group": "team-ml",
        "workspace": "team-ml",
        "region": "eastus",
        "identity": "00000000-0000-0000-0000-00000000c11d",
        "key_vault": "team-ml-vault",
    },
    "skypilot": {"store": "gs://team-finelaunch", "infra": "gcp/us-central1"},
}
"""Backend -> account facts, as launch setup would keep them."""
