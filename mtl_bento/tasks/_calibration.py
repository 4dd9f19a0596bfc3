"""Calibration on out-of-fold answers: probabilities as sure as they are right, intervals and sets that hold the truth.

All of it rests on rows that the answering networks did not learn. Where those are answers of one fold's networks and
the model answers with the mean over the folds, intervals err on the wide side, as those of cross-conformal methods do
(Barber et al., "Predictive inference with the jackknife+", 2021).

Letters: V labelled out-of-fold rows, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from mtl_bento.tasks._base import TaskSpec

RARE = 0.1
"""A share of positives below which the threshold of a binary target is chosen for F1."""
FEWEST_POSITIVES = 10
"""Positives below which no threshold is chosen: where F1 is highest would be chance."""
PARTS = 5
"""Parts of the rows on which a temperature learned on the others is tried."""
MOST_ROWS = 20_000
"""Rows that a temperature is learned from, evenly spaced: one number needs no more."""
COLDEST, HOTTEST = 0.1, 10.0
"""Bounds of a temperature."""
STEPS = 20
"""Steps of the search for it; each leaves .618 of the interval, so that log T is known to .0003."""
LEAST = 1e-7
"""The smallest probability, as `answer_losses` has it."""
SLACK = 1e-9
"""What rounding may do to a count: .9 of 20 rows are 18, not 19."""


class CalibratedSpec(TaskSpec):
    """A target whose answers come with an interval, or a set of labels, once calibrated."""

    interval: float = 0.9
    """Share of rows whose truth the interval or the prediction set shall hold."""
    calibrated_on: int | None = None
    """Labelled out-of-fold rows that calibration rests on; None before it."""

    @field_validator("interval")
    @classmethod
    def _is_a_share(cls, level: float, info: ValidationInfo) -> float:
        if not 0 < level < 1:
            raise ValueError(
                f"{level:g} is no share of the rows of target {info.data.get('name')!r}; "
                "give a number between 0 and 1, such as 0.9 for nine rows in ten"
            )
        return level


def labelled(known: Tensor, weights: np.ndarray | Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [V] of rows that have a label and count, and their weights, float64 [V]."""
    weight = np.ones(len(known)) if weights is None else np.asarray(weights, dtype=np.float64)
    places = np.flatnonzero(known.cpu().numpy() & (weight > 0))
    return places, weight[places]


def fewest(level: float) -> int:
    """Return how many rows an interval of a level needs: 1 / (1 - level), rounded up."""
    return math.ceil(1 / (1 - level) - SLACK)


def conformal_quantile(scores: np.ndarray, level: float, weights: np.ndarray) -> float | None:
    """Return the score that a share `level` of rows to come stays within, or None from too few rows.

    Split conformal prediction (Papadopoulos et al., 2002; Lei et al., 2018): of V equally weighted rows the
    ceil((V + 1) level)-th smallest score [V], which a new row exceeds with a probability of 1 - level at most. With
    weights the new row counts as one drawn by them (Tibshirani et al., 2019), and rows as (sum w)^2 / sum w^2 of them.
    """
    if not len(scores):
        return None
    total, squares = float(weights.sum()), float((weights**2).sum())
    if total**2 / squares < fewest(level) - SLACK:
        return None
    order = np.argsort(scores, kind="stable")
    needed = level * (total + squares / total)
    place = int(np.searchsorted(np.cumsum(weights[order]), needed * (1 - SLACK)))
    return float(scores[order[place]]) if place < len(scores) else None


def tempered(table: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities [..., C] as softmax(log p / T), float64: flatter above 1, sharper below."""
    logs = np.log(np.maximum(table.astype(np.float64), LEAST)) / temperature
    shares = np.exp(logs - logs.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def best_temperature(table: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the temperature of least log loss, or None where 1 is as good (Guo et al., ICML 2017).

    It is kept where it lowers the loss by more than one standard error of the paired differences, each row judged by
    a temperature that was learned without its fifth of the rows. table [V, C], codes [V], weights [V].
    """
    every = slice(None, None, max(1, math.ceil(len(codes) / MOST_ROWS)))
    logs, codes, weights = np.log(np.maximum(table[every].astype(np.float64), LEAST)), codes[every], weights[every]
    part = np.arange(len(codes)) % PARTS
    if len(codes) < 2 * PARTS:
        return None
    gains = np.empty(len(codes))
    for held in range(PARTS):
        judged, rest = part == held, part != held
        found = _coolest(logs[rest], codes[rest], weights[rest])
        gains[judged] = _nats(logs[judged], codes[judged], 1.0) - _nats(logs[judged], codes[judged], found)
    mean = float(np.average(gains, weights=weights))
    error = math.sqrt(float((weights**2 * (gains - mean) ** 2).sum())) / float(weights.sum())
    return _coolest(logs, codes, weights) if mean > error else None


def best_threshold(p: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the probability from which on a row is answered as positive so that F1 is highest, for rare positives.

    None where a tenth of the rows or more are positive, where fewer than ten are, or where one half is as good.
    p [V], positive bool [V], weights [V].
    """
    if not len(p):
        return None
    total = float(weights[positive].sum())
    if positive.sum() < FEWEST_POSITIVES or total >= RARE * float(weights.sum()):
        return None
    order = np.argsort(-p, kind="stable")
    ranked = p[order].astype(np.float64)
    hits, answered = np.cumsum((weights * positive)[order]), np.cumsum(weights[order])
    f1 = 2 * hits / (answered + total)
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # ties are one threshold
    best = int(ends[f1[ends].argmax()])
    usual = int((ranked > 0.5).sum()) - 1
    if f1[best] <= (f1[usual] if usual >= 0 else 0.0):
        return None
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)  # between two rows, so that rounding decides none of them


def _nats(logs: np.ndarray, codes: np.ndarray, temperature: float) -> np.ndarray:
    """Return the log loss [V] of softmax(logs / T)."""
    scaled = logs / temperature
    most = scaled.max(1)
    chosen = np.take_along_axis(scaled, codes[:, None], 1)[:, 0]
    return np.asarray(np.log(np.exp(scaled - most[:, None]).sum(1)) + most - chosen)


def _coolest(logs: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
    """Return the temperature of least mean log loss, by golden-section search: the loss is convex in 1 / T."""

    def loss(place: float) -> float:
        return float(weights @ _nats(logs, codes, math.exp(place)))

    low, high = math.log(COLDEST), math.log(HOTTEST)
    share = (math.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)
