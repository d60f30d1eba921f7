"""Trains a model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`; the same as `vaejax train`."""

import sys

from vaejax.cli import program

if __name__ == "__main__":
    sys.exit(program("train"))
