"""Runs of Instant Attention Mask on the toy model, and what they are watched with."""

import comfy.samplers
from comfy.patcher_extension import WrappersMP

from latent_layers.masks.instant_host import instant_mask

STEPS = 6  # of which strength 0.5 runs 3
HEIGHT, WIDTH = 128, 192
GRID = (HEIGHT // 8, WIDTH // 8)


def condition(toy, text=""):
    return toy[1].encode_from_tokens_scheduled(toy[1].tokenize(text))


def schedule(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def edit(toy, latent, text="a red star on a plain background", model=None, negative=None, **options):
    given = {"seed": 5, "seeds": 2, "steps": STEPS, **options}
    negative = condition(toy) if negative is None else negative
    return instant_mask(toy[0] if model is None else model, toy[1], text, latent, negative, **given)


def watched(model):
    """A clone, and (sigma, x) of its evaluations: the sampler's own x, after what the mask did to it."""
    model, seen = model.clone(), []

    def look(executor, x, t, *args, **kwargs):
        denoised = executor(x, t, *args, **kwargs)
        seen.append((float(t[0]), x.clone()))
        return denoised

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "watched", look)
    return model, seen
