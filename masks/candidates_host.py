"""How well candidates show a text, by the CLIP models that the user has in the host."""

from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from comfy.clip_model import CLIPTextModel
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP
from torch import Tensor

from .candidates import DIRECTION, TEXT, WHO, Candidates, agreement, direction

# CLIP models by the width of the space that their pictures and texts share.
_KNOWN = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}
_CHUNK = 8  # pictures that go through the vision model together


def text_scores(
    candidates: Candidates, clip: CLIP | None, clip_vision: ClipVisionModel | None, text: str, source_text: str = ""
) -> dict[str, Tensor]:
    """Scores (B,) by kind: "text" is the agreement with a text, "direction" that of the change.

    clip         text encoder(s); the one that is as wide as `clip_vision` is used, with its projection
    clip_vision  the same CLIP's vision model; sees the whole picture, squeezed to its square
    text         what the result should show; without one nothing is scored and {} returned
    source_text  what the source shows; needed for the direction

    Raises ValueError, before a model is loaded: one of text, clip and clip_vision without the
    others, a source text without a text or the same as it, models that do not belong together.
    """
    text, source_text = text.strip(), source_text.strip()
    if not _asked_for(clip, clip_vision, text, source_text):
        return {}
    assert clip is not None and clip_vision is not None
    encoder = matching_encoder(clip, clip_vision)
    wanted = text_embedding(clip, encoder, text)
    pictures = picture_embeddings(clip_vision, candidates.pictures)
    scores = {TEXT: agreement(pictures, wanted)}
    if source_text:
        source = picture_embeddings(clip_vision, candidates.source)[0]
        scores[DIRECTION] = direction(pictures, source, wanted, text_embedding(clip, encoder, source_text))
    return scores


def _asked_for(clip: CLIP | None, clip_vision: ClipVisionModel | None, text: str, source_text: str) -> bool:
    """Whether there is a text to score by, and all that it takes."""
    models = {"clip": clip, "clip_vision": clip_vision}
    missing = [name for name, model in models.items() if model is None]
    given = [name for name in models if name not in missing]
    if text and missing:
        raise ValueError(
            f"{WHO}: text is given, {' and '.join(missing)} missing; connect clip (Load Checkpoint, Load CLIP) and "
            "clip_vision (Load CLIP Vision), or empty the text"
        )
    if source_text and not text:
        raise ValueError(f"{WHO}: source_text is given, text is empty; write what the result should show")
    if given and not text:
        raise ValueError(
            f"{WHO}: text is empty, {' and '.join(given)} given; write what the result should show, "
            f"or disconnect {' and '.join(given)}"
        )
    if text and text == source_text:
        raise ValueError(f"{WHO}: source_text says the same as text; write what the source shows, or leave it empty")
    return bool(text)


def text_encoders(clip: CLIP) -> dict[str, int]:
    """CLIP text encoders in a host's CLIP (SDXL has two) by name, with the widths of their projections."""
    return {
        name: encoder.transformer.text_projection.out_features
        for name, encoder in clip.cond_stage_model.named_children()
        if isinstance(encoder, comfy.sd1_clip.SDClipModel) and isinstance(encoder.transformer, CLIPTextModel)
    }


def matching_encoder(clip: CLIP, clip_vision: ClipVisionModel) -> str:
    """Name of the text encoder whose texts lie in the same space as the vision model's pictures.

    Raises ValueError where there is none, with the models that would fit.
    """
    projection = getattr(clip_vision.model, "visual_projection", None)
    if not isinstance(projection, torch.nn.Linear):
        raise ValueError(
            f"{WHO}: clip_vision is a {clip_vision.model_type}, whose pictures cannot be compared with CLIP's texts; "
            f"load the vision model of a CLIP: {', '.join(_KNOWN.values())}"
        )
    encoders = text_encoders(clip)
    if not encoders:
        raise ValueError(
            f"{WHO}: clip has no CLIP text encoder (it is a {type(clip.cond_stage_model).__name__}); "
            "connect that of an SD 1.x, SD 2.x or SDXL checkpoint, or a CLIP from Load CLIP"
        )
    width = projection.out_features
    for name, own in encoders.items():
        if own == width:
            _check_projection(clip, name)
            return name
    fitting = " or ".join(f"{_KNOWN.get(own, f'one {own} wide')} for {name}" for name, own in encoders.items())
    raise ValueError(
        f"{WHO}: clip_vision is {width} wide ({_KNOWN.get(width, 'unknown')}), clip is "
        f"{' and '.join(f'{own} ({name})' for name, own in encoders.items())}; "
        f"load the vision model that belongs to clip: {fitting}"
    )


def _check_projection(clip: CLIP, name: str) -> None:
    """Raise ValueError where an encoder's projection was not in its file: the host then leaves it to chance.

    SD 1.x and SDXL never use that of ViT-L, and their checkpoints do not have it.
    """
    model, loaded_by = clip.cond_stage_model, clip.patcher.cached_patcher_init
    never_there = isinstance(model, (comfy.sd1_clip.SD1ClipModel, comfy.sdxl_clip.SDXLClipModel)) and name == "clip_l"
    from_checkpoint = loaded_by is not None and loaded_by[0] is comfy.sd.load_checkpoint_clip_patcher
    projection = getattr(model, name).transformer.text_projection
    if (never_there and from_checkpoint) or not _looks_trained(projection.weight):
        known = _KNOWN.get(projection.out_features, "CLIP")
        raise ValueError(
            f"{WHO}: clip's encoder {name} has come without its text projection, as checkpoints leave it out; put the "
            f"complete {known} (text and vision in one file) into models/text_encoders and connect it with Load CLIP"
        )


def _looks_trained(weight: Tensor) -> bool:
    """Whether weights can be those of a CLIP, with 0.01 to 0.1 on average.

    Memory that nobody wrote to is often 0, not a number, or beyond all bounds; not always.
    """
    if not weight.is_floating_point():  # quantised: cannot be judged by its bytes
        return True
    return 1e-4 < float(weight.detach().float().square().mean().sqrt()) < 1.0


def text_embedding(clip: CLIP, encoder: str, text: str) -> Tensor:
    """Pooled and projected embedding of a text -> (D,) on the CPU, float32, of length 1.

    A text of more than CLIP's 75 tokens is encoded in parts, whose directions are averaged.
    Weights as in (word:1.2) have no effect on it.
    """
    tokens = clip.tokenize(text)
    clip.load_model(tokens)
    device, model = clip.patcher.load_device, clip.cond_stage_model
    part: Any = getattr(model, encoder)
    model.reset_clip_options()
    # the host asks that of SD 1.x for its pooled output without the projection
    part.set_clip_options({"execution_device": device, "projected_pooled": True})
    try:
        with comfy.model_management.cuda_device_context(device):
            pooled = [part.encode_token_weights([one])[1][0] for one in tokens[encoder.removeprefix("clip_")]]
    finally:
        model.reset_clip_options()
    directions = torch.nn.functional.normalize(torch.stack(pooled).detach().to("cpu", torch.float32), dim=1)
    return torch.nn.functional.normalize(directions.mean(0), dim=0)


def picture_embeddings(clip_vision: ClipVisionModel, pictures: Tensor) -> Tensor:
    """Projected CLIP embeddings of pictures (B, H, W, 3) -> (B, D) on the CPU, float32.

    Not cropped: an edit at the border of a wide picture counts too.
    """
    parts = []
    for chunk in pictures.split(_CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        parts.append(clip_vision.encode_image(chunk, crop=False)["image_embeds"].detach().to("cpu", torch.float32))
    return torch.cat(parts)
