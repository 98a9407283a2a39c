"""Run folders to report on, and a real browser to look at the pages."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-sync", "--no-first-run", "--disable-extensions", "--mute-audio",
    "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A headless Chromium, told what to do in the DevTools protocol through a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = _high_pipe()
        self._read, to_write = _high_pipe()
        # The protocol is spoken on descriptors 3 and 4.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.messages: list[Any] = []
        """Console errors, exceptions and requests that left the page, since it was opened."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _next(self, seconds: float) -> Any:
        """The next message; events are noted on the way."""
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            got = os.read(self._read, 1 << 20)
            assert got, "the browser ended"
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: Any) -> None:
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.messages.append(found["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.messages.append(found)
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.messages.append(found["entry"])
        elif method == "Network.requestWillBeSent" and not found["request"]["url"].startswith(("file:", "data:")):
            self.messages.append(found["request"]["url"])

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Show a file and wait until it is there."""
        self.messages.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression holds."""
        for _ in range(600):
            if self.run(condition):
                return
            time.sleep(0.05)
        raise AssertionError(f"never came true in the browser: {condition}")

    def press(self, key: str) -> None:
        """A key of the keyboard, where the focus is."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        code = codes.get(key, ord(key[0]))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self, file: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._session = None
        try:
            self.call("Browser.close")
        except (AssertionError, OSError):
            self._process.terminate()
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)


def _high_pipe() -> tuple[int, int]:
    """A pipe whose descriptors are neither 3 nor 4."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


class Folder:
    """A run folder made up line by line: two epochs of a pipeline of two stages, as ``Trainer`` would write it."""

    BATCHES = 20  # of an epoch
    STEP = 0.01  # seconds

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.events: list[dict[str, Any]] = []
        self.config = (
            'model = "lenet5"\ndata = "digits"\nstrategy = "pipelined"\nstages = 2\nepochs = 2\nbatch_size = 32\n'
        )
        self.environment = {"convoy": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7", "processor": "P", "cores": 2}
        self.plan = {
            "strategy": "pipelined", "batch_size": 32, "placement": "colocated", "accumulate": 1,
            "sequential_seconds": 0.015, "step_seconds": 0.008,
            "stages": [
                {"index": 1, "weight_bytes": 1000000, "activation_bytes": 2000000, "delay": 2, "handed_bytes": 500000,
                 "forward_seconds": 0.003, "backward_seconds": 0.004},
                {"index": 2, "weight_bytes": 3000000, "activation_bytes": 1000000, "delay": 0, "handed_bytes": 0,
                 "forward_seconds": 0.004, "backward_seconds": 0.004},
            ],
        }  # fmt: skip

    def tell(self, kind: str, name: str, start: float = 0.0, end: float | None = None, **more: Any) -> None:
        row = {"kind": kind, "name": name, "start": start, **({} if end is None else {"end": end}), **more}
        self.events.append(row)

    def begin(self, **data: Any) -> Folder:
        self.tell("run", "begin", data={"model": "lenet5", "strategy": "pipelined", "epochs": 2, **data})
        self.tell("plan", "pipelined", 0.1, data=self.plan)
        return self

    def batch(self, number: int, *, actions: bool = True) -> Folder:
        """Mini-batch ``number``: stage 1 reads weights that are two updates old."""
        at = 1 + number * self.STEP
        if actions:
            for lane, kind, subject, begin, length, reads, writes in (
                ("driver", "E", "0", 0.0, 1e-6, {}, {}),
                ("worker 1", "F", "1", 0.000, 0.003, {"W1": max(number - 2, 0)}, {}),
                ("worker 2", "F", "2", 0.003, 0.002, {"W2": number}, {}),
                ("worker 2", "B", "2", 0.005, 0.003, {"W2": number}, {}),
                ("worker 2", "U", "2", 0.008, 0.001, {"W2": number}, {"W2": number + 1}),
                ("worker 1", "B", "1", 0.004, 0.004, {"W1": number}, {}),
                ("worker 1", "U", "1", 0.008, 0.001, {"W1": number}, {"W1": number + 1}),
            ):
                data = {"kind": kind, "subject": subject, "part": 0, "reads": reads, "writes": writes, "bytes": 0}
                start = at + begin
                self.tell(
                    "action", f"{kind}{subject}.{number}", start, start + length, lane=lane, batch=number, data=data
                )
        epoch = number // self.BATCHES + 1
        data = {"epoch": epoch, "index": number % self.BATCHES, "loss": 2 / (number + 1), "samples": 32, "lr": 0.1}
        self.tell("step", "step", at, at + self.STEP, batch=number, data=data)
        return self

    def epoch(self, number: int, accuracy: float | None = 0.9, **more: Any) -> Folder:
        busy = {"driver": 0.001, "worker 1": 0.8, "worker 2": 0.6}
        data = {
            "epoch": number, "train_loss": 1 / number, "train_accuracy": 0.5, "validation_loss": 1.5 / number,
            "validation_accuracy": accuracy, "seconds": 0.2 * (2 if number == 1 else 1), "samples": 640,
            "samples_per_second": 3200.0, "lr": 0.1, "busy": busy, **more,
        }  # fmt: skip
        last = number * self.BATCHES - 1
        self.tell("epoch", f"epoch {number}", 1 + (last + 1) * self.STEP, batch=last, data=data)
        return self

    def trained(self, epochs: int = 2) -> Folder:
        self.begin()
        for number in range(epochs * self.BATCHES):
            self.batch(number, actions=number < 9 or number % 10 == 0)
            if number % self.BATCHES == self.BATCHES - 1:
                self.epoch(number // self.BATCHES + 1, accuracy=0.9 + 0.01 * (number // self.BATCHES))
        return self

    def end(self, status: str = "finished", **data: Any) -> Folder:
        self.tell("run", "end", 9.0, data={"status": status, **data})
        return self

    def write(self) -> Path:
        lines = [json.dumps(row) + "\n" for row in self.events]
        (self.path / "events.jsonl").write_text("".join(lines))
        metrics = [
            {"batch": row.get("batch"), **row["data"], **({"seconds": row["end"]} if row["kind"] == "step" else {})}
            for row in self.events
            if row["kind"] in ("step", "epoch")
        ]
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        (self.path / "config.toml").write_text(self.config)
        (self.path / "environment.json").write_text(json.dumps(self.environment))
        (self.path / "plan.json").write_text(json.dumps(self.plan))
        return self.path


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")
