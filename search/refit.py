"""The refit: what is served is trained again on all rows, those of the test included, once it has been tested.

Each network has its own configuration and seed and ends at the step of its best look; forests have the rounds that
their tuning found. Shares and calibration stay: nothing is chosen by what these networks answer, nor could it be.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from mtl_bento.forest import Forest
from mtl_bento.training import Learned, stable_seed
from mtl_bento_search import trees
from mtl_bento_search.checkpoints import load_members, save_members
from mtl_bento_search.finals import Finals, tree_seed
from mtl_bento_search.problem import Problem
from mtl_bento_search.select import Choice
from mtl_bento_search.study import Driver
from mtl_bento_search.trees import Trees

FILES = "refit-"
"""What the files begin with that hold what was trained again, and of how many trials it was chosen."""


def refit(driver: Driver, finals: Finals, choice: Choice) -> Choice | None:
    """Return a choice with its members trained again on all rows, or read back; None where somebody interrupted."""
    networks = _networks(driver, choice)
    if networks is None:
        return None
    forests = _forests(driver, finals, choice)
    driver.sitting.folder.keep_only(_name(driver), FILES)
    candidates = [
        replace(c, members=tuple(networks[_key(m)] for m in c.networks) or forests[c.name]) for c in choice.candidates
    ]
    return replace(choice, candidates=tuple(candidates))


def all_rows(problem: Problem) -> np.ndarray:
    """Return the rows of all parts, ascending."""
    protocol = problem.protocol
    return np.unique(np.concatenate([*(rows for pair in protocol.splits for rows in pair), protocol.test]))


def _name(driver: Driver) -> str:
    return f"{FILES}{driver.n_told():05d}"


def _networks(driver: Driver, choice: Choice) -> dict[str, Learned] | None:
    """Return the networks of a choice trained again, by the keys of those that they stand for.

    What is missing is trained at once and written at once, as the finals are.
    """
    sitting = driver.sitting
    path = sitting.folder.checkpoint(_name(driver))
    held: dict[str, Learned] = {}
    if path.is_file():
        members, info = load_members(path)
        held = dict(zip(info["keys"], members, strict=True))
    waiting = {_key(m): m for c in choice.candidates for m in c.networks if _key(m) not in held}
    if waiting:
        again = [replace(m.member, until=m.step) for m in waiting.values()]
        trained = sitting.trained_on(all_rows(sitting.problem), again, seed=stable_seed(sitting.seed, "refit"))
        if trained is None:
            return None
        # One that came to no finite parameters this time stays as it was tested.
        held |= {key: new if new.finite else old for (key, old), new in zip(waiting.items(), trained, strict=True)}
        save_members(path, list(held.values()), {"keys": list(held)})
    return held


def _forests(driver: Driver, finals: Finals, choice: Choice) -> dict[str, tuple[Forest, ...]]:
    """Return the forests of a choice trained again, by the names of their candidates."""
    sitting, problem = driver.sitting, driver.sitting.problem
    wanted = {
        c.name: next((t, g) for t, g in enumerate(finals.trees) if g is not None and c.can(g.task))
        for c in choice.candidates
        if not c.networks
    }
    rows, features, n_workers = all_rows(problem), problem.features, max(1, sitting.packing.n_workers)
    # As many tasks at the same time as are tuned: threads of LightGBM that wait for each other on a busy machine take
    # a hundred times as long as one. Those that are trained already count, or a resumed run would have other threads.
    side_by_side = max(1, min(n_workers, len(wanted)))

    def obtained(t: int, grown: Trees) -> tuple[Forest, ...]:
        path = sitting.folder.checkpoint(f"{_name(driver)}-trees-{t:03d}")
        if not path.is_file():
            seed, threads = tree_seed(sitting.seed), n_workers // side_by_side
            trees.save(path, trees.again(problem, grown, rows, features=features, seed=seed, n_workers=threads))
        return trees.load(path).forests

    with ThreadPoolExecutor(side_by_side) as pool:
        return dict(zip(wanted, pool.map(lambda held: obtained(*held), wanted.values()), strict=True))


def _key(network: Learned) -> str:
    """Return what changes with how a network was trained."""
    return f"{stable_seed(json.dumps(network.member.plain(), sort_keys=True), network.step):016x}"
