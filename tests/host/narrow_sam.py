"""A narrow Segment Anything of the package's own classes, random weights, and what the package's predictor says."""

import copy

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

SIDE = 64  # the narrow encoder's picture; 1024 in the real ones
HEIGHT, WIDTH = 77, 131


def narrow(width=16, seed=0):
    """A Sam with all its parts and random weights; `width` is the encoder's."""
    sam = Sam(
        ImageEncoderViT(
            SIDE, 16, embed_dim=width, depth=1 if width > 16 else 2, num_heads=4, mlp_ratio=0.25, out_chans=32,
            use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
        ),
        PromptEncoder(32, (SIDE // 16, SIDE // 16), (SIDE, SIDE), 8),
        MaskDecoder(
            transformer_dim=32, transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=32),
            iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    if not sam.mask_decoder.iou_token.weight.is_meta:
        with torch.no_grad():
            for parameter in sam.parameters():
                scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return sam.eval()


def picture(seed=0, height=HEIGHT, width=WIDTH):
    """Soft blobs, so that the model has something to look at."""
    coarse = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, 3)


def expected(sam, image, points, labels, box=None, multimask=True):
    """What segment-anything's own predictor says, on a copy of the model."""
    predictor = segment_anything.SamPredictor(copy.deepcopy(sam.sam))
    predictor.set_image((image[0] * 255).round().to(torch.uint8).numpy())
    given = (None, None) if points is None else (np.array(points, float), np.array(labels))
    masks, scores, _ = predictor.predict(*given, None if box is None else np.array(box, float), None, multimask)
    return torch.from_numpy(masks).float(), scores
