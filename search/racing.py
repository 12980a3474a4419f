"""Racing: a subnet that is clearly no improvement is not measured on the whole validation split.

A candidate runs against the incumbent of the tightest target that it meets: the best subnet measured in full before its
generation; those of wider targets are at least as good. After 1, 2, 4, … batches of the N images, in an order that was
drawn once and for all, the two are compared on the n images so far. Let w be those that only the candidate gets right
and l those that only the incumbent does. The candidate is dropped if

    n * margin - (w - l) - 1  >=  z * sqrt(max(w + l, n * margin, 1) * (1 - n / N))

where z is exceeded by a standard normal variable with probability error / (number of such comparisons).

Error probability. Call a candidate an improvement if on all N images its accuracy exceeds the incumbent's by `margin`
or more. Then w - l has the mean n * margin or more; w + l estimates n times the variance for an image, which is no less
than n * margin, since a difference is -1, 0 or 1; and n of N images drawn without replacement leave 1 - n/N of the
variance. The 1 corrects for w - l being a whole number. So in one comparison an improvement is dropped with
probability at most error / comparisons, as far as a sum of hundreds of images is normal, and in all of them at most
`error` (union bound). That the incumbent was chosen by its accuracy on all N images takes nothing away: it is known.
The probability is over the order of the images, for a candidate that does not depend on it. In a search it does, a
little: parents are chosen by estimates from the first images. What these favour in a parent they favour in its
children, which should be dropped more rarely for it; that is no proof.

What follows for a search: the subnet chosen for a target is less than `margin` below the best candidate for it, except
with probability `error`.

A dropped candidate counts with the accuracy of the incumbent plus the difference on the n images. That is unbiased for
any n fixed in advance, and varies with the images on which the two differ, not with those that both get wrong. Being
dropped makes it too low rather than too high. Losses are estimated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from supernet.evaluate import Evaluation
from supernet.subnet import Subnet

Bits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A measured subnet; if it is not `complete`, accuracy and loss are estimates from the images that were seen."""

    evaluation: Evaluation
    complete: bool = True


#: measures a subnet against an incumbent
Race = Callable[[Subnet, Subnet], Outcome]


def clearly_no_improvement(ours: Bits, theirs: Bits, *, margin: float, error: float) -> bool:
    """Whether a comparison drops a candidate; see the module's docstring.

    Args:
        ours: (n,) which of the first images the candidate gets right.
        theirs: (N,) which of all images the incumbent gets right.
        error: of this one comparison.
    """
    seen = len(ours)
    won, lost = int((ours & ~theirs[:seen]).sum()), int((~ours & theirs[:seen]).sum())
    short = seen * margin - (won - lost) - 1
    variance = max(won + lost, seen * margin, 1) * (1 - seen / len(theirs))
    return short >= -NormalDist().inv_cdf(error) * math.sqrt(variance)


def estimated_accuracy(ours: Bits, theirs: Bits) -> float:
    """The accuracy on all N images from the first n, as far as those leave it open; see `clearly_no_improvement`."""
    seen, images = len(ours), len(theirs)
    right = int(ours.sum())
    estimate = float(theirs.mean()) + (right - int(theirs[:seen].sum())) / seen
    return min(max(estimate, right / images), (right + images - seen) / images)
