#!/usr/bin/env python3
"""One entry for people who work on Latent Layers; every command sets up what is missing first.

    python dev.py demo      remove an object and move another in a real ComfyUI -> output/demo.png
    python dev.py test      lint, types and all tests; `test unit -k name` runs a part
    python dev.py serve     ComfyUI with the pack, for your browser; options go to its main.py
    python dev.py bench     figures: bench model|inversion|removal|layers|masks|softedit|... [--seeds A-B] [--json]
    python dev.py train     make the toy model's weights from nothing
    python dev.py setup     only set up

Set-up goes to the folder .dev of this checkout (8 GB). COMFYUI_PATH=folder uses a ComfyUI
of your own instead of a downloaded one.
"""

import os
import subprocess
import sys

SCRIPTS = {"demo": "demo.py", "test": "run_tests.py", "serve": "serve.py", "bench": "bench.py", "train": "train.py"}
DEVTOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "devtools")


def main(arguments):
    """Set up, then run the command's script; returns the exit status."""
    if not arguments or arguments[0] not in (*SCRIPTS, "setup"):
        print((__doc__ or "").strip(), file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    if sys.version_info < (3, 10):
        print("dev.py needs Python 3.10 or later, this is %d.%d." % sys.version_info[:2], file=sys.stderr)
        return 1
    sys.path[0] = DEVTOOLS  # not the root, whose folders would hide modules of the same name
    import environment

    command, rest = arguments[0], arguments[1:]
    try:
        python, host = environment.ensure()
    except environment.SetupError as error:
        print(f"\nSet-up stopped. {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nSet-up stopped: {error}. Mend that and run the same command again.", file=sys.stderr)
        return 1
    if command == "setup":
        print(f"Ready: {python} with ComfyUI in {host}")
        return 0
    os.environ["COMFYUI_PATH"] = str(host)
    # threads that wait for the others sleep instead of spinning: three times as fast on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run([str(python), os.path.join(DEVTOOLS, SCRIPTS[command]), *rest])


def run(command):
    """Run a command in this process's place where the system can do that, else wait for it."""
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    return subprocess.call(command)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again: set-up goes on with what is missing.", file=sys.stderr)
        sys.exit(130)
