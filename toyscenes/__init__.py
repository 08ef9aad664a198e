"""The embedded default: procedural scenes with known layers, and a small model trained on them."""
