"""What a student's loss against a teacher's answers is, by hand, in each kind of task."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from mtl_bento.tasks._base import TASKS, Task

NAN = float("nan")


def fit(kind: str, labels: Any) -> Task[Any]:
    """Return a task of a kind, fitted on labels."""
    spec = TASKS.parse({"kind": kind, "name": "y"})
    task_class = TASKS.class_of(type(spec))
    return task_class(task_class.fit(spec, pa.chunked_array([pa.array(labels)])))


def soft(task: Task[Any], outputs: Any, answers: Any, targets: Any) -> list[float]:
    """Return the losses of one member's rows: outputs [B, ...], answers [B, O'], targets [B, ...]."""
    given = (torch.tensor(held, dtype=torch.float64)[None, None] for held in (outputs, answers))
    found: list[float] = task.soft_losses(*given, torch.tensor(targets)[None, None])[0, 0].tolist()
    return found


BINARY, CLASSES, NUMBER = fit("binary", ["a", "b"]), fit("multiclass", ["a", "b", "c"]), fit("regression", [0.0, 2.0])
GRID = fit("grid", [[[0, 1]], [[1, 1]]])
COLOURS = fit("grid", [[["r", "g"]], [["b", "b"]]])
BOX = fit("box", [[0.5, 0.5, 0.2, 0.2], None])


def test_probabilities_are_learned_by_cross_entropy() -> None:
    # A logit of log 3 is a probability of 3/4.
    expected = -(0.2 * math.log(0.75) + 0.8 * math.log(0.25))
    assert soft(BINARY, [[math.log(3)]], [[0.2]], [-1]) == pytest.approx([expected])
    logits = [[math.log(2), math.log(3), math.log(5)]]
    expected = -(0.5 * math.log(0.2) + 0.5 * math.log(0.5))
    assert soft(CLASSES, logits, [[0.5, 0.0, 0.5]], [1]) == pytest.approx([expected])


def test_numbers_are_learned_by_squared_differences() -> None:
    assert soft(NUMBER, [[1.5], [0.0]], [[0.5], [2.0]], [NAN, 7.0]) == [1.0, 4.0]


def test_of_positions_those_that_are_asked_for_are_learned_and_of_an_unlabelled_row_all() -> None:
    first, second = -math.log(0.75), -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    outputs, answers = [[[math.log(3)], [math.log(3)]]] * 3, [[1.0, 0.5]] * 3
    targets = [[0, 1], [0, -1], [-1, -1]]
    expected = [(first + second) / 2, first, (first + second) / 2]
    assert soft(GRID, outputs, answers, targets) == pytest.approx(expected)
    logits = [[[math.log(2), math.log(3), math.log(5)], [0.0, 0.0, 0.0]]]
    shares = [[0.5, 0.0, 0.5, 1.0, 0.0, 0.0]]
    expected_row = -(0.5 * math.log(0.2) + 0.5 * math.log(0.5)) / 2 + math.log(3) / 2
    assert soft(COLOURS, logits, shares, [[0, 0]]) == pytest.approx([expected_row])


def test_a_box_counts_as_far_as_the_teacher_believes_in_an_object() -> None:
    # Where the boxes agree the cross-entropy of the object is left; moved by half its width, 0.1 / 4 + 2 / 3 more.
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    outputs = [[math.log(3), *map(logit, (0.5, 0.5, 0.2, 0.2))]]
    entropy = -(0.6 * math.log(0.75) + 0.4 * math.log(0.25))
    unknown = [[NAN] * 5]
    assert soft(BOX, outputs, [[0.6, 0.5, 0.5, 0.2, 0.2]], unknown) == pytest.approx([entropy], abs=1e-6)
    moved = soft(BOX, outputs, [[0.6, 0.6, 0.5, 0.2, 0.2]], unknown)
    assert moved == pytest.approx([entropy + 0.6 * (0.1 / 4 + 2 / 3)], abs=1e-6)


@pytest.mark.parametrize(
    ("task", "answers", "targets"),
    [
        (BINARY, [[1.0], [0.0]], [1, 0]),
        (CLASSES, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [2, 0]),
        (NUMBER, [[0.25], [-1.5]], [0.25, -1.5]),
        (GRID, [[1.0, 0.0], [0.5, 1.0]], [[1, 0], [-1, 1]]),
        (COLOURS, [[0.0, 1.0, 0.0, 0.0, 0.0, 1.0]], [[1, 2]]),
        (BOX, [[1.0, 0.4, 0.5, 0.2, 0.3], [0.0, 0.9, 0.9, 0.1, 0.1]], [[1, 0.4, 0.5, 0.2, 0.3], [0] + [NAN] * 4]),
    ],
)
def test_an_answer_as_sure_as_a_label_is_learned_as_the_label(task: Task[Any], answers: Any, targets: Any) -> None:
    said, labels = torch.tensor(answers), torch.tensor(targets)[None]
    shape = (labels.shape[2], task.n_outputs) if task.positional else (task.n_outputs,)
    outputs: Tensor = torch.randn(3, 2, len(said), *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.soft_loss(outputs, said[None], labels), task.loss(outputs, labels))
    n_parts = max(1, len(task.parts))
    parts = torch.tensor([[0.5] * n_parts, [2.0] * n_parts, [1.0, 3.0][:n_parts]])
    torch.testing.assert_close(
        task.soft_loss(outputs, said[None], labels, None, parts), task.mean_loss(outputs, labels, None, parts)
    )


def test_row_weights_have_the_effect_of_repeated_rows() -> None:
    outputs, answers = torch.randn(2, 1, 3, 1), torch.tensor([[[0.2], [0.7], [0.9]]])
    labels, often = torch.tensor([[-1, 0, 1]]), [1, 2, 2]
    weighed = BINARY.soft_loss(outputs, answers, labels, torch.tensor([[0.0, 1.0, 2.0]]))
    torch.testing.assert_close(weighed, BINARY.soft_loss(outputs[:, :, often], answers[:, often], labels[:, often]))
