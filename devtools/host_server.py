"""Run the real host as a server of its own process, and always stop it again.

    with HostServer(folder) as server:
        Client(server.url).run(graph)

Not called `server`: the host has a module of that name.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pack

RUNS = pack.ROOT / ".dev" / "run"
OWN_FOLDERS = ("output", "user", "temp", "input")


class ServerError(Exception):
    """The host did not start, or ended by itself; the message ends with its log's tail."""


def device_options() -> list[str]:
    """Options that the host needs on this machine: without CUDA, the CPU and its fused attention."""
    import torch

    return [] if torch.cuda.is_available() else ["--cpu", "--use-pytorch-cross-attention"]


def free_port() -> int:
    """A port of the loopback interface that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HostServer:
    """The host on a free loopback port, with folders of its own under `folder`.

    `options` go to its main.py. `url` is valid between start() and stop(); `log` is
    the file with everything that it prints.
    """

    def __init__(self, folder: Path, options: Sequence[str] = (), timeout: float = 300):
        self.folder = folder
        self.options = list(options)
        self.timeout = timeout
        self.log = folder / "server.log"
        self.url = ""
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "HostServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "HostServer":
        """Start the host and wait until it answers.

        Raises ServerError when it ends before that, or takes longer than `timeout` seconds.
        """
        for name in OWN_FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(self._command(port), stdout=log, stderr=log, **_own_group())
            self._wait_until_ready()
        except BaseException:  # Ctrl-C while it starts must not leave it running either
            self.stop()
            raise
        return self

    def stop(self, patience: float = 10) -> None:
        """End the host and every process that it started. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, force=False)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, force=True)  # also what it started and left behind
            process.wait()

    def is_running(self) -> bool:
        """Whether the host's process is alive."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Everything that the host printed so far, without its colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines that the host printed."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def pack_failure(self) -> str:
        """The host's report when it could not load this pack, "" when it could."""
        lines = self.log_text().splitlines()
        for number, line in enumerate(lines):
            found = re.search(r"(?:Cannot import|Skip) (.+?) module for custom nodes", line)
            if found and Path(found[1]).resolve() == pack.ROOT:
                traces = [i for i in range(number) if "Traceback (most recent call last)" in lines[i]]
                return "\n".join(lines[traces[-1] if traces else number : number + 1])
        return ""

    def _command(self, port: int) -> list[str]:
        folders = [f"--{name}-directory={(self.folder / name).resolve()}" for name in OWN_FOLDERS]
        database = f"--database-url=sqlite:///{(self.folder / 'comfyui.db').resolve()}"
        address = ["--listen=127.0.0.1", f"--port={port}", "--disable-auto-launch"]
        main = str(pack.host_folder() / "main.py")
        return [sys.executable, main, *address, *folders, database, *device_options(), *self.options]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            if not self.is_running():
                raise ServerError(f"ComfyUI ended while it started. The end of {self.log}:\n{self.log_tail()}")
            if _answers(self.url):
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"ComfyUI did not answer within {self.timeout:.0f} s. The end of {self.log}:\n{self.log_tail()}"
                )
            time.sleep(0.2)


@contextlib.contextmanager
def temporary_server(name: str, options: Sequence[str] = ()) -> Iterator[HostServer]:
    """A server in a fresh folder under .dev/run, deleted afterwards, kept when something failed.

    SIGTERM and SIGHUP to this process stop the server too. Raises ServerError like HostServer.start.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=RUNS))
    keep = False
    try:
        with _interrupted_when_ended(), HostServer(folder, options) as server:
            yield server
    except Exception:
        keep = True  # its log says more
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + "/system_stats", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def _interrupted_when_ended() -> Iterator[None]:
    """Let what ends a process unwind the stack, so that `finally` and `with` stop what was started.

    As Ctrl+C does: a test runner takes any other exception for one failed test, and goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.signal(number, _interrupt) for number in (getattr(signal, name) for name in names)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if sys.platform == "win32":

    def _own_group() -> dict:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}

    def _signal_group(process: subprocess.Popen, force: bool) -> None:
        if process.poll() is None:
            command = ["taskkill", "/T", "/PID", str(process.pid), *(["/F"] if force else [])]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

else:

    def _own_group() -> dict:
        return {"start_new_session": True}

    def _signal_group(process: subprocess.Popen, force: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
