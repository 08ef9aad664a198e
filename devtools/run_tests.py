"""`dev.py test`: lint, format, types, then the test tiers; everything runs, then the verdict.

python dev.py test                    all of it
python dev.py test lint types         only these
python dev.py test unit -k name       one tier; what is not a stage goes to pytest
python dev.py test tests/unit/test_x.py
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pack

MODULE = pack.ROOT / "devtools" / "run_module.py"
TIERS = ("unit", "host", "browser")
NO_TESTS = 5  # pytest's exit status when it found nothing to run
PATIENCE = 60  # seconds that a stage has for its clean-up when it is ended
# The host tier whole, in two processes with half the cores each: small tensors gain little from more threads.
PROCESSES = ("-n", "2", "--dist", "loadfile")


@dataclass(frozen=True)
class Stage:
    """One command of the check; `word` selects it on the command line."""

    word: str
    title: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """How one stage ended."""

    stage: Stage
    status: str  # "ok", "no tests" or "FAILED (exit status)"
    seconds: float


def tool(*arguments: str) -> tuple[str, ...]:
    """Command line of a Python tool in this environment."""
    return (sys.executable, str(MODULE), *arguments)


def all_stages(pytest_options: Sequence[str]) -> list[Stage]:
    """Every stage, in order."""
    checks = [
        Stage("lint", "ruff check", tool("ruff", "check", ".")),
        Stage("lint", "ruff format", tool("ruff", "format", "--check", ".")),
        Stage("types", "pyright", tool("pyright")),
    ]
    return checks + [tier_stage(tier, pytest_options) for tier in TIERS]


def tier_stage(tier: str, options: Sequence[str]) -> Stage:
    """One test tier: its whole folder, or what `options` name of it."""
    folder = f"tests/{tier}"
    others = [other for other in TIERS if other != tier]
    own = [option for option in options if not any(_is_inside(option, other) for other in others)]
    named = any(_is_inside(option, tier) for option in options)
    processes = PROCESSES if tier == "host" and not options and cores() > 1 else ()
    return Stage(tier, folder, tool("pytest", *([] if named else [folder]), *processes, *own))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_inside(option: str, tier: str) -> bool:
    """Whether an option of pytest is a path in a tier's folder, such as tests/unit/test_x.py::test_y."""
    return os.path.normpath(option.split("::")[0]).split(os.sep)[:2] == ["tests", tier]


def select(arguments: Sequence[str]) -> list[Stage]:
    """Stages for a command line: leading stage words, then options for pytest."""
    known = {stage.word for stage in all_stages(())}
    words = []
    rest = list(arguments)
    while rest and rest[0] in known:
        words.append(rest.pop(0))
    if rest and not words:  # options for pytest alone: the tests alone, of the tiers that they name
        words = [tier for tier in TIERS if any(_is_inside(option, tier) for option in rest)] or list(TIERS)
    return [stage for stage in all_stages(rest) if not words or stage.word in words]


def run(stage: Stage, filtered: bool) -> Verdict:
    """Run a stage with its output shown."""
    print(f"\n=== {stage.title}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(stage.command, cwd=pack.ROOT, env=environment(stage))
    try:
        code = process.wait()
    finally:
        if process.poll() is None:  # we are being ended: pytest gets to run its own clean-up
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
    status = "ok" if code == 0 else f"FAILED (exit status {code})"
    if code == NO_TESTS and stage.word in TIERS and (filtered or not has_tests(stage.word)):
        status = "no tests"
    return Verdict(stage, status, time.monotonic() - start)


def has_tests(tier: str) -> bool:
    """Whether a tier's folder has any test file."""
    return any((pack.ROOT / "tests" / tier).rglob("test_*.py"))


def environment(stage: Stage) -> dict[str, str]:
    """Environment of a stage: the type checker finds the host in use and the pack by PYTHONPATH.

    The tests do not get that: the unit tier must do without the host.
    """
    if "-n" in stage.command:
        return {"OMP_NUM_THREADS": str(cores() // 2), **os.environ}
    if stage.word != "types":
        return dict(os.environ)
    paths = os.pathsep.join([str(pack.host_folder()), str(pack.ROOT / ".dev" / "package")])
    return {**os.environ, "PYTHONPATH": paths, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


def main(arguments: Sequence[str]) -> int:
    """Run the selected stages; returns 1 when one failed."""
    stages = select(arguments)
    filtered = any(argument not in {stage.word for stage in stages} for argument in arguments)
    verdicts = [run(stage, filtered) for stage in stages]
    print("\n=== result")
    for verdict in verdicts:
        print(f"{verdict.stage.title:16} {verdict.seconds:6.1f} s  {verdict.status}")
    failed = any(verdict.status.startswith("FAILED") for verdict in verdicts)
    tiers = [verdict.status for verdict in verdicts if verdict.stage.word in TIERS]
    nothing = filtered and bool(tiers) and set(tiers) == {"no tests"}
    print("FAILED" if failed else "FAILED: no test has that name" if nothing else "all passed")
    return 1 if failed or nothing else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
