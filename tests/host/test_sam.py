"""Segment Anything inside the real host: a narrow model against the package's own predictor, and plain geometry."""

import gc
import weakref

import comfy.model_management
import numpy as np
import pytest
import torch
from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes
from comfy_extras.nodes_images import BoundingBox

from latent_layers.masks import sam_host

from .narrow_sam import HEIGHT, SIDE, WIDTH, expected, narrow, picture

INPUT = (38, 64)  # HEIGHT, WIDTH with the longer side at SIDE


@pytest.fixture(autouse=True)
def inference_mode():
    """The host executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture
def sam():
    return sam_host.LoadedSam(narrow(), "narrow.pth")


def counted(sam):
    """A list that grows by one whenever the encoder runs."""
    runs = []
    sam.sam.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    return runs


def scores_of(result):
    return [float(line.split(": ")[1].split()[0]) for line in result.scores.splitlines()]


# the same as segment-anything


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (90, 40), (64, 64), (200, 333)])
def test_all_three_masks_are_the_predictors_best_first(sam, size):
    height, width = size
    image = picture(3, height, width)
    masks, scores = expected(sam, image, [[width / 3, 20], [5, height - 1]], [1, 0])
    result = sam_host.segment(sam, image, f"{width / 3}, 20", f"5, {height - 1}", multimask="all")
    order = np.argsort(-scores, kind="stable")
    assert len(set(scores.tolist())) == 3
    assert torch.equal(result.masks, masks[order])
    assert scores_of(result) == pytest.approx(scores[order], abs=6e-4)
    assert result.masks.dtype == torch.float32 and result.masks.shape == (3, height, width)
    assert 0 < result.masks.mean() < 1
    assert result.preview.shape == image.shape


def test_best_is_the_first_of_all_and_off_is_the_decoders_single_mask(sam):
    image = picture(3)
    every = sam_host.segment(sam, image, "30, 20; 60, 40", multimask="all")
    best = sam_host.segment(sam, image, "30, 20; 60, 40", multimask="best")
    assert torch.equal(best.masks, every.masks[:1]) and best.scores == every.scores.splitlines()[0]
    single = sam_host.segment(sam, image, "30, 20; 60, 40", multimask="off")
    masks, scores = expected(sam, image, [[30, 20], [60, 40]], [1, 1], multimask=False)
    assert torch.equal(single.masks, masks) and scores_of(single) == pytest.approx(scores, abs=6e-4)
    assert not torch.equal(single.masks, best.masks)


def test_each_box_is_an_object_with_the_points_in_it(sam):
    image = picture(3)
    frames = BoundingBox.execute(10, 5, 50, 40).args[0], {"x": 80, "y": 30, "width": 60, "height": 40}
    result = sam_host.segment(sam, image, "20, 10; 90, 40", "40, 30", list(frames), multimask="off")
    first, _ = expected(sam, image, [[20, 10], [40, 30]], [1, 0], [10, 5, 60, 45], multimask=False)
    second, _ = expected(sam, image, [[90, 40]], [1], [80, 30, WIDTH, 70], multimask=False)
    assert torch.equal(result.masks, torch.cat([first, second]))
    assert [line[line.index("(") :] for line in result.scores.splitlines()] == ["(box 1)", "(box 2)"]


def test_boxes_of_the_hosts_editor(sam):
    image = picture(3)
    drawn = [{"x": 33, "y": 19, "width": 66, "height": 38, "metadata": {"type": "obj"}}]
    frames = CreateBoundingBoxes.execute(WIDTH, HEIGHT, editor_state=drawn).args[1]
    result = sam_host.segment(sam, image, "", boxes=frames, multimask="off")
    left, top, wide, high = (frames[0][0][name] for name in ("x", "y", "width", "height"))
    masks, _ = expected(sam, image, None, None, [left, top, left + wide, top + high], multimask=False)
    assert (left, top, wide, high) == (33, 19, 66, 38)
    assert torch.equal(result.masks, masks)


# geometry, computed again


def lines(source, target):
    """Bilinear interpolation of a line, as a matrix (target, source), float64; pixel centres at halves."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        place = min(max((row + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(place)
        high = min(low + 1, source - 1)
        matrix[row, low] += 1 - (place - low)
        matrix[row, high] += place - low
    return matrix


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.8])
def test_prompts_go_to_the_encoders_frame_and_masks_come_back(sam, threshold):
    given, decoded = [], []
    sam.sam.prompt_encoder.register_forward_pre_hook(lambda module, args, kw: given.append(kw), with_kwargs=True)
    sam.sam.mask_decoder.register_forward_hook(lambda module, args, out: decoded.append(out[0][0, 0].double()))
    box = {"x": 3, "y": 50, "width": 100, "height": 27}
    result = sam_host.segment(sam, picture(3), "130.5, 60", "0, 76", box, multimask="off", threshold=threshold)

    right, down = INPUT[1] / WIDTH, INPUT[0] / HEIGHT
    coordinates, labels = given[0]["points"]
    assert torch.allclose(
        coordinates.double(), torch.tensor([[[130.5 * right, 60 * down], [0, 76 * down]]], dtype=torch.float64)
    )
    assert labels.tolist() == [[1, 0]]
    corners = torch.tensor([[3 * right, 50 * down, 103 * right, 77 * down]], dtype=torch.float64)
    assert torch.allclose(given[0]["boxes"].double(), corners)

    low = decoded[0]
    square = lines(len(low), SIDE) @ low @ lines(len(low), SIDE).T
    logits = lines(INPUT[0], HEIGHT) @ square[: INPUT[0], : INPUT[1]] @ lines(INPUT[1], WIDTH).T
    probability = 1 / (1 + torch.exp(-logits))
    clear = (probability - threshold).abs() > 1e-5
    assert clear.double().mean() > 0.99
    assert torch.equal(result.masks[0][clear], (probability > threshold).float()[clear])


def test_lower_thresholds_give_larger_masks(sam):
    found = [
        sam_host.segment(sam, picture(3), "30, 20", "5, 76", multimask="all", threshold=t) for t in (0.1, 0.5, 0.9)
    ]
    low, middle, high = (result.masks for result in found)
    assert (low >= middle).all() and (middle >= high).all()
    assert low.mean() > middle.mean() > high.mean()


# the embedding


def test_the_encoder_runs_once_per_picture(sam):
    runs, image = counted(sam), picture(3)
    first = sam_host.segment(sam, image, "30, 20", multimask="all")
    for positive, kind in (("90, 60", "best"), ("5, 5; 7, 7", "off"), ("30, 20", "all")):
        again = sam_host.segment(sam, image.clone(), positive, multimask=kind)
    assert len(runs) == 1
    assert torch.equal(again.masks, first.masks) and again.scores == first.scores
    changed = image.clone()
    changed[0, 40, 60] = 1 - changed[0, 40, 60]
    sam_host.segment(sam, changed, "30, 20")
    assert len(runs) == 2
    sam_host.segment(sam, image.transpose(1, 2), "30, 20")
    assert len(runs) == 3


def test_models_do_not_share_embeddings(sam):
    image = picture(3)
    sam_host.segment(sam, image, "30, 20")
    other = sam_host.LoadedSam(narrow(seed=1), "other.pth")
    masks, _ = expected(other, image, [[30, 20]], [1])
    runs = counted(other)
    assert any(torch.equal(sam_host.segment(other, image, "30, 20").masks[0], mask) for mask in masks)
    assert len(runs) == 1


def test_the_oldest_picture_is_forgotten(sam):
    runs = counted(sam)
    for seed in range(sam_host.KEPT):
        sam_host.segment(sam, picture(seed), "30, 20")
    sam_host.segment(sam, picture(0), "40, 20")  # now the youngest
    sam_host.segment(sam, picture(sam_host.KEPT), "30, 20")  # takes the place of 1
    assert len(runs) == sam_host.KEPT + 1
    sam_host.segment(sam, picture(0), "50, 20")
    assert len(runs) == sam_host.KEPT + 1
    sam_host.segment(sam, picture(1), "50, 20")
    assert len(runs) == sam_host.KEPT + 2
    assert len(sam._embeddings) == sam_host.KEPT


def test_an_interrupted_encoder_leaves_nothing(sam):
    hook = sam.sam.image_encoder.register_forward_hook(lambda *_: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        sam_host.segment(sam, picture(3), "30, 20")
    hook.remove()
    assert not sam._embeddings
    masks, scores = expected(sam, picture(3), [[30, 20]], [1])
    assert torch.equal(sam_host.segment(sam, picture(3), "30, 20").masks[0], masks[int(scores.argmax())])


def test_model_and_embeddings_are_freed_together():
    sam = sam_host.LoadedSam(narrow(), "narrow.pth")
    sam_host.segment(sam, picture(3), "30, 20")
    features = weakref.ref(next(iter(sam._embeddings.values())).features)
    weight = weakref.ref(sam.sam.image_encoder.pos_embed)
    assert features() is not None and weight() is not None
    del sam
    gc.collect()
    assert features() is None and weight() is None


# the host's memory


def test_the_host_loads_and_unloads_it(sam):
    sam_host.segment(sam, picture(3), "30, 20")
    mine = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is sam.patcher]
    assert len(mine) == 1 and sam.patcher.loaded_size() == sam.patcher.model_size() > 0
    comfy.model_management.unload_all_models()
    assert sam.patcher.loaded_size() == 0
    masks, _ = expected(sam, picture(3), [[50, 20]], [1], multimask=False)
    runs = counted(sam)
    assert torch.equal(sam_host.segment(sam, picture(3), "50, 20", multimask="off").masks, masks)
    assert not runs


@pytest.mark.parametrize("planned", [-1, 0, 0.1, 1000])
def test_it_is_loaded_whole_however_little_memory_is_planned(planned):
    """The host would leave such layers where they are; parameters beside modules and buffers too."""
    elsewhere = torch.device("meta")
    model = sam_host.SegmentAnythingModel(narrow())
    patcher = sam_host.WholePatcher(model, load_device=elsewhere, offload_device=torch.device("cpu"))
    patcher.partially_load(elsewhere, planned)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors)
    assert patcher.loaded_size() == patcher.model_size()
    assert patcher.partially_unload(torch.device("cpu"), 1000) == 0
    assert all(tensor.is_meta for tensor in model.parameters())


def test_memory_for_the_encoder_is_asked_for(sam, monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu

    def watched(models, memory_required=0, **options):
        asked.append(memory_required)
        return load(models, memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    for positive in ("30, 20", "40, 20"):
        sam_host.segment(sam, picture(3), positive)
    assert asked == [round(3.5 * 4 * 16**2 * 4), 0]  # 4 heads, 4x4 tokens


# bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive": ""}, "neither points nor boxes"),
        ({"positive": "", "boxes": [[]]}, "neither points nor boxes"),
        ({"positive": "", "negative": "3, 4"}, "negative: points alone"),
        ({"positive": "131, 4"}, r"positive: point 1 \(131, 4\) is outside the image of 131x77"),
        ({"positive": "3, 4", "negative": "4, 77"}, "negative: point 1"),
        ({"positive": "x"}, "is not a point"),
        ({"positive": "3, 4", "boxes": {"x": 500, "y": 0, "width": 9, "height": 9}}, "bboxes: box 1"),
        ({"positive": "3, 4", "threshold": 1.0}, "threshold is 1"),
        ({"positive": "3, 4", "image": torch.zeros(2, HEIGHT, WIDTH, 3)}, "image is a batch of 2"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(sam, monkeypatch, arguments, message):
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", None)
    with pytest.raises(ValueError, match=f"Segment Anything: .*{message}"):
        sam_host.segment(sam, **{"image": picture(3), **arguments})


def test_half_precision_and_alpha(sam):
    image = (picture(3) * 255).round() / 255
    with_alpha = torch.cat([image, torch.rand(1, HEIGHT, WIDTH, 1)], dim=3)
    plain = sam_host.segment(sam, image, "30, 20", multimask="all")
    for other in (with_alpha, image.half()):
        assert torch.equal(sam_host.segment(sam, other, "30, 20", multimask="all").masks, plain.masks)
