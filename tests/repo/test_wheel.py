"""The wheel that users get: built from the source distribution, it carries its prompts and configs."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = """
from potstill.prompts import shipped_roles, load_roles, load_prompts, load_template
from potstill.workspace import shipped
print(shipped("prompts"))
roles = shipped_roles()
assert len(roles) >= 4, roles
for language in ("en", "zh-TW"):
    assert len(load_roles(roles, language)) == len(roles)
    assert load_template("merge", language)
assert load_prompts(["faq-train.en.txt"])
assert sorted(path.name for path in shipped("configs").glob("*.yaml"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_installed_wheel_finds_its_prompts_and_configs(wheel: Path, tmp_path: Path) -> None:
    """In an environment without the checkout, every shipped role, template, prompt file and config is found."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies come from this environment; potstill itself must come from the wheel.
    site = next((environment / "lib").glob("python*/site-packages"))
    others = next((Path(sys.prefix) / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"import sys; sys.path.append({str(others)!r})\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([python, "-c", SHOW], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert str(environment) in result.stdout


def test_wheel_needs_no_torch(wheel: Path) -> None:
    """The core installs without torch: it stands only under the extras."""
    from email.parser import Parser
    from zipfile import ZipFile

    with ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    required = metadata.get_all("Requires-Dist") or []
    core = [line for line in required if "extra ==" not in line]
    assert not [line for line in core if line.startswith(("torch", "transformers", "peft", "qdrant"))]
    assert any(line.startswith("torch") and "local" in line for line in required)
