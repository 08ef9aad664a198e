"""Masks: from the image to the latent grid and to every attention grid."""
