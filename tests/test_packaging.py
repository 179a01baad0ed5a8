import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    [path] = target.glob("*.whl")
    with ZipFile(path) as opened:
        yield opened


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert {name.split("/")[0] for name in names} == {"sqltrace"}
    assert names >= {"sqltrace/py.typed", "sqltrace/log_line.schema.json", "sqltrace/capture/engine.py"}
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_wheel_carries_version_and_licence(wheel):
    import sqltrace

    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()

    assert f"Version: {sqltrace.__version__}\n" in text
    assert "License-Expression: MIT\n" in text
    assert [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]


def test_newest_changelog_entry_is_unreleased():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    headings = [line for line in changelog.splitlines() if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"


def test_package_needs_only_sqlalchemy_and_structlog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert sorted(requirement.split(">")[0] for requirement in project["dependencies"]) == ["sqlalchemy", "structlog"]
