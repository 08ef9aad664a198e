"""`dev.py serve`: the host with the pack, for a person's browser. Options go to the host's main.py."""

import os
import re
import subprocess
import sys

import pack
from host_server import device_options

DEV = pack.ROOT / ".dev"


def own_folders() -> list[str]:
    """Options that keep pictures, settings and models out of the downloaded host.

    The set-up may replace that folder by a newer version. A host of the user's own
    (COMFYUI_PATH) is served as it is.
    """
    if pack.host_folder() != (DEV / "ComfyUI").resolve():
        return []
    options = []
    for name in ("models", "input", "output", "temp", "user"):
        folder = DEV / "serve" / name
        folder.mkdir(parents=True, exist_ok=True)
        options.append(f"--{name}-directory={folder}")
    (DEV / "serve" / "models" / "checkpoints").mkdir(exist_ok=True)  # shows where checkpoints belong
    return [*options, f"--database-url=sqlite:///{DEV / 'serve' / 'user' / 'comfyui.db'}"]


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit status, where the host does not take this process's place."""
    options = own_folders()
    device = device_options()
    if any(re.fullmatch(r"--use-.*attention", argument) for argument in arguments):
        device = [option for option in device if not option.startswith("--use-")]  # the host takes only one
    # The user's options come last: the host takes the last value of an option.
    command = [sys.executable, str(pack.host_folder() / "main.py"), *options, *device, *arguments]
    if options:
        print(f"Checkpoints go to {DEV / 'serve' / 'models' / 'checkpoints'}")
    print("The address to open in a browser is in the last lines of the start. Ctrl-C ends it.", flush=True)
    if os.name == "posix":
        os.execv(command[0], command)  # so that signals reach the host itself
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
