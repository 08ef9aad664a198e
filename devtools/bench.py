"""`dev.py bench`: the figures of the documentation, measured again.

    python dev.py bench removal --seeds 10000-10063 --json

A benchmark is a module with `run(seeds: range) -> dict` and `table(figures: dict) -> str`.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

import pack

# What is measured on the toy scenes lives with them; what needs no scenes lives here.
MODULES = {
    "model": "latent_layers.toyscenes.bench_model",
    "inversion": "latent_layers.toyscenes.bench_inversion",
    "removal": "latent_layers.toyscenes.bench_removal",
    "layers": "latent_layers.toyscenes.bench_layers",
    "fills": "latent_layers.toyscenes.bench_fills",
    "sweep": "latent_layers.toyscenes.bench_sweep",
    "pictures": "latent_layers.toyscenes.bench_pictures",
    "masks": "latent_layers.toyscenes.bench_masks",
    "softedit": "latent_layers.toyscenes.bench_softedit",
    "attention": "bench_attention",
}


def seed_range(text: str) -> range:
    """Seeds of `A-B` (both included) or `A`. Raises argparse.ArgumentTypeError."""
    first, _, last = text.partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of seeds such as 10000-10063") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is empty: the first seed is larger than the last")
    return seeds


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; ends the program with a message when it is wrong."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description="Measure the documentation's figures again.")
    parser.add_argument("what", choices=MODULES)
    parser.add_argument("--seeds", type=seed_range, metavar="A-B", help="default 10000-10063; sweep, fills 0-31")
    parser.add_argument("--task", help="layers only: move, resize, rotate, flip, duplicate, swap, multi, occlusion, "
                        "cross, pan, zoom, zoom_far; default all")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and print its figures."""
    options = parse(arguments)
    pack.load_host()
    pack.load_pack()
    name = MODULES[options.what]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "?"):
            raise  # the benchmark is there, something that it imports is not
        print(f"The benchmark {options.what} is not there yet (module {name}).", file=sys.stderr)
        return 1
    # settings are chosen on scenes that never judge them
    seeds = options.seeds or (range(32) if options.what in ("sweep", "fills") else range(10000, 10064))
    if options.task is not None and options.what != "layers":
        print("--task is for `bench layers` only", file=sys.stderr)
        return 2
    figures = module.run(seeds, options.task) if options.what == "layers" else module.run(seeds)
    if options.what == "masks":  # what reading the attention costs is measured on a UNet of full size
        figures |= importlib.import_module(MODULES["attention"]).run(only=("capture_ratio",))
    if options.what == "softedit":
        figures |= importlib.import_module("bench_soft_memory").run()
    print(json.dumps(figures) if options.json else module.table(figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
