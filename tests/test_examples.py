"""Every Python block of README and docs runs, and every script in examples/, each in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Name and code of every example."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), start=1):
            found.append((f"{page.relative_to(ROOT)}:{number}", code))
    for script in sorted((ROOT / "examples").glob("*.py")):
        found.append((str(script.relative_to(ROOT)), script.read_text(encoding="utf-8")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [pytest.param(n, c, id=n) for n, c in examples()])
def test_example_runs(name: str, code: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=170, env=os.environ
    )
    assert done.returncode == 0, f"{name} failed:\n{done.stderr}"


def test_the_readme_shows_how_to_train_from_python() -> None:
    assert any(name.startswith("README.md") and "Trainer(" in code for name, code in examples())
