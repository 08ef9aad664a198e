"""Inversion: an image's noisy latents at every noise level, and sampling from them."""
