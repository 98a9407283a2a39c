"""Every ``convoy train`` command that README and docs show is understood, so that none of them can grow stale."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from convoy.cli import train as verb
from convoy.cli.config import TrainConfig
from convoy.cli.setup import make

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^\s*(?:\$ )?convoy (train .+?)\s*(?:#.*)?$", re.MULTILINE)


def commands() -> list[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    joined = (page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages)
    return [command for text in joined for command in COMMAND.findall(text) if "--resume" not in command]


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_understood(convoy: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    seen: list[TrainConfig] = []

    def stop(given: dict[str, Any], **flags: Any) -> int:
        seen.append(verb.merge(given, None))
        make(seen[-1])
        return 0

    monkeypatch.setattr(verb, "train", stop)
    assert convoy(*shlex.split(command)).code == 0
    assert seen and seen[0].model in command
