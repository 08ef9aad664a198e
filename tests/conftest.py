"""Shared by all tiers: the pack is imported as `latent_layers`, never from sys.path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "devtools"))

import pack

pack.load_pack()
