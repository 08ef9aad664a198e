"""Load the pack, and the host beneath it, the way ComfyUI does.

The pack's root must never be on sys.path: its folder `nodes` would hide the host's
module of that name. So the root is loaded as the package `latent_layers`.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "latent_layers"


def load_pack() -> ModuleType:
    """Import the checkout as the package `latent_layers` (torch only, no host)."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def host_folder() -> Path:
    """Folder of ComfyUI: COMFYUI_PATH, else the copy that `dev.py` sets up."""
    return Path(os.environ.get("COMFYUI_PATH") or ROOT / ".dev" / "ComfyUI").resolve()


def load_host(*arguments: str) -> None:
    """Make `comfy` importable in this process, on the CPU when torch has no CUDA device.

    `arguments` are command-line options of ComfyUI's main.py. Idempotent: the host
    reads its options once, at the first import.
    """
    if "comfy.cli_args" in sys.modules:
        return
    import torch

    options = list(arguments)
    if not torch.cuda.is_available():
        options = ["--cpu", "--use-pytorch-cross-attention", *options]
    sys.path.insert(0, str(host_folder()))
    sys.argv = ["main.py", *options]
    import comfy.options

    comfy.options.enable_args_parsing()
