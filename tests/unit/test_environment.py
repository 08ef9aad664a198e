"""What dev.py sets up: pins, downloads, links and the errors that say what to do."""

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import environment
import pack
import pytest
from environment import SetupError

ROOT = pack.ROOT


def make_host(folder):
    """A folder that looks like a ComfyUI from outside."""
    for name in ("comfy", "custom_nodes"):
        (folder / name).mkdir(parents=True)
    for name in ("main.py", "requirements.txt"):
        (folder / name).touch()
    return folder


def make_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            data = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


# COMFYUI_PATH


def test_own_host_is_optional(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert environment.own_host() is None
    monkeypatch.setenv("COMFYUI_PATH", "")
    assert environment.own_host() is None


def test_own_host_is_used_as_it_is(monkeypatch, tmp_path):
    host = make_host(tmp_path / "host")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert environment.own_host() == host
    (packages,) = environment.steps(tmp_path / "dev", host)  # nothing to download, only packages
    assert packages.target == tmp_path / "dev" / "venv"


def test_own_host_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=rf"(?s)COMFYUI_PATH is {re.escape(str(tmp_path))}.*no main.py"):
        environment.own_host()


def test_changed_requirements_of_the_own_host_are_noticed(tmp_path):
    host = make_host(tmp_path / "host")
    before = environment.steps(tmp_path, host)[0].fingerprint
    (host / "requirements.txt").write_text("something-new\n")
    assert environment.steps(tmp_path, host)[0].fingerprint != before


# links


def test_the_pack_is_linked_once(tmp_path):
    for _ in range(2):
        environment.link_pack(tmp_path, "latent-layers")
    assert [entry.resolve() for entry in tmp_path.iterdir()] == [ROOT]


def test_a_link_of_another_name_is_enough(tmp_path):
    (tmp_path / "somewhere").symlink_to(ROOT)
    environment.link_pack(tmp_path, "latent-layers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["somewhere"]


def test_another_pack_of_the_same_name_is_left_alone(tmp_path):
    (tmp_path / "latent-layers").mkdir()
    with pytest.raises(SetupError, match="is not this checkout"):
        environment.link_pack(tmp_path, "latent-layers")
    assert not (tmp_path / "latent-layers").is_symlink()


def test_a_link_to_a_checkout_that_is_gone_is_renewed(tmp_path):
    (tmp_path / "latent-layers").symlink_to(tmp_path / "gone")
    environment.link_pack(tmp_path, "latent-layers")
    assert (tmp_path / "latent-layers").resolve() == ROOT


# download


def test_unpack_takes_the_inner_folder_only(tmp_path):
    files = {"thing-1.0/inner/host/main.py": "x", "thing-1.0/inner/host/comfy/a.py": "y", "thing-1.0/other.py": "z"}
    environment.unpack(make_archive(tmp_path / "a.tar.gz", files), "inner/host", tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.py"))
    assert found == [os.path.join("comfy", "a.py"), "main.py"]


def test_unpack_stays_in_its_folder(tmp_path):
    files = {"thing-1.0/inner/../../../evil.py": "x", "thing-1.0/inner/good.py": "y"}
    environment.unpack(make_archive(tmp_path / "a.tar.gz", files), "inner", tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*.py")] == ["good.py"]


def test_unpack_without_the_folder_is_an_error(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz", {"thing-1.0/other.py": "z"})
    with pytest.raises(SetupError, match="no folder inner/host"):
        environment.unpack(archive, "inner/host", tmp_path / "out")


def test_a_newer_host_takes_over_the_packs_of_the_older_one(tmp_path, monkeypatch):
    host = tmp_path / "ComfyUI"
    for version in ("old", "new"):
        files = {f"pkg/inner/host/{name}": version for name in ("main.py", "custom_nodes/example.py")}
        archive = make_archive(tmp_path / f"{version}.tar.gz", files)
        monkeypatch.setattr(environment, "download", lambda *_, found=archive, **__: found)
        monkeypatch.setattr(environment, "HOST_FOLDER", "inner/host")
        if version == "new":
            (host / "custom_nodes" / "mine").mkdir()
            (host / "custom_nodes" / "mine" / "nodes.py").write_text("kept")
            os.symlink(tmp_path / "elsewhere", host / "custom_nodes" / "linked")
        environment.download_host(host, Path(sys.executable))
    assert [(host / name).read_text() for name in ("main.py", "custom_nodes/example.py")] == ["new", "new"]
    assert (host / "custom_nodes" / "mine" / "nodes.py").read_text() == "kept"
    assert os.readlink(host / "custom_nodes" / "linked") == str(tmp_path / "elsewhere")
    assert not host.with_name("ComfyUI.partial").exists()


@pytest.fixture
def index(tmp_path):
    """A folder with one source distribution, and its hash; building it leaves a trace."""
    folder = tmp_path / "index"
    folder.mkdir()
    trace = tmp_path / "was-run"
    files = {
        "tinything-1.0/setup.py": f"open({str(trace)!r}, 'w'); raise SystemExit('not to be run')",
        "tinything-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
    }
    archive = make_archive(folder / "tinything-1.0.tar.gz", files)
    return folder, hashlib.sha256(archive.read_bytes()).hexdigest(), trace


def test_a_file_with_another_hash_is_refused_before_it_can_run(index, tmp_path):
    folder, _, trace = index
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(SetupError, match="sha256 differs"):
        environment.download("tinything==1.0", "0" * 64, target, "--no-index", "--find-links", str(folder))
    assert not trace.exists()
    assert not list(target.glob("*.tar.gz"))


def test_the_right_hash_gets_past_the_check(index, tmp_path):
    folder, sha256, trace = index
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(SetupError):  # from its set-up script
        environment.download(
            "tinything==1.0", sha256, target, "--no-index", "--find-links", str(folder), "--no-build-isolation"
        )
    assert trace.exists()


# errors


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError(': Failed to establish a new connection\nNo matching distribution found", "network"),
        (
            "Ignored the following versions that require a different python version: 0.0.7 Requires-Python",
            "Python 3.11",
        ),
        ("ERROR: No matching distribution found for comfy-aimdo==0.4.11", "no build for this system"),
        ("ERROR: something nobody has seen", "output above"),
    ],
)
def test_a_failure_of_pip_says_what_to_do(log, words):
    assert words in environment.explain(log)


def test_a_retry_that_went_well_is_not_the_reason():
    log = "WARNING: Retrying after connection broken by NewConnectionError\n" + "Collecting\n" * 5000
    assert "network" not in environment.explain(log + "No matching distribution found for comfy-aimdo==0.4.11")


def test_without_a_network_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "")
    options = ["--index-url", "http://127.0.0.1:9/simple", "--retries", "0"]  # port 9: nothing listens there
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SetupError, match="could not be reached"):
        environment.download("tinything==1.0", "0" * 64, tmp_path, *options)


@pytest.mark.parametrize("version", [(3, 9), (3, 15), (4, 0)])
def test_unsupported_pythons_are_named(version):
    with pytest.raises(SetupError, match="Python 3.10 to 3.14 and was started with {}.{}".format(*version)):
        environment.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 14)])
def test_supported_pythons(version):
    environment.check_python(version)


def test_a_full_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "DISK_GIB", 10**9)
    with pytest.raises(SetupError, match=r"Set-up needs 1000000000 GB.*there are [\d.]+ GB"):
        environment.build_venv(tmp_path / "venv", [])
    assert not (tmp_path / "venv").exists()


# the lock and the command line


def test_the_lock_pins_everything_and_leaves_torch_its_own_parts():
    lines = [line for line in environment.LOCK.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+(; .+)?$", line) for line in lines)
    assert {"torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"} <= set(lines)
    assert not [line for line in lines if line.startswith(("nvidia-", "triton"))]


def test_no_registry_host_or_url_is_written_down():
    for name in ("environment.py", "requirements.lock", "steps.py"):
        assert "://" not in (ROOT / "devtools" / name).read_text()


def run_dev(*arguments, **variables):
    command = [sys.executable, str(ROOT / "dev.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_without_a_command_the_usage_is_shown():
    result = run_dev()
    assert result.returncode == 2
    assert "python dev.py demo" in result.stderr


def test_a_wrong_comfyui_path_stops_every_command(tmp_path):
    for command in ("demo", "test", "serve", "bench", "train", "setup"):
        result = run_dev(command, COMFYUI_PATH=str(tmp_path))
        assert result.returncode == 1
        assert "is not a ComfyUI folder" in result.stderr
        assert "Traceback" not in result.stderr
