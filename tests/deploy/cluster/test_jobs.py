"""Submit a sweep to a real cluster that asks for a token, stop it, and submit it again."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support import tiny_sweep
from support.ray_head import FIRST, LABEL, SECOND, free_ports, ray_head
from support.studio import TOKEN, Client

from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.cluster.jobs import ROOMS, ROOT_FILES, Jobs, copy_package, forwarded, pack
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import load_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.proto.errors import InputError

ROOT = Path(__file__).parents[3]
STEPS, CHECKPOINT_EVERY = 900, 50
OTHER_VERSION = "0.0.7"


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    with ray_head() as running:
        yield running


def write_sweep(folder: Path, text: Path) -> Path:
    """Write a sweep of one hook and two SAEs, each on its own node, with enough steps to be stopped half-way."""
    data = tiny_sweep.sweep(
        str(folder / "bucket"), text, harvest={"layers": [3]}, evaluation={"checkpoints": "last"},
        train={"tokens": 256 * STEPS, "checkpoint_every": CHECKPOINT_EVERY, "cpus": 1},
    )  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data | {"file_sd": str(folder / "targets.json")}))
    return folder / "sweep.yaml"


def planned(folder: Path, text: Path) -> SweepPlan:
    return plan_sweep(load_sweep(str(write_sweep(folder, text))))


def run(head: tuple[str, dict[str, str]], *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    address, known = head
    command = [sys.executable, "-m", "scopemill.deploy", *arguments, "--address", address]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=400)


def steps(plan: SweepPlan) -> list[int]:
    return [sae.step for sae in read_status(plan.bucket, plan.record).saes]


ON_EVERY_NODE = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

ray.init()
nothing = ray.remote(lambda: None)
ray.get([nothing.options(scheduling_strategy=Affinity(node["NodeID"], soft=False)).remote() for node in ray.nodes()])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build a wheel through the link in `.import`, which setuptools follows, with another version to tell it from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in package_files() | {"pyproject.toml", "README.md"}:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    project = source / "pyproject.toml"
    project.write_text(re.sub('^version = ".*"$', f'version = "{OTHER_VERSION}"', project.read_text(), flags=re.MULTILINE))
    (source / ".import").mkdir()
    (source / ".import" / "scopemill").symlink_to("..")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob(f"scopemill-{OTHER_VERSION}-*.whl")
    return built


@pytest.mark.timeout(900)  # two Ray clusters and three sweeps, on a machine that may be busy
def test_a_stopped_job_drains_and_the_next_submission_ends_with_the_bits_of_a_plain_run(head, tmp_path, text, harvests):
    plan, file = planned(tmp_path, text), str(tmp_path / "sweep.yaml")
    begun = run(head, "submit", file, "--no-wait")
    assert begun.returncode == 0, begun.stderr
    deadline = time.monotonic() + 200
    while not min(steps(plan)):
        assert time.monotonic() < deadline, run(head, "logs", file).stdout
        time.sleep(0.1)
    listed = {group["labels"]["role"]: group["targets"] for group in json.loads((tmp_path / "targets.json").read_text())}
    assert len(listed["activation_server"]) == len(listed["trainer"]) == 2, "a server for each node that has a trainer"
    ray_job_stop(head, "tiny-1")  # our own command would come when these few steps are done
    assert run(head, "stop", file).returncode == 0  # has waited for the end, if it was not there
    assert "stopped; everything committed is kept" in run(head, "logs", file).stdout
    # Checkpoints that were not due, so the word to stop reached them; one of them may be due by chance.
    assert all(0 < step < STEPS for step in steps(plan)) and any(step % CHECKPOINT_EVERY for step in steps(plan)), steps(plan)

    finished = run(head, "submit", file)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count(f"{STEPS} / {STEPS}") == 2
    assert "training 2 SAEs in 2 trainers" in finished.stdout  # on both nodes, as each has room for one

    (tmp_path / "plain").mkdir()
    plain = planned(tmp_path / "plain", text)
    harvests(plain)
    SweepDriver(plain, tiny_sweep.quiet()).train()
    for submitted, trained in zip(plan.saes, plain.saes, strict=True):
        assert plan.bucket.read(submitted.layout.weights) == plain.bucket.read(trained.layout.weights)


def ray_job_stop(head: tuple[str, dict[str, str]], job: str) -> None:
    ray_jobs(head, f"{job}/stop", b"")


def ray_jobs(head: tuple[str, dict[str, str]], path: str = "", body: bytes | None = None) -> bytes:
    """Ask Ray's own Jobs API."""
    address, known = head
    headers = {"Authorization": f"Bearer {known['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/{path}", body, headers), timeout=30) as answer:
        return answer.read()


def test_a_wheel_runs_where_its_labels_say_and_lists_its_processes_for_a_prometheus_elsewhere(head, wheel, tmp_path, text):
    (port,) = free_ports(1)
    train = {"labels": LABEL, "sparsities": [1e-3], "tokens": 256 * 24}
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest={"layers": [3]}, train=train)
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(data | {"name": "wheeled", "metrics_port": port, "file_sd": str(tmp_path / "targets.json")}))
    address, known = head
    environment = json.dumps({"py_modules": [str(wheel)], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}})
    submit = ["ray", "job", "submit", "--address", address, "--runtime-env-json", environment, "--", "python"]
    # Both nodes are on this machine and install the wheel into one folder: an import meanwhile would find half of it.
    subprocess.run([*submit, "-c", ON_EVERY_NODE], env=known, check=True, capture_output=True, timeout=120)
    command = [*submit, "-m", "scopemill.deploy"]
    listed: dict[str, set[str]] = {}
    last = None
    with subprocess.Popen([*command, "sweep", str(file)], env=known, stdout=subprocess.PIPE, text=True) as job:
        while job.poll() is None:
            answer = asked(f"http://{FIRST}:{port}/targets")
            for group in answer or ():
                listed.setdefault(group["labels"]["role"], set()).update(group["targets"])
            last = answer if answer is not None else last
            time.sleep(0.1)
        assert job.returncode == 0, job.stdout.read()
    assert listed.keys() == {"driver", "harvester", "activation_server", "trainer", "evaluator"} and last == []
    nodes = {role: {place.split(":")[0] for place in places} for role, places in listed.items()}
    assert nodes["trainer"] == nodes["activation_server"] == {SECOND} and nodes["driver"] == {FIRST}, nodes
    plan = plan_sweep(load_sweep(str(file)))
    (sae,) = plan.saes
    assert json.loads(plan.bucket.read(sae.layout.provenance))["scopemill"] == OTHER_VERSION


def asked(url: str) -> list[dict] | None:
    """Return the list at ``url``, or None while no process listens there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def test_a_running_sweep_is_not_submitted_twice_and_stops_on_command(head, tmp_path, text):
    file = write_sweep(tmp_path, text)
    file.write_text(file.read_text().replace("name: tiny", "name: long"))
    assert run(head, "submit", str(file), "--no-wait", "--installed", "--set", "train.tokens=100000000").returncode == 0
    again = run(head, "submit", str(file))
    assert again.returncode == 2 and "sweep long is running on http://127.0.0.1:" in again.stderr, again.stdout + again.stderr
    stopped = run(head, "stop", str(file))
    assert stopped.returncode == 0 and stopped.stdout == "stopped; everything committed is kept\n", stopped.stderr
    assert run(head, "stop", str(file)).stdout == "sweep long was not running\n"


@contextmanager
def studio(head: tuple[str, dict[str, str]], bucket: str) -> Iterator[Client]:
    """``scopemill studio`` in a process of its own, with the cluster's address and token."""
    address, known = head
    command = [sys.executable, "-m", "scopemill.deploy", "studio", bucket, "--address", address, "--installed", "--port", "0"]
    environment = known | {"SCOPEMILL_STUDIO_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service:
        try:
            yield Client(re.search(r"http://[^/]+", service.stdout.readline())[0])
        finally:
            service.send_signal(signal.SIGTERM)


@pytest.mark.timeout(900)
def test_the_studio_starts_stops_and_retries_a_training_as_jobs_of_the_cluster(head, tmp_path, text):
    train = {"tokens": 100_000_000, "cpus": 1, "sparsities": [1e-3]}
    evaluation = {"checkpoints": "last"}
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest={"layers": [3]}, train=train, evaluation=evaluation)
    data["name"] = "clicked"
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data))
    with studio(head, str(tmp_path / "bucket")) as client:
        started = client.post("/trainings/sweep", {"config": data, "sparsities": [1e-3]})
        (id,) = started["trainings"]
        assert head[0] in started["driver"] and f"--address {head[0]}" in started["command"]
        client.until(id, "running", lambda now: now["progress"]["step"] > 0)
        assert client.get("/trainings/sweep/clicked")["driver"], "the job holds the sweep's lease"
        client.post(f"/trainings/{id}/stop")
        first = client.until(id, "stopped", lambda now: "on request" in now["reason"])["progress"]["step"]
        deadline = time.monotonic() + 300
        while client.get("/trainings/sweep/clicked")["driver"]:
            assert time.monotonic() < deadline, "the job's lease was not given back"
            time.sleep(0.1)
        client.post(f"/trainings/{id}/retry")  # the first job has given the lease back, and may not have ended yet
        client.until(id, "running", lambda now: now["progress"]["step"] > first)
        client.post(f"/trainings/{id}/stop")
        client.until(id, "stopped", lambda now: "on request" in now["reason"] and now["progress"]["step"] > first)
        corpus = shutil.copy(text, tmp_path / "text.jsonl")
        hopeless = data | {"name": "hopeless", "corpus": data["corpus"] | {"source": str(corpus)}}
        (id,) = client.post("/trainings", {"config": hopeless})["trainings"]
        Path(corpus).unlink()  # before the job reads it: it fails without having held the sweep's lease
        client.until(id, "pending", lambda now: str(corpus) in now["reason"])
    logs = run(head, "logs", str(tmp_path / "sweep.yaml"))
    assert logs.returncode == 0 and "training 1 SAE" in logs.stdout, logs.stdout + logs.stderr
    assert {"clicked-1", "clicked-2"} <= {job["submission_id"] for job in json.loads(ray_jobs(head))}


def test_a_wrong_token_is_refused(head, tmp_path, text):
    told = run(head, "submit", str(write_sweep(tmp_path, text)), RAY_AUTH_TOKEN="0" * 64)
    assert told.returncode == 2 and told.stderr.startswith(f"error the cluster at {head[0]} cannot be used: "), told.stderr


def test_a_sweep_that_fails_ends_the_command_with_its_sentence(head, tmp_path, text):
    file = write_sweep(tmp_path, text)
    file.write_text(file.read_text().replace("name: tiny", "name: broken").replace("- 3", "- 33"))
    told = run(head, "submit", str(file), "--installed")
    assert told.returncode == 1 and "sweep broken on http" in told.stderr and "failed" in told.stderr
    assert "harvest.layers: gemma-2-stdlib has no layer 33" in told.stdout


def test_a_sweep_that_was_never_submitted_has_no_log(head, tmp_path, text):
    file = write_sweep(tmp_path, text)
    file.write_text(file.read_text().replace("name: tiny", "name: unheard"))
    told = run(head, "logs", str(file))  # stop looks for it in the same way
    assert told.returncode == 2 and "sweep unheard was not submitted to" in told.stderr


def test_a_cluster_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="the cluster at http://127.0.0.1:9 cannot be used: "):
        Jobs("http://127.0.0.1:9")


def test_the_whole_package_travels_with_a_job_and_runs_from_there(tmp_path, text):
    sent = pack(tmp_path, load_sweep(str(write_sweep(tmp_path, text))), installed=False)
    assert sent == {"working_dir": str(tmp_path / "job"), "py_modules": [str(tmp_path / "scopemill")]}
    packed = {str(path.relative_to(tmp_path / "scopemill")) for path in (tmp_path / "scopemill").rglob("*")}
    assert package_files() <= packed
    modules = ("scopemill.deploy.cli.main", "scopemill.proto.wire", "scopemill.trainer.config.templates")
    places = ", ".join(f"{module}.__file__" for module in modules)
    code = f"import {', '.join(modules)}, importlib.metadata as m; print(m.version('scopemill'), {places})"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": ".:job"}, capture_output=True, text=True, check=True
    )
    version, *places = shown.stdout.split()
    assert version and all(Path(place).resolve().is_relative_to(tmp_path) for place in places)
    assert (tmp_path / "scopemill" / "__init__.py").exists() == (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("own", [[], ["__init__.py"], ["__init__.py", "py.typed"]])
def test_the_packages_own_files_travel_and_a_checkouts_do_not(tmp_path, own):
    root, to = tmp_path / "root", tmp_path / "copy"
    for path in [
        *(f"{room}/idea.py" for room in ROOMS),
        *own,
        "setup.py",
        "tests/test_idea.py",
        "proto/__pycache__/idea.pyc",
        "proto/.hidden",
    ]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    copy_package(root, to)
    copied = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert copied == {f"{room}/idea.py" for room in ROOMS} | set(own)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    held = {name.removeprefix("scopemill/") for name in zipfile.ZipFile(wheel).namelist()}
    assert package_files() - held == {"proto/README.md", "deploy/Dockerfile"}


def package_files() -> set[str]:
    listed = subprocess.run(["git", "ls-files", *ROOMS, *ROOT_FILES], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {path for path in listed if (ROOT / path).exists()}


def test_credentials_are_not_forwarded(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models")
    assert forwarded(["HF_HOME"]) == {"HF_HOME": "/models"}
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password"):
        monkeypatch.setenv(name, "1")
        with pytest.raises(InputError, match=f"--env {name}: .*Ray shows a job's environment"):
            forwarded([name])
    with pytest.raises(InputError, match="--env NOT_THERE: the variable is not set"):
        forwarded(["NOT_THERE"])
