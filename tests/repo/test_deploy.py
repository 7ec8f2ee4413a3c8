"""The files for deployment are what they claim to be, and what they start exists."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import yaml

from potstill.config import resolve
from potstill.errors import KeyRefusedError, MachineError, UsageError

DEPLOY = Path(__file__).parents[2] / "scripts" / "deploy"
ENVIRONMENT = {"POTSTILL_SERVE_API_KEYS", "POTSTILL_SERVE_ADMIN_KEYS", "GEMINI_API_KEY"}


def test_cloud_run_service_hangs_together() -> None:
    """Concurrency is the batch size, probes and port agree, and every key comes from a secret."""
    service = yaml.safe_load((DEPLOY / "cloud-run.yaml").read_text())
    spec = service["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    port = container["ports"][0]["containerPort"]
    assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe")} == {port}
    assert container["livenessProbe"]["httpGet"]["path"] == "/ready"  # which also tells of an engine that stays broken
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert {name for name, value in values.items() if value is None} == ENVIRONMENT
    settings = {name: value for name, value in values.items() if value is not None}
    assert resolve(None, environ=settings).config.serve.limits.max_batch == spec["containerConcurrency"]


def test_compose_points_the_cache_at_its_qdrant() -> None:
    """The cache's URL names the service beside it, nothing is published beyond this machine, and the config reads it."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    environment = services["potstill"]["environment"]
    settings = {name: value for name, value in environment.items() if name.startswith("POTSTILL__")}
    url = resolve(None, environ=settings).config.cache.url
    assert url == "http://qdrant:6333"
    assert "qdrant" in services
    assert all(port.startswith("127.0.0.1:") for port in services["potstill"]["ports"])
    assert (DEPLOY / services["potstill"]["build"]["context"] / "pyproject.toml").is_file()


def test_dockerfile_copies_what_exists_and_runs_as_nobody() -> None:
    """Every copied path exists, the last user is not root, and it starts serve-local."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((DEPLOY.parents[1] / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001"
    assert "potstill serve-local" in lines[-1]


def test_dockerfile_passes_hadolint() -> None:
    """Hadolint finds nothing."""
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(program), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shell_scripts_pass_shellcheck() -> None:
    """Shellcheck finds nothing in any shell script of the repository."""
    root = DEPLOY.parents[1]
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    scripts = [name for name in listed if name.endswith(".sh") or name == ".ci/run"]
    assert scripts
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([str(program), *scripts], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_bucket_carries_no_database() -> None:
    """SQLite over a mounted bucket loses data: only the students are mounted, and nothing can write there."""
    spec = yaml.safe_load((DEPLOY / "cloud-run.yaml").read_text())["spec"]["template"]["spec"]
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == ["/workspace/students"]
    assert all(volume["csi"]["readOnly"] for volume in spec["volumes"])


def test_unit_gives_up_where_a_person_is_needed_and_hides_its_files() -> None:
    """Wrong config, a refused key and a missing part are not retried; what it writes (request log, cache) is its own."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "potstill.service")
    service = unit["Service"]
    codes = {str(kind.exit_code) for kind in (UsageError, KeyRefusedError, MachineError)}
    assert set(service["RestartPreventExitStatus"].split()) == codes
    assert service["UMask"] == "0077"
