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

Divergences. Where subnets are ranked by their divergence from floats (`search.signal: kl`), let d be the candidate's
divergence on an image less the incumbent's, m the mean and s the standard deviation of d over the n images so far, and
K the incumbent's divergence, the mean over all N. An improvement has a mean divergence of (1 - margin) * K or less, and
the candidate is dropped if

    m + margin * K  >  t * s * sqrt((1 - n / N) / n)

where t is exceeded by Student's t with n - 1 degrees of freedom with probability error / (number of comparisons). So
the bound is that above as far as m is normal. It is less so than a count: divergences are skewed, and a candidate whose
gain is on a few images that are not among the n looks worse than it is. Hence no comparison before `LEAST_IMAGES`.
There is no number of images below which nothing races: a divergence tells more of an image than a bit, and s says how
much. A race needs two batches, though, so batches (`search.batch_size`) are to be small where images are few.

Divergence is a means: in the end the most accurate of the best few is chosen, on all images. On a hundred images it may
order subnets by accuracy as well as on thousands, so `most_images` ends races without a winner. Then the bound does not
hold, and figures of all but the first generation and the finalists are estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from scipy.stats import t as student_t

from search.config import RacingConfig, SearchConfig
from search.record import Bits, Floats, Record
from supernet.evaluate import Evaluation

#: that divergences are compared on, at least
LEAST_IMAGES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A measured subnet; if it is not `complete`, all figures are estimates from the images that were seen.

    `kl` is the mean divergence from floats in nats, where subnets are ranked by it.
    """

    evaluation: Evaluation
    kl: float | None = None
    complete: bool = True


def racing_of(config: SearchConfig, *, images: int) -> RacingConfig | None:
    """How subnets race on a validation split of so many images; None if they do not."""
    racing = config.racing
    return None if racing is None or (config.signal == "accuracy" and images < racing.images) else racing


def ends_race(record: Record, best: Record, config: RacingConfig) -> bool:
    """Whether no more is to be measured of a candidate: it is known in full, or clearly no improvement.

    Args:
        best: of the incumbent, complete.
    """
    if record.complete:
        return True
    error = config.error / (len(best.looks) - 1)
    if record.divergence is not None and best.divergence is not None:
        if config.most_images is not None and len(record.correct) >= config.most_images:
            return True
        return clearly_no_closer(record.divergence, best.divergence, margin=config.margin, error=error)
    return clearly_no_improvement(record.correct, best.correct, margin=config.margin, error=error)


def outcome_of(record: Record, best: Record | None) -> Outcome:
    """What a race against the incumbent has shown; without one, what was measured on all images."""
    if record.complete or best is None:
        return Outcome(evaluation=record.evaluation, kl=record.kl)
    (images, ours), (_, theirs) = record.looks[-1], best.looks[len(record.looks) - 1]
    estimate = Evaluation(
        accuracy=estimated_accuracy(record.correct, best.correct),
        loss=best.evaluation.loss + (ours - theirs) / images,
        images=images,
    )
    if record.divergence is None or best.divergence is None:
        return Outcome(evaluation=estimate, complete=False)
    return Outcome(evaluation=estimate, kl=estimated_kl(record.divergence, best.divergence), complete=False)


def clearly_no_improvement(ours: Bits, theirs: Bits, *, margin: float, error: float) -> bool:
    """Whether a comparison of accuracies drops a candidate; see the module's docstring.

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


def clearly_no_closer(ours: Floats, theirs: Floats, *, margin: float, error: float) -> bool:
    """Whether a comparison of divergences drops a candidate; see the module's docstring.

    Args:
        ours: (n,) divergences of the candidate on the first images, in nats.
        theirs: (N,) divergences of the incumbent on all images.
        margin: a share of the incumbent's mean divergence.
        error: of this one comparison.
    """
    seen = len(ours)
    if seen < LEAST_IMAGES:
        return False
    difference = ours.astype(float) - theirs[:seen]
    short = float(difference.mean()) + margin * float(theirs.mean(dtype=float))
    variance = float(difference.var(ddof=1)) * (1 - seen / len(theirs)) / seen
    return short > float(student_t.isf(error, seen - 1)) * math.sqrt(variance)


def estimated_accuracy(ours: Bits, theirs: Bits) -> float:
    """The accuracy on all N images from the first n, as far as those leave it open; see `clearly_no_improvement`."""
    seen, images = len(ours), len(theirs)
    right = int(ours.sum())
    estimate = float(theirs.mean()) + (right - int(theirs[:seen].sum())) / seen
    return min(max(estimate, right / images), (right + images - seen) / images)


def estimated_kl(ours: Floats, theirs: Floats) -> float:
    """The mean divergence over all N images in nats from the first n, which it cannot fall below n / N of."""
    seen, images = len(ours), len(theirs)
    so_far = float(ours.mean(dtype=float))
    estimate = float(theirs.mean(dtype=float)) + so_far - float(theirs[:seen].mean(dtype=float))
    return max(estimate, so_far * seen / images)
