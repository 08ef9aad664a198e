"""Layer files: exact, reproducible, all or nothing; whatever is not one is refused with a remedy."""

import io
import json
import os
import tracemalloc
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from latent_layers.fusion import layer_file
from latent_layers.fusion.layers import Layer

HEIGHT, WIDTH = 6, 9


def eight_bits(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def soft(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def source():
    return eight_bits(1, HEIGHT, WIDTH, 3)


@pytest.fixture
def layers():
    hard = torch.zeros(1, HEIGHT, WIDTH)
    hard[:, 1:4, 2:5] = 1
    return [
        Layer("cup", hard, moves=((12.5, -1 / 3), (0.1, 4.0)), scale_x=0.7, scale_y=1.9, rotation=-33.3, flip_x=True),
        Layer("cup", eight_bits(1, HEIGHT, WIDTH, seed=1), moves=(), order=-3, occluder=hard),
        Layer("杯子 ☕ é", soft(1, 7, 4, seed=2).half().float(), image=eight_bits(1, 7, 4, 3, seed=3), flip_y=True),
        Layer("", eight_bits(1, 3, 2, seed=4), image=soft(1, 3, 2, 3, seed=5) * 3 - 1, occluder=soft(1, 3, 2), order=7),
        Layer("\ud800", soft(1, HEIGHT, WIDTH), moves=((5.0, 5.0),)),
        Layer("half", soft(1, 3, 4), image=eight_bits(1, 8, 6, 3)),
    ]


@pytest.fixture
def path(tmp_path, source, layers):
    path = tmp_path / "edit.layers.zip"
    layer_file.save(path, source, layers)
    return path


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for field in fields(Layer):
            mine, theirs = getattr(one, field.name), getattr(other, field.name)
            assert type(mine) is type(theirs), field.name
            if isinstance(theirs, torch.Tensor):
                assert mine.dtype == torch.float32 and torch.equal(mine, theirs), field.name
            else:
                assert mine == theirs, field.name


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, changes=(), **manifest_changes):
    """The file with entries replaced, or left out (None), and fields of its manifest set."""
    contents = entries(path) | dict(changes)
    if manifest_changes:
        manifest = json.loads(contents["manifest.json"]) | manifest_changes
        contents["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            if data is not None:
                archive.writestr(name, data)


def rewrite_layer(path, number, **changes):
    listed = json.loads(entries(path)["manifest.json"])["layers"]
    listed[number - 1] |= changes
    rewrite(path, layers=listed)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def assert_refused(path, *parts):
    with pytest.raises(ValueError) as caught:
        layer_file.load(path)
    message = str(caught.value)
    assert message.startswith(f"Load Layers: {path.name}: ") and "; " in message
    assert all(part in message for part in parts), message


@pytest.mark.filterwarnings("error")  # torch warns of memory that must not be written to
def test_comes_back_exactly(path, source, layers):
    found, listed = layer_file.load(path)
    assert found.dtype == torch.float32 and torch.equal(found, source)
    assert_same(listed, layers)


def test_every_8_bit_value_needs_only_a_png(tmp_path):
    ramp = (torch.arange(256).float() / 255).reshape(1, 16, 16)
    source = torch.stack([ramp, ramp.flip(1), ramp.flip(2)], dim=-1)
    layers = [Layer("ramp", ramp, occluder=ramp.flip(1)), Layer("other", ramp, image=source.flip(1))]
    layer_file.save(tmp_path / "a.layers.zip", source, layers)
    names = list(entries(tmp_path / "a.layers.zip"))
    assert names == ["manifest.json", "source.png", "layers/01.png", "layers/01.occluder.png", "layers/02.png"]
    found, listed = layer_file.load(tmp_path / "a.layers.zip")
    assert torch.equal(found, source)
    assert_same(listed, layers)


def test_values_next_to_those_of_8_bits(tmp_path, source):
    nearly = torch.nextafter(source, torch.tensor(2.0))
    layer_file.save(tmp_path / "a.layers.zip", nearly, [])
    found, listed = layer_file.load(tmp_path / "a.layers.zip")
    assert torch.equal(found, nearly) and listed == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halves_and_views(tmp_path, dtype):
    source, mask = soft(1, 20, 20, 3).to(dtype)[:, 3:9, ::2], soft(1, 20, 20).to(dtype)[:, 3:9, ::2]
    layer_file.save(tmp_path / "a.layers.zip", source, [Layer("view", mask)])
    found, (layer,) = layer_file.load(tmp_path / "a.layers.zip")
    assert torch.equal(found, source.float()) and torch.equal(layer.mask, mask.float())


def test_other_shapes_that_the_host_has(tmp_path, source, layers):
    """Masks (H, W) and (1, 1, H, W), pictures with alpha: nothing that an edit reads is lost."""
    given = replace(layers[3], mask=layers[3].mask[0], occluder=layers[3].occluder[None])
    given = replace(given, image=torch.cat([given.image, given.image[..., :1]], dim=3))
    layer_file.save(tmp_path / "a.layers.zip", torch.cat([source, source[..., :1]], dim=3), [given])
    found, listed = layer_file.load(tmp_path / "a.layers.zip")
    assert torch.equal(found, source)
    assert_same(listed, [layers[3]])


def test_pictures_open_elsewhere(path, source, layers):
    """A layer's PNG is the layer cut out, also where only its .npy is exact."""
    cup, preview = (np.asarray(Image.open(io.BytesIO(entries(path)[f"layers/{name}.png"]))) for name in ("01", "03"))
    mask = layers[0].mask[0].numpy()
    assert (cup[..., 3] == mask * 255).all()
    assert (cup[..., :3] == (source[0].numpy() * 255).round() * mask[..., None]).all()
    assert np.abs(preview[..., 3] / 255 - layers[2].mask[0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_same_edit_makes_the_same_bytes(tmp_path, path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    source, layers = layer_file.load(path)
    layer_file.save(tmp_path / "again.layers.zip", source, layers)
    assert (tmp_path / "again.layers.zip").read_bytes() == path.read_bytes()
    source += 1  # what is loaded can be changed
    layers[0].mask.zero_()


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["_npy", "os.fsync", "os.replace"])
def test_failure_leaves_the_old_file(path, source, layers, monkeypatch, step, failure):
    def fail(*_):
        raise failure

    before = path.read_bytes()
    monkeypatch.setattr(f"{layer_file.__name__}.{step}" if step == "_npy" else step, fail)
    with pytest.raises(type(failure)):
        layer_file.save(path, source, layers[::-1])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_written_beside_synced_then_moved(path, source, layers, monkeypatch):
    steps, before, move = [], path.read_bytes(), os.replace

    def moved(start, end):
        assert os.path.dirname(start) == os.path.dirname(end) and path.read_bytes() == before
        steps.append(("replace", os.path.getsize(start)))
        move(start, end)

    monkeypatch.setattr("os.fsync", lambda handle: steps.append(("fsync", os.fstat(handle).st_size)))
    monkeypatch.setattr("os.replace", moved)
    layer_file.save(path, source, layers[:2])
    assert steps == [("fsync", path.stat().st_size), ("replace", path.stat().st_size)]


NAN, KEPT = float("nan"), {"file": "source.png", "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(2, HEIGHT, WIDTH)}, "shape (2, 6, 9)"),
        ({"mask": torch.ones(WIDTH)}, "shape (9,)"),
        ({"mask": torch.full((1, HEIGHT, WIDTH), NAN)}, "not finite"),
        ({"occluder": torch.ones(1, 2, 0)}, "occluder of layer 1 (cup) is 0x2"),
        ({"image": torch.ones(2, 4, 4, 3)}, "image of layer 1 (cup) has shape (2, 4, 4, 3)"),
        ({"rotation": NAN}, "rotation of layer 1 (cup) is nan"),
        ({"moves": ((0.0, float("inf")),)}, "a move of layer 1 (cup) is inf"),
        ({"scale_y": 0.0}, "scale_y of layer 1 (cup) is 0.0; choose 0.05 to 20"),
    ],
)
def test_wrong_layer_is_not_saved(path, source, layers, change, message):
    before = path.read_bytes()
    with pytest.raises(ValueError) as caught:
        layer_file.save(path, source, [replace(layers[0], **change)])
    assert message in str(caught.value) and str(caught.value).startswith("Save Layers: edit.layers.zip: ")
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 4, 4, 2), (4, 4, 3), (1, 0, 4, 3)])
def test_wrong_source_is_not_saved(tmp_path, shape):
    with pytest.raises(ValueError, match="the source"):
        layer_file.save(tmp_path / "a.layers.zip", torch.ones(shape), [])
    assert not os.listdir(tmp_path)


def test_limits_hold_when_saving(tmp_path, source, layers, monkeypatch):
    for name, limit in (("MAX_PIXELS", 53), ("MAX_VALUES", 500), ("MAX_MANIFEST", 1000)):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="; use"):
            patch.setattr(layer_file, name, limit)
            layer_file.save(tmp_path / "a.layers.zip", source, layers)
    assert not os.listdir(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Load Layers: gone.layers.zip: there is no such file; choose"):
        layer_file.load(tmp_path / "gone.layers.zip")


def test_truncated_anywhere(path):
    data = path.read_bytes()
    for length in [*range(0, len(data), 41), len(data) - 1]:
        path.write_bytes(data[:length])
        assert_refused(path, "not a layer file" if length == 1 else "damaged")


def test_changed_anywhere(path, source, layers):
    """A changed byte is noticed, or does not matter (as a time of day in the zip's directory)."""
    data, noticed, tried = path.read_bytes(), 0, range(0, path.stat().st_size, 7)
    for position in tried:
        changed = bytearray(data)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        try:
            found, listed = layer_file.load(path)
        except ValueError as error:
            assert str(error).startswith("Load Layers: edit.layers.zip: ")
            noticed += 1
        else:
            assert torch.equal(found, source)
            assert_same(listed, layers)
    assert noticed > 0.6 * len(tried)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n...", b"{}", b"P"])
def test_other_files(path, content):
    path.write_bytes(content)
    assert_refused(path, "not a layer file; choose")


def test_other_manifests(path):
    for manifest in (None, b"[]", b'{"version": 1}', b'{"format": "another", "version": 1}'):
        rewrite(path, {"manifest.json": manifest})
        assert_refused(path, "not a layer file; choose")
    for manifest in (b"", b"{", b"\xff", b"[" * 200_000, b'{"format": "latent-layers"}'):
        rewrite(path, {"manifest.json": manifest})
        assert_refused(path, "damaged")


def test_newer_version(path):
    rewrite(path, version=2, layers="in another form")
    assert_refused(path, "made by a newer version (2, this is 1) of Latent Layers; update the pack")
    for version in (0, "1", None, 1.5):
        rewrite(path, version=version)
        assert_refused(path, "version")


@pytest.mark.parametrize("field", ["version", "source", "layers", *(field.name for field in fields(Layer))])
def test_field_missing(path, field):
    manifest = json.loads(entries(path)["manifest.json"])
    del (manifest if field in manifest else manifest["layers"][2])[field]
    rewrite(path, {"manifest.json": json.dumps(manifest).encode()})
    assert_refused(path, "damaged", field)


def test_each_entry_missing(path, layers):
    before = path.read_bytes()
    previews = {"layers/05.png", "layers/04.occluder.png", "layers/06.mask.png"}  # not exact
    for name in entries(path).keys() - {"manifest.json"}:
        path.write_bytes(before)
        rewrite(path, {name: None})
        if name in previews:
            assert_same(layer_file.load(path)[1], layers)
        else:
            assert_refused(path, f"{name} is missing")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", [3]),
        ("flip_x", [1, None]),
        ("order", [1.5, True, "1"]),
        ("scale_x", [0, 21, "1", NAN]),
        ("rotation", [NAN, None]),
        ("moves", [5, [1], [[1]], [[1, "2"]], [[1, 10**400]]]),
        ("mask", [None, "layers/01.png", KEPT, KEPT | {"file": 1}, KEPT | {"file": [1]}, KEPT | {"width": "9"}]),
        ("image", [{}, KEPT | {"file": "manifest.json"}, KEPT | {"file": "layers/02.occluder.png"}]),
        ("occluder", [KEPT | {"file": "../../secret"}, KEPT | {"height": -1}]),
    ],
)
def test_nonsense_in_a_layer(path, field, values):
    for value in values:
        rewrite_layer(path, 1, **{field: value})
        assert_refused(path)


def test_sizes_that_disagree(path):
    right = path.read_bytes()
    listed = json.loads(entries(path)["manifest.json"])["layers"]
    for number, part in ((1, "mask"), (2, "occluder"), (3, "mask"), (3, "image"), (4, "image"), (6, "mask")):
        kept = listed[number - 1][part]
        rewrite_layer(path, number, **{part: kept | {"width": kept["width"] + 1}})
        assert_refused(path, f"{kept['file']} is {kept['width']}x", f"manifest.json says {kept['width'] + 1}x")
        path.write_bytes(right)


@pytest.mark.parametrize("name", ["layers/01.png", "layers/02.occluder.png", "layers/03.mask.npy"])
def test_entry_of_another_kind(path, name):
    for data in (png(np.zeros((HEIGHT, WIDTH), np.uint16)), npy(np.zeros((HEIGHT, WIDTH, 1))), b"text"):
        rewrite(path, {name: data})
        assert_refused(path)


def test_wrong_array(path):
    right = np.zeros((7, 4, 1), np.float32)
    wrong = [right[:, :3], right[..., :0], right.astype(float), right + np.nan, np.asfortranarray(right)]
    wrong.append(np.array([[[{"an": "object"}]]]))
    for data in [*map(npy, wrong), npy(right)[:-4], npy(right)[:60]]:
        rewrite(path, {"layers/03.mask.npy": data})
        assert_refused(path)
    rewrite(path, {"layers/03.mask.npy": npy(right)})
    layer_file.load(path)


def test_large_pictures(path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # no picture may be decoded
    right, layer = path.read_bytes(), json.loads(entries(path)["manifest.json"])["layers"][2]
    rewrite(path, source={"file": "source.png", "width": 2**14, "height": 2**14})
    assert_refused(path, "the source is 16384x16384", "use a picture of 1 to 67108864 pixels")
    path.write_bytes(right)
    rewrite(path, layers=[layer | {"image": layer["image"] | {"width": 2**13, "height": 2**13}}] * 6)
    assert_refused(path, "use fewer layers")
    path.write_bytes(right)
    rewrite(path, {"source.png": png(np.zeros((3000, 3000, 3), np.uint8))})
    assert_refused(path, "source.png is 3000x3000, but manifest.json says 9x6")


@pytest.mark.parametrize("name", ["manifest.json", "source.png", "layers/03.mask.npy"])
def test_entry_that_unpacks_to_much(path, name):
    rewrite(path, {name: entries(path)[name] + bytes(2**24)})
    assert_refused(path, f"{name} has 16", "the limit is")


def test_entry_that_hides_how_much_it_unpacks_to(path):
    stated = len(entries(path)["source.png"])
    rewrite(path, {"source.png": bytes(2**25)})
    data = path.read_bytes()
    path.write_bytes(data.replace((2**25).to_bytes(4, "little"), stated.to_bytes(4, "little")))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("source.png").file_size == stated
    tracemalloc.start()
    assert_refused(path, "damaged")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(path, method):
    contents = entries(path)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    assert_refused(path, "compressed by another method")
