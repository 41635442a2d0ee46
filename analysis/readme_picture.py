"""The picture of the README: the recommended mixture beside its rivals, and what was predicted and observed.

::

    python analysis/readme_picture.py --study demo-study --figure docs/demo.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from decaylaws import plots
from decaylaws.study import Study
from decaylaws.study.predictions import candidate_stages
from decaylaws.study.recommend import read_recommended
from decaylaws.study.verdict import read_outcome

DPI = 160


def pixels(drawn: Figure) -> np.ndarray:
    """The figure as an image, [height, width, 4]."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)


def stacked(images: list[np.ndarray]) -> np.ndarray:
    """Images one above the other on white, [height, width, 4]."""
    width = max(image.shape[1] for image in images)
    padded = [
        np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=1.0) for image in images
    ]
    return np.concatenate(padded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="a confirmed study")
    parser.add_argument("--figure", type=Path, required=True, help="the PNG to write")
    arguments = parser.parse_args()
    study = Study.open(arguments.study)
    recommended = read_recommended(study)
    stages = candidate_stages(recommended, recommended.sweep.runs)
    shares = {name.replace("_", " "): decay.weights for name, (_, decay) in stages.items()}
    figures = [
        plots.plot_mixtures(plots.mixture_data(shares)),
        plots.plot_confirmation(read_outcome(study).candidates),
    ]
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(arguments.figure, stacked([pixels(drawn) for drawn in figures]))


if __name__ == "__main__":
    main()
