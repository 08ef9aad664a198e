"""Segment Anything inside ComfyUI: checkpoints of models/sams, moved by the host, embeddings kept."""

import os
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from torch import Tensor

from . import sam as prompting

if TYPE_CHECKING:
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

LOADER = "Load Segment Anything"
SEGMENT = "Segment Anything"

FOLDER = "sams"  # under models, as other packs have it: a checkpoint serves them all
NO_FILES = "none: put one into models/sams"  # what the loader offers then

# Embeddings of so many pictures stay with a model: 4 MiB each.
KEPT = 8

# What torch.load, safetensors and unexpected contents raise.
_UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# The encoder's global attention holds three matrices of (heads, tokens, tokens) at its peak:
# the logits, and two sums with the relative positions. With all the rest 3.1 were measured on vit_b.
_ATTENTION_MATRICES = 3.5

_EVERYTHING = 2**62  # bytes: more than any model


def _package() -> Any:
    """segment-anything, imported when it is first needed: without it all other nodes still work."""
    try:
        import segment_anything
    except ImportError as error:
        raise ImportError(
            f"{LOADER}: the Python package segment-anything cannot be imported ({error}); "
            "run: pip install segment-anything, with the Python that runs ComfyUI, then start ComfyUI again"
        ) from error
    return segment_anything


# --- files ------------------------------------------------------------------------------------------------------------


def _folders() -> list[str]:
    """The folders of checkpoints. Ours joins those that a settings file or another pack has named."""
    known = FOLDER in folder_paths.folder_names_and_paths
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    if not known:
        folder_paths.folder_names_and_paths[FOLDER][1].update(folder_paths.supported_pt_extensions)
    return folder_paths.get_folder_paths(FOLDER)


def checkpoints() -> list[str]:
    """What the loader can choose from; where there is nothing, a line that says so."""
    _folders()
    suffixes = folder_paths.supported_pt_extensions  # where others have registered the folder, it may list any file
    names = [name for name in folder_paths.get_filename_list(FOLDER) if os.path.splitext(name)[1].lower() in suffixes]
    return names or [NO_FILES]


def check_exists(name: str) -> str | None:
    """What is to be done where there is no such checkpoint; None where there is."""
    folders = _folders()
    if name != NO_FILES and folder_paths.get_full_path(FOLDER, name) is not None:
        return None
    wanted = "there is no checkpoint" if name == NO_FILES else f"there is no checkpoint {name!r}"
    return (
        f"{wanted} in {' or '.join(folders)}; put Meta's sam_vit_b_01ec64.pth (0.4 GB), sam_vit_l_0b3195.pth "
        "(1.2 GB) or sam_vit_h_4b8939.pth (2.6 GB) there, then press R and choose it"
    )


def load(name: str) -> "LoadedSam":
    """A checkpoint of models/sams, as .pth or .safetensors, in float32.

    Raises FileNotFoundError where it is missing, ValueError for a file that cannot be read or
    is no checkpoint of Segment Anything, ImportError without the package segment-anything.
    """
    missing = check_exists(name)
    if missing is not None:
        raise FileNotFoundError(f"{LOADER}: {missing}")
    where = f"{LOADER}: {name}"
    package = _package()
    try:
        # the host reads .pth with weights_only: nothing in the file is run
        state: Any = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise(FOLDER, name), safe_load=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{where} cannot be read ({_first_line(error)}); it is incomplete, or no checkpoint: copy it again"
        ) from error
    build = package.sam_model_registry[prompting.encoder_of(state, where)]
    with torch.device("meta"):  # the weights come from the file, so no others are made first
        sam = build()
    try:
        sam.load_state_dict({key: weight.float() for key, weight in state.items()}, assign=True)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{where} is not a Segment Anything checkpoint of Meta's first release, but one like it "
            f"(SAM-HQ, say); use sam_vit_b, sam_vit_l or sam_vit_h: {_first_line(error, 2)}"
        ) from error
    return LoadedSam(sam.eval().requires_grad_(False), name)


def _first_line(error: Exception, lines: int = 1) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines()[:lines])
    return text if len(text) <= 200 else text[:199] + "…"


# --- the model --------------------------------------------------------------------------------------------------------


class SegmentAnythingModel(torch.nn.Module):
    """What the host moves: it writes `device` on a model, which Sam itself does not allow."""

    def __init__(self, sam: "Sam") -> None:
        super().__init__()
        self.sam = sam


class WholePatcher(ModelPatcher):
    """A model of torch's own layers, which cannot be cast or moved piece by piece: whole, or not at all."""

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
        """Load everything, however little memory the host has planned with."""
        return super().partially_load(device_to, _EVERYTHING, force_patch_weights=force_patch_weights)

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        """Free nothing: the host then unloads the whole model."""
        return 0


class Embedding(NamedTuple):
    """What the encoder makes of a picture; all that prompts need of it."""

    features: Tensor  # (1, C, h, w) in system memory
    input_size: tuple[int, ...]  # (H, W) with the longer side at the encoder's size
    original_size: tuple[int, ...]  # (H, W) of the picture


class LoadedSam:
    """A Segment Anything model and the embeddings of the last pictures, which live and die with it."""

    def __init__(self, sam: "Sam", name: str) -> None:
        self.name = name
        self.sam = sam
        device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        self.patcher = WholePatcher(SegmentAnythingModel(sam), load_device=device, offload_device=offload)
        self._embeddings: OrderedDict[bytes, Embedding] = OrderedDict()

    def predictor(self, pixels: prompting.Pixels) -> "SamPredictor":
        """segment-anything's predictor for a picture (H, W, 3), its model loaded.

        The encoder runs only for a picture that is not among the last KEPT ones.
        """
        key = prompting.digest(pixels)
        known = self._embeddings.get(key)
        comfy.model_management.load_models_gpu([self.patcher], 0 if known else self._encoder_memory())
        predictor = _package().SamPredictor(self.sam)
        if known is None:
            predictor.set_image(pixels)
            known = Embedding(predictor.features.cpu(), predictor.input_size, predictor.original_size)
            self._embeddings[key] = known
            if len(self._embeddings) > KEPT:
                self._embeddings.popitem(last=False)
        else:
            self._embeddings.move_to_end(key)
            predictor.features = known.features.to(self.patcher.load_device)
            predictor.input_size, predictor.original_size = known.input_size, known.original_size
            predictor.is_image_set = True
        return predictor

    def _encoder_memory(self) -> int:
        """Bytes that the encoder needs beside its weights."""
        encoder: Any = self.sam.image_encoder
        tokens = (encoder.img_size // encoder.patch_embed.proj.kernel_size[0]) ** 2
        heads = max(block.attn.num_heads for block in encoder.blocks)
        return round(_ATTENTION_MATRICES * heads * tokens**2 * 4)


# --- the node ---------------------------------------------------------------------------------------------------------


class Segmented(NamedTuple):
    """What was found."""

    masks: Tensor  # (n, H, W), 0 or 1
    scores: str  # one line per mask
    preview: Tensor  # IMAGE (1, H, W, 3)


def segment(
    sam: LoadedSam,
    image: Tensor,
    positive: str,
    negative: str = "",
    boxes: Any = None,
    multimask: str = "best",
    threshold: float = 0.5,
) -> Segmented:
    """Masks of what points and boxes show (Kirillov et al. 2023).

    image      (1, H, W, 3)
    positive   points on the object, "x, y; x, y" in pixels
    negative   points beside it
    boxes      the host's BOUNDING_BOX; each box is an object of its own, with the points in it
    multimask  best, all: three masks per object, the one with the highest score or all by score;
               off: the decoder is asked for one
    threshold  probability from which on a pixel belongs to the object

    Raises ValueError, before the model is loaded, for prompts that say nothing or do not fit the image.
    """
    pixels = prompting.read_picture(image, SEGMENT)
    height, width = pixels.shape[:2]
    cut = prompting.logit(threshold, f"{SEGMENT}: threshold")
    prompts = prompting.make_prompts(
        prompting.read_points(positive, width, height, f"{SEGMENT}: positive"),
        prompting.read_points(negative, width, height, f"{SEGMENT}: negative"),
        prompting.read_boxes(boxes, width, height, f"{SEGMENT}: bboxes"),
        SEGMENT,
    )
    predictor = sam.predictor(pixels)
    masks, scores, sources = [], [], []
    for source, prompt in enumerate(prompts):
        comfy.model_management.throw_exception_if_processing_interrupted()
        points, labels, box = prompt.arrays()
        logits, rated, _ = predictor.predict(
            points, labels, box, multimask_output=multimask != "off", return_logits=True
        )
        for index in prompting.choose(torch.as_tensor(rated), multimask):
            masks.append(torch.as_tensor(logits[index] > cut))
            scores.append(float(rated[index]))
            sources.append(source)
    found = torch.stack(masks).float()
    return Segmented(
        found.to(comfy.model_management.intermediate_device()),
        prompting.score_lines(scores, sources, len(prompts)),
        prompting.draw(pixels, found, prompts),
    )
