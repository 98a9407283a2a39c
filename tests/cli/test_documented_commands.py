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
from convoy.models.registry import names
from convoy.strategies.registry import STRATEGIES

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


@pytest.mark.parametrize("key", TrainConfig.model_fields)
def test_every_option_has_a_row(key: str) -> None:
    rows = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").partition("## plan")[0].splitlines()
    first = " ".join(row.split("| ")[1] for row in rows if row.startswith("| `"))
    name = "`MODEL`" if key == "model" else rf"`--{key.replace('_', '-')}[ `]"
    assert re.search(name, first), f"docs/commands.md has no row for {key}"


def test_every_network_and_strategy_is_listed() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `MODEL`"))
    listed = {begin + end for begin, ends in re.findall(r"`([a-z]+)([\d/]+)`", row) for end in ends.split("/")} | set(
        re.findall(r"`([a-z0-9-]+)`", row)
    )
    assert set(names()) <= listed
    strategies = next(line for line in page.splitlines() if line.startswith("| `--strategy NAME` | `sequential`"))
    assert set(STRATEGIES) <= set(re.findall(r"`(\w+)`", strategies))
