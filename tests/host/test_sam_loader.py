"""Load Segment Anything inside the real host: folders, checkpoints, and files that are none."""

import os
import pickle
import sys

import folder_paths
import numpy as np
import pytest
import safetensors.torch
import segment_anything
import torch

from latent_layers.masks import sam as prompting
from latent_layers.masks import sam_host
from latent_layers.nodes.sam import LoadSegmentAnything, SegmentAnything

from .narrow_sam import expected, narrow, picture


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/sams for one test, with the narrow model in the place of vit_b."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    # set first, so that the original is what comes back
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "sams", ([], set()))
    del folder_paths.folder_names_and_paths["sams"]
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: narrow(768))
    (tmp_path / "sams").mkdir()
    return tmp_path / "sams"


def offered():
    """What the loader can choose from."""
    return LoadSegmentAnything.define_schema().inputs[0].as_dict()["options"]


def test_the_registrys_models_are_told_apart():
    for name in ("vit_b", "vit_l", "vit_h"):
        with torch.device("meta"):
            state = segment_anything.sam_model_registry[name]().state_dict()
        assert prompting.encoder_of(state, "x") == name


def save(path, state):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("name", ["a.pth", "deep/er.pt", "a.safetensors", "half.safetensors", "wrapped.pth"])
def test_checkpoints_load(folder, name):
    original = narrow(768)
    state = original.state_dict()
    if name == "half.safetensors":
        state = {key: weight.half() for key, weight in state.items()}
        original.load_state_dict({key: weight.float() for key, weight in state.items()})
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    save(path, {"state_dict": state} if name == "wrapped.pth" else state)

    listed = offered()
    assert listed == [os.path.normpath(name)]
    assert LoadSegmentAnything.validate_inputs(listed[0]) is True
    (loaded,) = LoadSegmentAnything.execute(listed[0]).args
    assert loaded.name == listed[0] and not loaded.sam.training
    for key, weight in original.state_dict().items():
        assert torch.equal(loaded.sam.state_dict()[key], weight) and weight.dtype == torch.float32
    buffers = dict(original.named_buffers())
    assert len(buffers) == 3 and all(torch.equal(buffers[key], one) for key, one in loaded.sam.named_buffers())
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in loaded.sam.parameters())

    image = picture(3)
    masks, scores, preview = SegmentAnything.execute(loaded, image, "30, 20", "", "all", 0.5).args
    wanted, rated = expected(sam_host.LoadedSam(original, name), image, [[30, 20]], [1])
    assert torch.equal(masks, wanted[np.argsort(-rated, kind="stable")])
    assert scores.startswith("mask 1: ") and preview.shape == image.shape


class Command:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def make_unusable(path, kind):
    state = narrow(768).state_dict()
    if kind == "text":
        path.write_text("<html>404 Not Found</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        save(path, state)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "code":
        path.write_bytes(pickle.dumps({"state_dict": Command(path.with_name("written"))}))
    elif kind == "list":
        save(path, [1, 2, 3])
    elif kind == "another model":
        save(path, {"model.diffusion_model.out.2.weight": torch.zeros(4, 4), "x": torch.zeros(1)})
    elif kind == "more":
        save(path, {**state, "mask_decoder.hf_token.weight": torch.zeros(1, 32)})
    elif kind == "less":
        save(path, {name: weight for name, weight in state.items() if "iou_token" not in name})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.pth", "text", "cannot be read"),
        ("a.safetensors", "text", "cannot be read"),
        ("a.pth", "empty", "cannot be read"),
        ("a.safetensors", "empty", "cannot be read"),
        ("a.pth", "cut off", "cannot be read"),
        ("a.safetensors", "cut off", "cannot be read"),
        ("a.pth", "code", "cannot be read"),
        ("a.pth", "list", "is not a Segment Anything checkpoint"),
        ("a.pth", "another model", "is not a Segment Anything checkpoint"),
        ("a.safetensors", "another model", "is not a Segment Anything checkpoint"),
        ("a.pth", "more", ".*one like it .*hf_token"),
        ("a.pth", "less", ".*one like it .*iou_token"),
    ],
)
def test_unusable_files_are_named(folder, name, kind, message):
    make_unusable(folder / name, kind)
    with pytest.raises(ValueError, match=f"Load Segment Anything: {name} {message}"):
        sam_host.load(name)
    assert not (folder / "written").exists()


def test_without_a_file_the_loader_says_where_to_put_one(folder):
    (folder / "notes.txt").touch()
    assert offered() == [sam_host.NO_FILES]
    for name in (sam_host.NO_FILES, "sam_vit_b_01ec64.pth"):
        said = LoadSegmentAnything.validate_inputs(name)
        assert isinstance(said, str) and str(folder) in said and "sam_vit_b_01ec64.pth (0.4 GB)" in said
        with pytest.raises(FileNotFoundError, match="Load Segment Anything: there is no checkpoint"):
            sam_host.load(name)
    assert "checkpoint 'sam_vit_b" in said


def test_the_folder_joins_what_another_pack_has_registered(folder, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in (theirs / "hq.pth", theirs / "edge.onnx", folder / "b.pth"):
        path.touch()
    folder_paths.folder_names_and_paths["sams"] = ([str(theirs)], {".onnx", ".pth"})
    for _ in range(2):
        assert sam_host.checkpoints() == ["b.pth", "hq.pth"]
        assert folder_paths.folder_names_and_paths["sams"] == ([str(theirs), str(folder)], {".onnx", ".pth"})


def test_the_package_is_needed_only_here(folder, monkeypatch):
    save(folder / "a.pth", narrow(768).state_dict())
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ImportError, match="package segment-anything cannot be imported .*pip install segment-anything"):
        sam_host.load("a.pth")
