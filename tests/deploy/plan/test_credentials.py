"""Credentials come from the environment, and go nowhere from there."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from rich.console import Console
from support import tiny_sweep

from scopemill.deploy.catalog.publish import publish
from scopemill.deploy.cluster.jobs import forwarded
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import load_sweep
from scopemill.deploy.progress import Reporter
from scopemill.proto.errors import InputError, SweepFileError

SECRET = "hunter2"


def write_sweep(folder: Path, bucket: str, **sections) -> str:
    data = tiny_sweep.sweep(bucket, tiny_sweep.write_text(folder), **sections) | {"name": "secretive"}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data | {"file_sd": str(folder / "targets.json")}))
    return str(folder / "sweep.yaml")


def test_no_secret_of_the_environment_reaches_bucket_or_logs(tmp_path, s3_url, ray_cluster):
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    file = write_sweep(tmp_path, f"{s3_url}/secretive", harvest={"layers": [1]}, train={"sparsities": [1e-3]})
    plan, said = plan_sweep(load_sweep(file)), io.StringIO()
    driver = SweepDriver(plan, Reporter(Console(file=said)))
    for phase in (driver.harvest, driver.train, driver.evaluate):
        phase()
    publish(plan)
    objects = [path for folder in ("activations", "saes", "sweeps") for path in plan.bucket.find(folder)]
    assert "sweeps/secretive/sweep.yaml" in objects and len(objects) > 30
    assert not [path for path in objects if secret in plan.bucket.read(path)]
    logs = [path for path in Path(ray._private.worker._global_node.get_logs_dir_path()).rglob("*") if path.is_file()]
    assert len(logs) > 5 and not [path for path in logs if secret in path.read_bytes()]
    assert secret.decode() not in said.getvalue() + (tmp_path / "targets.json").read_text()


def test_a_refusal_by_the_store_does_not_tell_the_secret(tmp_path, s3_url):
    command = [sys.executable, "-m", "scopemill.deploy", "status", write_sweep(tmp_path, f"{s3_url}/secretive")]
    told = subprocess.run(command, env=os.environ | {"AWS_SECRET_ACCESS_KEY": SECRET}, capture_output=True, text=True, timeout=120)
    assert told.returncode == 1 and "cannot read s3://" in told.stderr
    assert SECRET not in told.stdout + told.stderr


@pytest.mark.parametrize(
    "section, url",
    [
        ("bucket", f"s3://AKIA123:{SECRET}@bucket/prefix"),
        ("bucket", f"simplecache::sftp://me:{SECRET}@host/folder"),
        ("bucket", f"https://store.example.com/b?X-Amz-Signature={SECRET}"),
        ("bucket", f"s3://AKIA123:a/{SECRET}/b@bucket/prefix"),
        ("corpus.source", f"https://store.example.com/text.jsonl?sig={SECRET}&x=1"),
        ("evaluation.corpus", f"{{source: 'https://me:{SECRET}@host/text', format: lines}}"),
        ("model", f"https://me:{SECRET}@host/org/model"),
        ("file_sd", f"sftp://me:{SECRET}@host/targets.json"),
        ("train.initial_sae", f"s3://me:{SECRET}@bucket/sae"),
        ("train.variants", f"[{{initial_sae: 's3://me:{SECRET}@bucket/sae'}}]"),
        ("bucket", "https://hf_abcdefghijklmnopqrstuvwx@huggingface.co/b"),
        ("bucket", f"abfs://box@store.dfs.core.windows.net/x?AccountKey={SECRET}"),
    ],
)
def test_a_url_with_a_credential_is_refused_without_repeating_it(tmp_path, section, url):
    value = url if url[0] in "[{" else f"'{url}'"
    with pytest.raises(SweepFileError) as caught:
        load_sweep(write_sweep(tmp_path, "somewhere"), [f"{section}={value}"])
    told = str(caught.value)
    inside = {
        "evaluation.corpus": "evaluation.corpus.source",
        "train.variants": "train.variants[0].initial_sae",
        "model": "model.name",
    }.get(section, section)
    assert told.endswith(
        f"sweep.yaml: {inside}: the URL holds a password or key, which would be copied into the bucket: "
        "set credentials in environment variables"
    )
    assert SECRET not in told


def test_a_url_with_a_user_or_a_plain_query_is_not(tmp_path):
    for url in (
        "hf://datasets/org/name@main/x:y",
        "https://host:8080/path@v1",
        "file:///data/sig:2/a@b",
        "sftp://me@host/folder",
        "https://store.example.com/text?version=2",
        "s3://b/a@b:c/",
        "C:/Users/me@home",
    ):
        assert load_sweep(write_sweep(tmp_path, url)).bucket == url


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("HF_TOKEN", "x"),
        ("AZURE_STORAGE_CONNECTION_STRING", "DefaultEndpointsProtocol=https"),
        ("STORE", f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}=="),
        ("FSSPEC_S3", json.dumps({"key": "a", "secret": SECRET})),
        ("FSSPEC_SFTP", json.dumps({"host": "h", "password": SECRET})),
        ("HTTPS_PROXY", f"http://me:{SECRET}@proxy:3128"),
        ("DATABASE_URL", "postgres://host/db"),
        ("WHERE", f"postgres://me:{SECRET}@host/db"),
        ("HELLO", "ghp_" + "a" * 36),
        ("LINE", f"--password={SECRET}"),
    ],
)
def test_a_variable_that_may_hold_a_credential_is_not_passed_on(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        forwarded([name])
    assert str(caught.value).startswith(f"--env {name}: by its name or its value it may hold a credential") and SECRET not in str(
        caught.value
    )


def test_other_variables_are_passed_on(monkeypatch):
    plain = {
        "HF_HOME": "/data/hf", "NCCL_DEBUG": "INFO", "HTTPS_PROXY": "http://proxy:3128", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128",
        "FSSPEC_S3": json.dumps({"endpoint_url": "http://store:9000", "anon": False}), "OMP_PLACES": "{0:4}", "MODE": "monkey",
    }  # fmt: skip
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    assert forwarded(plain) == plain
