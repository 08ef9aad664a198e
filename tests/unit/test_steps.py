"""Set-up steps: what an interruption leaves is never taken for finished."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pack
import pytest
import steps
from steps import STAMP, SetupError, Step

DEVTOOLS = pack.ROOT / "devtools"
PATIENCE = 60  # seconds for another process, also on a busy machine


class Recorder:
    """A fake step's work: notes what was called and can be cut short."""

    def __init__(self):
        self.calls = []
        self.fail = False

    def build(self, folder: Path) -> None:
        self.calls.append("build")
        folder.mkdir()
        (folder / "half").touch()
        if self.fail:
            raise KeyboardInterrupt
        (folder / "whole").touch()

    def update(self, folder: Path) -> None:
        self.calls.append("update")
        assert (folder / "whole").exists()
        if self.fail:
            raise KeyboardInterrupt


@pytest.fixture
def recorder():
    return Recorder()


def step(recorder, tmp_path, fingerprint="one", update=False) -> Step:
    return Step(
        "fake", tmp_path / "target", fingerprint, recorder.build, recorder.update if update else None, needs=("whole",)
    )


def test_a_finished_step_does_not_run_again(recorder, tmp_path):
    for _ in range(2):
        steps.run_steps([step(recorder, tmp_path)], tmp_path / "lock")
    assert recorder.calls == ["build"]
    assert step(recorder, tmp_path).is_done()


def test_an_interrupted_build_starts_from_nothing(recorder, tmp_path):
    recorder.fail = True
    with pytest.raises(KeyboardInterrupt):
        step(recorder, tmp_path).run()
    assert (tmp_path / "target" / "half").exists()
    assert not step(recorder, tmp_path).is_done()
    recorder.fail = False
    step(recorder, tmp_path).run()  # mkdir would fail if the half-made folder were still there
    assert step(recorder, tmp_path).is_done()


def test_a_stamp_is_not_believed_when_its_folder_is_damaged(recorder, tmp_path):
    step(recorder, tmp_path).run()
    (tmp_path / "target" / "whole").unlink()
    assert not step(recorder, tmp_path).is_done()
    step(recorder, tmp_path, update=True).run()
    assert recorder.calls == ["build", "build"]


def test_another_fingerprint_updates_in_place_or_builds_again(recorder, tmp_path):
    step(recorder, tmp_path).run()
    step(recorder, tmp_path, "two", update=True).run()
    assert step(recorder, tmp_path, "two").is_done()
    step(recorder, tmp_path, "three").run()
    assert recorder.calls == ["build", "update", "build"]


def test_an_interrupted_update_builds_again(recorder, tmp_path):
    step(recorder, tmp_path).run()
    recorder.fail = True
    with pytest.raises(KeyboardInterrupt):
        step(recorder, tmp_path, "two", update=True).run()
    assert not step(recorder, tmp_path).is_done()
    assert not step(recorder, tmp_path, "two").is_done()
    recorder.fail = False
    step(recorder, tmp_path, "two", update=True).run()
    assert recorder.calls == ["build", "update", "build"]


def test_an_update_that_cannot_be_made_now_is_tried_again(recorder, tmp_path):
    step(recorder, tmp_path).run()

    def no_network(folder: Path) -> None:
        raise SetupError("the network could not be reached")

    offline = Step("fake", tmp_path / "target", "two", recorder.build, no_network, needs=("whole",))
    with pytest.raises(SetupError, match="network"):
        offline.run()
    assert (tmp_path / "target" / "whole").exists()
    assert not step(recorder, tmp_path).is_done() and not offline.is_done()
    step(recorder, tmp_path, "two", update=True).run()
    assert recorder.calls == ["build", "update"] and step(recorder, tmp_path, "two").is_done()


def test_a_build_that_leaves_out_what_is_needed_is_an_error(tmp_path):
    lacking = Step("fake", tmp_path / "target", "one", lambda folder: folder.mkdir(), needs=("whole",))
    with pytest.raises(SetupError, match="whole"):
        lacking.run()
    assert not (tmp_path / "target" / STAMP).exists()


def test_later_steps_wait_for_earlier_ones_to_succeed(recorder, tmp_path):
    recorder.fail = True
    other = Recorder()
    second = Step("second", tmp_path / "second", "one", other.build)
    with pytest.raises(KeyboardInterrupt):
        steps.run_steps([step(recorder, tmp_path), second], tmp_path / "lock")
    assert other.calls == []


def test_remove_takes_a_link_away_and_leaves_what_it_points_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    steps.remove(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()
    assert not os.path.lexists(tmp_path / "link")


BUILD_ON_COMMAND = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
import steps
base = pathlib.Path(sys.argv[2])
def build(folder):
    folder.mkdir()
    (base / "started").touch()
    while not (base / "go").exists():
        time.sleep(0.02)
    with (base / "builds").open("a") as file:
        file.write("x")
steps.run_steps([steps.Step("slow", base / "target", "one", build)], base / "lock")
print("finished", flush=True)
"""


def start_process(tmp_path) -> subprocess.Popen:
    """A process that builds, ending its build when the file `go` appears."""
    command = [sys.executable, "-c", BUILD_ON_COMMAND, str(DEVTOOLS), str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_two_processes_build_once(tmp_path):
    first = start_process(tmp_path)
    wait_for_file(tmp_path / "started")
    second = start_process(tmp_path)
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    (tmp_path / "go").touch()
    assert "finished" in second.communicate(timeout=PATIENCE)[0]
    assert first.wait(PATIENCE) == 0
    assert (tmp_path / "builds").read_text() == "x"


def test_a_killed_process_leaves_neither_lock_nor_stamp(tmp_path):
    first = start_process(tmp_path)
    wait_for_file(tmp_path / "started")
    first.kill()
    first.wait(PATIENCE)
    assert not (tmp_path / "target" / STAMP).exists()
    (tmp_path / "go").touch()
    output, _ = start_process(tmp_path).communicate(timeout=PATIENCE)
    assert "waiting" not in output
    assert "finished" in output
    assert (tmp_path / "target" / STAMP).exists()
