"""scikit-learn's digits: 1,797 grey images of 8 x 8, which need no download.

The copy in the wheel is one list of what was UCI's test set of "Optical Recognition of Handwritten Digits", so
a fixed stratified fifth of it is the test part here (`data.test_fraction`).
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from supernet.data.config import DataConfig
from supernet.data.registry import Part
from supernet.data.samples import ArraySamples, Normalization, carve_test

# Of the pixels of the train part.
_NORMALIZATION = Normalization((0.3058,), (0.3762,))


def load(config: DataConfig, part: Part) -> ArraySamples:
    """Pixels 0..16, scaled to 0..255."""
    config.refuse_unused("root", "dataset", "download", "test_split", "grey", because="it comes with scikit-learn")
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    chosen = carve_test(labels, classes, config, part)
    return ArraySamples(images=images[chosen], labels=labels[chosen], classes=classes, normalization=_NORMALIZATION)
