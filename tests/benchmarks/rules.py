"""Rules by which a blend may choose, tried by `blends.py`: each takes answers, kinds and the loss as `blend.pick`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from mtl_bento_search.blend import Loss, pick

Rule = Callable[[Sequence[np.ndarray], Sequence[str], Loss], np.ndarray]


def mixed(shares: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the answers of a mixture."""
    return np.asarray(sum(share * a for share, a in zip(shares, answers, strict=True) if share))


def greedy(
    answers: Sequence[np.ndarray],
    loss: Loss,
    arms: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    most: int = 8,
    gain: float = 0.0,
    errors: float = 0.0,
    start: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return the mixtures after each pick, greedily among arms [arms, candidates] on some rows.

    A pick must save a share `gain` of the loss and `errors` standard errors of what it saves.
    """
    held = [mixed(arm, answers) for arm in arms]
    path = [] if start is None else [start]
    total = None if start is None else mixed(start, answers)
    last: np.ndarray | None = None if total is None else _known(loss(total), rows)
    while len(path) < most:
        n = len(path)
        tried = [a if total is None else (total * n + a) / (n + 1) for a in held]
        losses = [_known(loss(a), rows) for a in tried]
        least = int(np.argmin([one.mean() for one in losses]))
        if last is not None:
            saved = last - losses[least]
            bar = max(gain * last.mean(), errors * saved.std() / np.sqrt(len(saved)))
            if not saved.mean() > bar:
                break
        path.append((path[-1] * n + arms[least]) / (n + 1) if path else arms[least])
        total, last = tried[least], losses[least]
    return path


def _known(losses: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    chosen = losses if rows is None else losses[rows]
    return chosen[~np.isnan(chosen)]


def best(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss) -> np.ndarray:
    """The one with the lowest loss."""
    return greedy(answers, loss, np.eye(len(answers)), most=1)[-1]


def plain(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, **options: float) -> np.ndarray:
    """Greedy over all."""
    return greedy(answers, loss, np.eye(len(answers)), **options)[-1]  # type: ignore[arg-type]


def by_kind(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, top: int) -> np.ndarray:
    """Return an arm a kind: the mean of its best few [kinds, candidates]."""
    means = np.array([np.nanmean(loss(a)) for a in answers])
    arms = []
    for kind in dict.fromkeys(kinds):
        own = sorted((i for i, k in enumerate(kinds) if k == kind), key=lambda i: means[i])[:top]
        arms.append(np.bincount(own, minlength=len(answers)) / len(own))
    return np.array(arms)


def grouped(
    answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, *, top: int = 1, refine: bool = False, **o: float
) -> np.ndarray:
    """Greedy over the best of each kind, or the mean of its best few; then over all."""
    path = greedy(answers, loss, by_kind(answers, kinds, loss, top), **o)  # type: ignore[arg-type]
    if not refine:
        return path[-1]
    n, every = len(path), np.eye(len(answers))
    total = path[-1]
    for more in range(n, 8):
        tried = greedy(answers, loss, ((total * more + every) / (more + 1)), most=1)[-1]
        step = greedy(answers, loss, np.array([2 * tried - total]), most=2, start=total, **_bar(o))  # type: ignore[arg-type]
        if len(step) == 1:
            break
        total = tried
    return total


def _bar(options: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in options.items() if k in ("gain", "errors")}


def shrunk(
    answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, *, to: str, share: float, **o: float
) -> np.ndarray:
    """Greedy, drawn towards the mean of all candidates, or of the best of each kind."""
    n = len(answers)
    centre = np.full(n, 1 / n) if to == "all" else by_kind(answers, kinds, loss, 1).mean(0)
    return (1 - share) * plain(answers, kinds, loss, **o) + share * centre


def kinds_mean(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss) -> np.ndarray:
    """The mean of the best of each kind."""
    return by_kind(answers, kinds, loss, 1).mean(0)


def bagged(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, *, by: str, **o: float) -> np.ndarray:
    """The mean of greedy choices: on rows drawn with replacement, or among half of the candidates."""
    rng, n, v = np.random.default_rng(0), len(answers), len(answers[0])
    found = []
    for _ in range(20):
        if by == "rows":
            found.append(greedy(answers, loss, np.eye(n), rows=rng.integers(0, v, v), **o)[-1])  # type: ignore[arg-type]
        else:
            some = rng.permutation(n)[: (n + 1) // 2]
            found.append(greedy(answers, loss, np.eye(n)[some], **o)[-1])  # type: ignore[arg-type]
    return np.mean(found, axis=0)


def nested(answers: Sequence[np.ndarray], kinds: Sequence[str], loss: Loss, *, mean: bool = False) -> np.ndarray:
    """Greedy with as many picks as were best on rows that did not choose them; or the mean of the five choices."""
    v, every = len(answers[0]), np.eye(len(answers))
    fold = np.random.default_rng(0).permutation(v) % 5
    scores = np.zeros((5, 8))
    ends = []
    for k in range(5):
        path = greedy(answers, loss, every, rows=fold != k)
        path += [path[-1]] * (8 - len(path))
        scores[k] = [_known(loss(mixed(p, answers)), fold == k).mean() for p in path]
        ends.append(path)
    n = int(np.nanmean(scores, axis=0).argmin()) + 1
    if mean:
        return np.mean([path[n - 1] for path in ends], axis=0)
    return greedy(answers, loss, every, most=n)[-1]


RULES: dict[str, Rule] = {
    "best one": best,
    "greedy": plain,
    "greedy, 4 picks": partial(plain, most=4),
    "greedy, gain .2 %": partial(plain, gain=0.002),
    "greedy, gain .5 %": partial(plain, gain=0.005),
    "greedy, gain 1 %": partial(plain, gain=0.01),
    "greedy, half an error": partial(plain, gain=0.002, errors=0.5),
    "greedy, one error": partial(plain, gain=0.002, errors=1.0),
    "kinds, gain .2 %": partial(grouped, gain=0.002),
    "kinds by 3, gain .2 %": partial(grouped, gain=0.002, top=3),
    "kinds by 5, gain .2 %": partial(grouped, gain=0.002, top=5),
    "kinds by 3, gain .5 %": partial(grouped, gain=0.005, top=3),
    "kinds by 3, half an error": partial(grouped, gain=0.002, top=3, errors=0.5),
    "kinds, then all, gain .2 %": partial(grouped, gain=0.002, refine=True),
    "kinds by 3, then all, gain .2 %": partial(grouped, gain=0.002, top=3, refine=True),
    "mean of kinds": kinds_mean,
    "greedy .2 %, 1/4 mean of all": partial(shrunk, to="all", share=0.25, gain=0.002),
    "greedy .2 %, 1/4 mean of kinds": partial(shrunk, to="kinds", share=0.25, gain=0.002),
    "greedy .2 %, 1/2 mean of kinds": partial(shrunk, to="kinds", share=0.5, gain=0.002),
    "bagged by rows": partial(bagged, by="rows", gain=0.002),
    "bagged by candidates": partial(bagged, by="candidates", gain=0.002),
    "nested": nested,
    "nested, mean of five": partial(nested, mean=True),
    "blend.pick": pick,
}
