import json
import re
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool
from starlette.testclient import TestClient

import sqltrace

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    imported = []
    names = {"engine": engine, "run_import": lambda: imported.append(sqltrace.current_recording().name)}

    for number, code in enumerate(blocks("python")):
        if "app.add_middleware" in code:
            names["app"] = FastAPI()
        exec(compile(code, f"README.md, Python block {number}", "exec"), names)
        if "app.add_middleware" in code:
            assert TestClient(names["app"]).get("/health").status_code == 404

    assert imported == ["nightly-import"]
    engine.dispose()


def test_readme_has_two_set_up_commands_of_one_line():
    commands = [line for block in blocks("console") for line in block.splitlines()]

    assert len(commands) == 2
    assert all(command.startswith("$ python3 -m venv") for command in commands)


def test_readme_names_every_key_of_the_log_line():
    schema = json.loads(resources.files(sqltrace).joinpath("log_line.schema.json").read_text(encoding="utf-8"))
    of_structlog = {"event", "level"}

    missing = [key for key in schema["properties"] if key not in of_structlog and f"`{key}`" not in README]

    assert missing == []


def test_readme_is_short():
    assert len(README.splitlines()) <= 250
