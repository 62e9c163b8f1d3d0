"""Macro-F1 and Matthews correlation with intervals: what a loss alone may hide.

They are no means over examples, as accuracy is, but functions of the confusion matrix. Their first-order
expansion turns them into means: an example counts the score plus the derivative at its own cell. So the
same crossed interval serves all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Confusion = Float[np.ndarray, "classes classes"]  # shares of examples; rows are labels, columns predictions


def pseudo_values(
    metric: Callable[[Confusion], tuple[float, Confusion]],
    predicted: Int[np.ndarray, "seeds examples"],
    labels: Int[np.ndarray, " examples"],
    classes: int,
) -> Float[np.ndarray, "seeds examples"]:
    """An example's part in a metric of the confusion matrix: each seed's mean is that seed's metric.

    Source: the influence function, Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 22.
    """
    rows = []
    for seed_predicted in predicted:
        cells = labels * classes + seed_predicted
        confusion = np.bincount(cells, minlength=classes**2).reshape(classes, classes) / len(labels)
        value, gradient = metric(confusion)
        # Both metrics are the same for counts as for shares, so the gradient's own mean is 0 (Euler).
        rows.append(value + gradient.reshape(-1)[cells])
    return np.stack(rows)


def macro_f1(confusion: Confusion) -> tuple[float, Confusion]:
    """The mean over classes of 2·TP/(labels + predictions), and its gradient.

    A class without labels and predictions does not count, as in scikit-learn without a list of labels.
    """
    hits = np.diag(confusion)
    sizes = confusion.sum(axis=1) + confusion.sum(axis=0)
    present = sizes > 0
    safe = np.where(present, sizes, 1)
    f1 = 2 * hits / safe
    of_size = -f1 / safe  # a label or a prediction more makes the class larger
    gradient = np.diag(2 / safe) + of_size[:, None] + of_size[None, :]
    return float(f1[present].mean()), gradient / present.sum()


def matthews(confusion: Confusion) -> tuple[float, Confusion]:
    """The correlation of labels and predictions, for any number of classes, and its gradient.

    0 where either knows only one class, as in scikit-learn.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    """
    labels, predictions, total = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    of_labels, of_predictions = total**2 - labels @ labels, total**2 - predictions @ predictions
    if of_labels * of_predictions <= 1e-12:
        return 0.0, np.zeros_like(confusion)
    covariance = np.trace(confusion) * total - labels @ predictions
    scale = np.sqrt(of_labels * of_predictions)
    # d covariance, and d log scale = (d of_labels / of_labels + d of_predictions / of_predictions) / 2
    d_covariance = np.eye(len(confusion)) * total + np.trace(confusion) - predictions[:, None] - labels[None, :]
    d_log_scale = (total - labels)[:, None] / of_labels + (total - predictions)[None, :] / of_predictions
    value = float(covariance / scale)
    return value, d_covariance / scale - value * d_log_scale
