"""Train the toy checkpoint: `python dev.py train [--steps N]`. Goes on from what an earlier run left."""

import argparse
from pathlib import Path

import pack


def main() -> None:
    """Read the command line and train."""
    pack.load_pack()
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__)
    parser.add_argument("--steps", type=int, help="optimiser steps of the diffusion model (default: as shipped)")
    parser.add_argument("--folder", type=Path, default=pack.ROOT / ".dev" / "train", help="where checkpoints go")
    parser.add_argument("--output", type=Path, help="weights file to write (default: the pack's own)")
    arguments = parser.parse_args()
    pack.load_host()
    from latent_layers.toyscenes import model, training

    settings = training.Settings(**({"steps": arguments.steps} if arguments.steps else {}))
    training.train(settings, arguments.folder, arguments.output or model.WEIGHTS)


if __name__ == "__main__":
    main()
