"""Set-up steps that are either finished or not there at all (standard library only).

A step makes one folder. Its stamp, a file inside that folder, is written last and
holds a fingerprint of what was installed: a folder without a stamp was interrupted
and is made again, a folder with another fingerprint is brought up to date.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STAMP = ".set-up-complete"


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Step:
    """One folder to make.

    `build` fills `target`, which does not exist when it is called; with `update`
    an older finished folder is changed in place instead of being made again.
    `needs` are files inside the folder without which a stamp is not believed.
    """

    title: str
    target: Path
    fingerprint: str
    build: Callable[[Path], None]
    update: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = ()

    def is_done(self) -> bool:
        """Whether the folder is complete and of this fingerprint."""
        return self._found() == self.fingerprint

    def run(self) -> None:
        """Make the folder, or bring it up to date; the stamp comes last.

        Raises whatever `build` or `update` raise; the folder then has no stamp. But an update that
        says why it cannot be made now (SetupError) is tried again next time: what was built before stays.
        """
        if self.update is not None and self._found() is not None:
            (self.target / STAMP).unlink()
            try:
                self.update(self.target)
            except SetupError:
                write_stamp(self.target, "update failed")
                raise
        else:
            remove(self.target)
            self.build(self.target)
        missing = [name for name in self.needs if not (self.target / name).exists()]
        if missing:
            raise SetupError(f"{self.title}: finished, but {', '.join(missing)} is not in {self.target}.")
        write_stamp(self.target, self.fingerprint)

    def _found(self) -> str | None:
        """Fingerprint of the finished folder that is there, else None."""
        if not all((self.target / name).exists() for name in self.needs):
            return None
        try:
            return (self.target / STAMP).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None


def write_stamp(folder: Path, fingerprint: str) -> None:
    """Mark `folder` as finished. Atomic: the stamp is there whole or not at all."""
    draft = folder / (STAMP + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(fingerprint + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, folder / STAMP)


def remove(path: Path) -> None:
    """Delete a folder, a file or a link (never what a link points to), if there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        (path / STAMP).unlink(missing_ok=True)  # a deletion that is cut short must not look finished
        shutil.rmtree(path)


def run_steps(steps: Sequence[Step], lock: Path) -> None:
    """Run the steps that are not done yet, in order, one process at a time.

    Raises SetupError, or what a step raises.
    """
    if all(step.is_done() for step in steps):
        return
    with exclusive(lock):
        for number, step in enumerate(steps, 1):
            if step.is_done():  # perhaps by the process that we waited for
                continue
            say(f"[{number}/{len(steps)}] {step.title}")
            start = time.monotonic()
            step.run()
            say(f"[{number}/{len(steps)}] done in {time.monotonic() - start:.0f} s")


def say(line: str) -> None:
    """Print a progress line at once, also into a pipe."""
    print(line, flush=True)


@contextlib.contextmanager
def exclusive(path: Path, poll: float = 0.5) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it.

    The system releases such a lock when its process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        waiting = False
        while not _try_lock(file.fileno()):
            if not waiting:
                say("Another dev.py is setting up this checkout: waiting for it.")
                waiting = True
            time.sleep(poll)
        yield  # closing the file releases the lock


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
