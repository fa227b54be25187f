"""scikit-learn's bundled handwritten digits: 1,797 gray scans of 8 x 8 pixels, for work with no download at all.

Reference:
    Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from __future__ import annotations

import numpy as np
import torch

from keyhole.data.splits import MemorySplit


def load_digits() -> tuple[MemorySplit, MemorySplit]:
    """Return 1,297 training and 500 test digits; the split is fixed and stratified by class.

    Example:
        >>> train, test = load_digits()
        >>> len(train), len(test), tuple(train.pixels.shape[1:])
        (1297, 500, (8, 8, 1))
    """
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    scans = bundled()
    everything = MemorySplit(
        pixels=torch.from_numpy(np.round(scans.images / 16 * 255).astype(np.uint8)[..., None]),
        labels=torch.from_numpy(scans.target.astype(np.int64)),
        indices=torch.arange(len(scans.target)),
        classes=tuple(str(digit) for digit in range(10)),
        pad_px=1,  # a scan is eight pixels wide, and a mirrored digit is another digit or none
        flip=False,
    )
    train, test = train_test_split(np.arange(1797), test_size=500, random_state=0, stratify=scans.target)
    return everything.subset(torch.from_numpy(np.sort(train))), everything.subset(torch.from_numpy(np.sort(test)))
