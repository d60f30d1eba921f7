"""Trains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`; the same as `vaejax train`."""

import sys

from vaejax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
