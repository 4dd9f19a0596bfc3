"""What cutting texts to the longest of a batch saves: CPU milliseconds of a step and of a look, both ways in turn.

    python -m tests.benchmarks.lines [--data ../shared/data/texts.parquet] [--steps 32] [--repeats 9]

One thread; intent, entity tags and sentiment of the texts, read by wordllama; members of width 64 with two layers and a
convolutional head for the tags, in batches of 16. Both ways learn the same batches, and the median counts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from mtl_bento.training import Cohort, Member, MemberSpec, Stack, never
from mtl_bento_search.config import Config
from mtl_bento_search.problem import make_problem

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "texts.parquet"
TARGETS = {"intent": "multiclass", "entities": "tagging", "sentiment": "multiclass"}
FOREVER = 100_000
"""A budget whose looks lie beyond what is timed."""


def members(trunk: str, count: int) -> tuple[Member, ...]:
    """Return members that differ by their seeds."""
    heads = {name: {"kind": "conv" if kind == "tagging" else "dense"} for name, kind in TARGETS.items()}
    spec = MemberSpec.model_validate({
        "network": {
            "encoders": {"text:text": {"kind": "text"}},
            "trunk": {"kind": trunk, "width": 64, "shared_depth": 2, "dropout": 0.1},
            "heads": heads,
        },
        "training": {"batch_size": 16, "steps": FOREVER},
    })  # fmt: skip
    return tuple(Member(spec, seed) for seed in range(count))


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = {"kind": "column", "column": "split"}
    config = Config.model_validate({"data": str(options.data), "targets": TARGETS, "split": split})
    dataset = make_problem(config).dataset
    (ends,) = dataset.ends
    assert ends is not None
    print(f"{len(ends)} texts of {ends.double().mean():.1f} tokens on average, {dataset.blocks[0].shape[1]} at most")
    for trunk in ("attention", "conv"):
        for count in (1, 4):
            stack = Stack(members(trunk, count), 0)
            cut, whole = Cohort(stack, dataset), Cohort(stack, dataset)
            whole.ends, whole._looked = None, [(rows, real, None) for rows, real, _ in whole._looked]
            generator, runners = torch.Generator().manual_seed(0), []
            for cohort in (cut, whole):
                cohort.advance(dataset, 1)
                cohort.network.set_generator(generator)
                runners.append(cohort._runner(dataset, generator))
            longest = [planned[-1] or 0 for planned in cut._plan(dataset, options.repeats * options.steps)]
            took = np.zeros((2, 2, options.repeats))  # a step and a look, both ways
            for repeat in range(options.repeats):
                for place, cohort in enumerate((cut, whole)):
                    began = time.process_time()
                    cohort._train(dataset, runners[place], cohort.step + options.steps, never)
                    took[0, place, repeat] = 1000 * (time.process_time() - began) / options.steps
                    began = time.process_time()
                    cohort.losses(dataset)
                    took[1, place, repeat] = 1000 * (time.process_time() - began)
            for what, held in zip((f"step, cut to {np.mean(longest):.1f}", "look"), took, strict=True):
                both, ratios = np.median(held, 1), np.sort(held[0] / held[1])
                print(
                    f"{trunk}, {count}: {what}: {both[0]:.2f} ms, whole {both[1]:.2f} ms, "
                    f"ratio {np.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
                )


if __name__ == "__main__":
    main()
