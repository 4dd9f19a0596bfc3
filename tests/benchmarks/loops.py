"""What the benchmarks compare with: one network at a time, as an expert writes it in plain torch.

The same networks, losses, optimiser, schedule, clipping and looks at validation rows as in `mtl_bento.training`, one
configuration and one split at a time (`tests/test_benchmarks.py` compares them). What favours a loop is given to it:
features that no network learns are computed once beforehand, heads of one state are one product, AdamW is fused, and
the process is tuned as ours is (`mtl_bento_search.tuning`).

Letters: B rows, F inputs, M TabM's inner networks, D width, O outputs of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from mtl_bento.dataset import Dataset, Split
from mtl_bento.encoders._base import ENCODERS
from mtl_bento.network import NetworkSpec
from mtl_bento.tasks._base import Task
from mtl_bento.training import EVALUATIONS, MemberSpec, looked_at, schedule

Batch = list[Tensor]
"""Numbers [B, F], codes [B, E], then the labels [B] of each task."""


@dataclass
class Rows:
    """What the loops read: features that nothing learns, codes of embedded columns, labels."""

    numbers: Tensor
    """Ready features [N, F]."""
    codes: Tensor
    """Places in one table of embeddings [N, E]."""
    labels: tuple[Tensor, ...]
    tasks: tuple[Task[Any], ...]
    trivial: tuple[float, ...]
    splits: tuple[Split, ...]
    seen: Tensor
    """Which rows of the table of embeddings training ever reads, [R, 1]; the others stay at zero."""
    embedding_width: int
    held: dict[Any, Batch] = field(default_factory=dict)
    """Rows cut out before: training and validation rows of each split."""

    @classmethod
    def of(cls, dataset: Dataset, network: NetworkSpec) -> Rows:
        """Return the rows of a dataset as networks with these encoders read them."""
        numbers, codes, seen, width = [], torch.zeros(len(dataset.targets[0]), 0, dtype=torch.long), torch.ones(0, 1), 0
        for values, (block, columns) in zip(dataset.blocks, dataset.inputs.columns.items(), strict=True):
            spec = network.encoders[block]
            encoder_class: Any = ENCODERS.class_of(type(spec))
            encoder = encoder_class([spec], columns, dataset.inputs.fitted[block], [torch.Generator()])
            ready = encoder.features(values.unsqueeze(0))[0].detach()
            if "table" in encoder.shapes:
                assert not width, "the loops know one table of embeddings"
                seen = (encoder.table[0] != 0).any(-1, keepdim=True).float()
                codes, width = values.index_select(-1, encoder.embedded) + encoder.offset, encoder.table.shape[-1]
                ready = ready[:, : -codes.shape[1] * width]
            elif width:
                raise ValueError(f"block {block!r} lies behind embeddings, which the loops append to all else")
            numbers.append(ready)
        trivial = tuple(dataset.trivial.tolist())
        ready = torch.cat(numbers, -1).contiguous()
        return cls(ready, codes, dataset.targets, dataset.tasks, trivial, dataset.splits, seen, width)

    def training(self, split: int) -> Batch:
        """Return the training rows of a split."""
        return self._cut(("training", split), lambda: self.splits[split].train)

    def validation(self, split: int) -> Batch:
        """Return the rows that a look reads."""
        return self._cut(("validation", split), lambda: looked_at(self.splits[split].valid))

    def _cut(self, key: Any, places: Callable[[], Tensor]) -> Batch:
        if key not in self.held:
            self.held[key] = [t.index_select(0, places()) for t in (self.numbers, self.codes, *self.labels)]
        return self.held[key]


class Ensemble(nn.Module):
    """M linear maps as one batched product: each of TabM's inner networks has an output layer of its own."""

    def __init__(self, inner: int, fan_in: int, fan_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(fan_in, 1))
        self.weight = nn.Parameter(torch.empty(inner, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(inner, 1, fan_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [M, B, D] -> [M, B, O]."""
        return torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)


class Plain(nn.Module):
    """One network: embeddings, a shared bottom or TabM-mini, linear heads with a hidden layer beside some of them."""

    def __init__(self, spec: NetworkSpec, rows: Rows) -> None:
        super().__init__()
        trunk: Any = spec.trunk
        self.inner = int(getattr(trunk, "inner", 0))
        self.outputs = [task.n_outputs for task in rows.tasks]
        self.hidden = [int(getattr(spec.heads[task.name], "width", 0)) for task in rows.tasks]
        n_features = rows.numbers.shape[1] + rows.codes.shape[1] * rows.embedding_width
        self.embedding: nn.Embedding | None = None
        if rows.embedding_width:
            bound = 1 / math.sqrt(rows.embedding_width)
            vectors = torch.empty(len(rows.seen), rows.embedding_width).uniform_(-bound, bound) * rows.seen
            self.embedding = nn.Embedding.from_pretrained(vectors, freeze=False)
        self.scaling: nn.Parameter | None = None
        if self.inner:
            self.scaling = nn.Parameter(torch.randint(0, 2, (self.inner, 1, n_features)) * 2.0 - 1.0)
        layers: list[nn.Module] = []
        for level in range(trunk.shared_depth):
            fan_in = trunk.width if level else n_features
            layers += [nn.Linear(fan_in, trunk.width), nn.ReLU(), nn.Dropout(trunk.dropout)]
        self.trunk = nn.Sequential(*layers)
        self.linear = self._head(trunk.width, sum(self.outputs))
        self.first = nn.Linear(trunk.width, sum(self.hidden)) if any(self.hidden) else None
        self.second = nn.ModuleList(
            self._head(hidden, out, bias=False) for hidden, out in zip(self.hidden, self.outputs, strict=True) if hidden
        )

    def _head(self, fan_in: int, fan_out: int, *, bias: bool = True) -> nn.Module:
        if self.inner:
            return Ensemble(self.inner, fan_in, fan_out, bias=bias)
        return nn.Linear(fan_in, fan_out, bias=bias)

    def forward(self, numbers: Tensor, codes: Tensor) -> list[Tensor]:
        """Numbers [B, F], codes [B, E] -> outputs [B, O] of each task, or [M, B, O] where it is a TabM."""
        x = numbers if self.embedding is None else torch.cat([numbers, self.embedding(codes).flatten(1)], -1)
        state = self.trunk(x if self.scaling is None else x * self.scaling)
        outputs = list(self.linear(state).split(self.outputs, -1))
        if self.first is not None:
            units = functional.relu(self.first(state)).split(self.hidden, -1)
            deep = [t for t, width in enumerate(self.hidden) if width]
            for t, second in zip(deep, self.second, strict=True):
                outputs[t] = outputs[t] + second(units[t])
        return outputs

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take the parameters of a member of one of our stacks (`Network.member_state`)."""

        def put(name: str, parts: Sequence[Tensor]) -> None:
            held, value = self.get_parameter(name), torch.cat(list(parts), -1)
            # nn.Linear keeps its weight the other way round.
            held.copy_(value if held.ndim == 3 else value[0].T if held.ndim == 2 else value.flatten())

        places = range(len(self.outputs))
        for level in range(len(self.trunk) // 3):
            for name in ("weight", "bias"):
                put(f"trunk.{3 * level}.{name}", [state[f"trunk.layers.linears.{level}.{name}"]])
        for name in ("weight", "bias"):
            put(f"linear.{name}", [state[f"heads.{t}.linear.{name}"] for t in places])
            if self.first is not None:
                put(f"first.{name}", [state[f"heads.{t}.first.{name}"] for t in places if self.hidden[t]])
        for place, t in enumerate([t for t in places if self.hidden[t]]):
            put(f"second.{place}.weight", [state[f"heads.{t}.second.weight"]])
        if self.scaling is not None:
            self.scaling.copy_(state["trunk.scaling"])
        if self.embedding is not None:
            self.embedding.weight.copy_(next(v for name, v in state.items() if name.endswith(".table")))


def binary_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """outputs [..., B, 1], labels [B] -> their mean loss."""
    logits = outputs.squeeze(-1)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype).expand_as(logits))


def multiclass_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """outputs [..., B, O], labels [B] -> their mean loss."""
    return functional.cross_entropy(outputs.flatten(0, -2), labels.expand(outputs.shape[:-1]).reshape(-1))


def regression_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """outputs [..., B, 1], labels [B] -> their mean squared error."""
    numbers = outputs.squeeze(-1)
    return functional.mse_loss(numbers, labels.expand_as(numbers))


LOSSES = {"binary": binary_loss, "multiclass": multiclass_loss, "regression": regression_loss}
"""By task kind; the benchmarks' sets have a label in every row."""


def loader_batches(tensors: Batch, size: int) -> Iterator[Batch]:
    """Yield shuffled batches for ever, as a DataLoader makes them in this process."""
    loader = DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def index_batches(tensors: Batch, size: int) -> Iterator[Batch]:
    """Yield shuffled batches for ever, gathered from resident tensors by index."""
    n = len(tensors[0])
    while True:
        order = torch.randperm(n)
        for start in range(0, n - size + 1, size):
            places = order[start : start + size]
            yield [tensor.index_select(0, places) for tensor in tensors]


BATCHES = {"loader": loader_batches, "index": index_batches}
"""The two loops, by how they get their batches."""


class Loop:
    """One network in training.

    Args:
        spec: the configuration.
        rows: what it reads; the same for every call.
        seed: of its initial weights, batches and dropout.
        split: which split it learns from.
    """

    def __init__(self, spec: MemberSpec, rows: Rows, *, seed: int, split: int) -> None:
        torch.manual_seed(seed)
        self.training, self.split, self.step = spec.training, split, 0
        self.model = Plain(spec.network, rows)
        decays = {n: n.endswith("weight") and not n.startswith("embedding") for n, _ in self.model.named_parameters()}
        groups = [
            {
                "params": [p for n, p in self.model.named_parameters() if decays[n] is wanted],
                "weight_decay": spec.training.weight_decay if wanted else 0.0,
            }
            for wanted in (True, False)
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=spec.training.lr, fused=True)
        weights = [spec.training.weighting.weight(task.name) for task in rows.tasks]
        self.weights = [w / t for w, t in zip(weights, rows.trivial, strict=True)]
        self.losses = [LOSSES[task.spec.kind] for task in rows.tasks]
        self.best_score, self.best_losses = math.inf, [math.inf] * len(rows.tasks)
        self.best: list[Tensor] = []
        """The weights of the best look."""
        self._source: Iterator[Batch] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # elsewhere an epoch begins anew

    def advance(self, rows: Rows, goal: int, *, batches: str) -> None:
        """Train up to step `goal` with a kind of `BATCHES`, looking at the validation rows on the way."""
        if self._source is None:
            self._source = BATCHES[batches](rows.training(self.split), self.training.batch_size)
        every = max(1, self.training.steps // EVALUATIONS)
        while self.step < goal:
            self.train(self._source, min(goal, (self.step // every + 1) * every))
            self.look(rows)

    def train(self, source: Iterator[Batch], goal: int) -> None:
        """Take the steps up to `goal`."""
        self.model.train()
        parameters = list(self.model.parameters())
        while self.step < goal:
            numbers, codes, *labels = next(source)
            outputs = self.model(numbers, codes)
            parts = zip(self.weights, self.losses, outputs, labels, strict=True)
            objective = torch.stack([w * loss(out, y) for w, loss, out, y in parts]).sum()
            self.optimiser.zero_grad()
            objective.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in self.optimiser.param_groups:
                group["lr"] = self.training.lr * schedule(self.step, self.training.steps)
            self.optimiser.step()
            self.step += 1

    @torch.no_grad()
    def look(self, rows: Rows) -> None:
        """Judge the network on its validation rows and keep its weights where it was never better."""
        self.model.eval()
        numbers, codes, *labels = rows.validation(self.split)
        losses = []
        for task, out, y, trivial in zip(rows.tasks, self.model(numbers, codes), labels, rows.trivial, strict=True):
            answers = task.activate(out)
            answers = answers.mean(0) if answers.ndim == 3 else answers
            losses.append(float(task.answer_losses(answers, y).mean()) / trivial)
        score = sum(losses) / len(losses)
        if score < self.best_score:
            self.best_score, self.best_losses = score, losses
            self.best = [parameter.detach().clone() for parameter in self.model.parameters()]
