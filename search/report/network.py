"""The chosen network as a picture: inputs by block, encoders, trunk, a head for each target, outputs.

Drawn twice, across for a wide page and downwards for a phone; the style sheet shows one of the two. Networks of one
target that are built alike are drawn together, a line each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl_bento_search.report.axes import picture
from mtl_bento_search.report.boxes import LETTER, box, down, flow, layers, lines, output
from mtl_bento_search.report.html import Html, el, join
from mtl_bento_search.report.words import clipped, count, spec, wrapped

MOST_HEADS = 40
"""Targets drawn in one frame; the rest is counted."""
ROW = 34
"""Height of a head."""
WIDE, TALL = 1000, 370


@dataclass(frozen=True)
class Block:
    """Input columns that share an encoder."""

    name: str
    columns: Sequence[str]
    encoder: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What the block is, in words."""
        return self.kind if self.kind != self.name else f"{self.name}: {count(len(self.columns), 'column')}"

    @property
    def kind(self) -> str:
        """The kind of its encoder: "image" of a picture's own block, "image:photo"."""
        return self.name.partition(":")[0]

    @property
    def words(self) -> str:
        """What the encoder is, in words."""
        return spec(self.encoder) or "default"


@dataclass(frozen=True)
class Frame:
    """A network, or several built alike, each for one target."""

    title: str
    detail: str
    trunk: Mapping[str, Any]
    heads: Mapping[str, Mapping[str, Any]]
    """Head by target."""
    separate: bool = False
    """Whether each target has a whole network of its own."""

    @property
    def shown(self) -> list[str]:
        """The targets that are drawn."""
        return list(self.heads)[:MOST_HEADS]

    @property
    def n_rows(self) -> int:
        """Lines of the picture: the targets drawn, and one that counts the rest."""
        return len(self.shown) + (len(self.heads) > MOST_HEADS)


def draw(network: Mapping[str, Any], kinds: Mapping[str, str]) -> Html:
    """Return the chosen networks as two pictures, one of which is shown.

    Args:
        network: `network` of result.json.
        kinds: kind of each target, where known.
    """
    blocks = [Block(n, b["columns"], b["encoder"]) for n, b in network["blocks"].items()]
    frames = gather(network["groups"])
    label = " ".join([*(f"{b.title}, encoder {b.words}." for b in blocks), *(_in_words(f) for f in frames)])
    wide, tall = _wide(blocks, frames, kinds), _tall(blocks, frames, kinds)
    return join(
        picture(wide[0], label=label, width=WIDE, height=wide[1], class_="net wide-only"),
        picture(tall[0], label=label, width=TALL, height=tall[1], class_="net narrow-only"),
    )


def gather(groups: Sequence[Mapping[str, Any]]) -> list[Frame]:
    """Return the frames to draw: shared networks first, then single-task ones, those built alike together."""
    shared = [g for g in groups if not _single(g)]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        if _single(group):
            alike.setdefault(json.dumps(group["trunk"], sort_keys=True), []).append(group)
    alone = sum(len(g["tasks"]) for g in groups) == 1
    return [*(_shared_frame(g, alone=alone) for g in shared), *(_single_frame(held) for held in alike.values())]


def _single(group: Mapping[str, Any]) -> bool:
    return len(group["tasks"]) == 1 and str(group["name"]).startswith(f"single-task {group['tasks'][0]}")


def _shared_frame(group: Mapping[str, Any], *, alone: bool) -> Frame:
    return Frame(
        f"{'Network' if alone else 'Shared network'}: {group['name']}", _size(group), group["trunk"], group["heads"]
    )


def _single_frame(groups: Sequence[Mapping[str, Any]]) -> Frame:
    heads = {task: head for group in groups for task, head in group["heads"].items()}
    title = "Single-task network" if len(groups) == 1 else f"{len(groups)} single-task networks, one a target"
    return Frame(title, _size(groups[0]), groups[0]["trunk"], heads, separate=len(groups) > 1)


def _size(group: Mapping[str, Any]) -> str:
    each = f"{group['parameters']:,} parameters"
    return each if group["members"] == 1 else f"{group['members']} copies averaged, {each} each"


def _in_words(frame: Frame) -> str:
    return f"{frame.title}: {frame.detail}; trunk {_trunk_words(frame.trunk)}; {count(len(frame.heads), 'target')}."


def _trunk_words(trunk: Mapping[str, Any]) -> str:
    return f"{trunk.get('kind', 'trunk')}, {spec(trunk)}"


def _head_words(head: Mapping[str, Any]) -> str:
    """Return a head in a word or two: its hidden width, or "linear" where it has none."""
    width = head.get("width")
    return str(head.get("kind", "head")) if width is None else f"hidden {width}" if width else "linear"


# -- across -------------------------------------------------------------------------------------------------------


def _wide(blocks: Sequence[Block], frames: Sequence[Frame], kinds: Mapping[str, str]) -> tuple[Html, int]:
    """Return the picture from left to right, and its height."""
    step = 62
    heights = [_wide_height(len(blocks), frame) for frame in frames]
    total = sum(heights) + 16 * (len(frames) - 1) + 2
    top = max(1.0, (min(total, heights[0]) - step * len(blocks)) / 2 + 20)
    inputs = [box(1, top + step * i, 198, 50, "input", b.title, ", ".join(b.columns)) for i, b in enumerate(blocks)]
    places = [(199.0, top + step * i + 25) for i in range(len(blocks))]
    drawn, y = [], 1.0
    for frame, height in zip(frames, heights, strict=True):
        drawn.append(_wide_frame(blocks, frame, kinds, y=y, height=height, inputs=places))
        y += height + 16
    return join(drawn, inputs), int(max(total, top + step * len(blocks)))


def _wide_height(n_blocks: int, frame: Frame) -> int:
    inner = ROW * frame.n_rows if frame.separate else max(ROW * frame.n_rows, 62 * n_blocks, 132)
    return (76 if frame.separate else 62) + inner


def _wide_frame(
    blocks: Sequence[Block],
    frame: Frame,
    kinds: Mapping[str, str],
    *,
    y: float,
    height: int,
    inputs: Sequence[tuple[float, float]],
) -> Html:
    title = el(
        "text",
        el("tspan", frame.title, class_="first"),
        el("tspan", f"   {frame.detail}", class_="more"),
        x=250,
        y=y + 24,
    )
    edge = el("rect", x=234, y=y, width=WIDE - 235, height=height, rx=10, class_="frame")
    draw_inside = _wide_separate if frame.separate else _wide_shared
    return join(
        edge,
        title,
        draw_inside(
            blocks, frame, kinds, y + (58 if frame.separate else 42), height - (76 if frame.separate else 62), inputs
        ),
    )


def _wide_shared(
    blocks: Sequence[Block],
    frame: Frame,
    kinds: Mapping[str, str],
    y: float,
    h: float,
    inputs: Sequence[tuple[float, float]],
) -> Html:
    middle, step = y + h / 2, 62
    first = middle - step * len(blocks) / 2 + 6
    encoders = [
        box(250, first + step * i, 168, 50, "encoder", f"{b.kind} encoder", b.words) for i, b in enumerate(blocks)
    ]
    into = [flow(place, (250, first + step * i + 25)) for i, place in enumerate(inputs)]
    onto = [flow((418, first + step * i + 25), (456, middle)) for i in range(len(blocks))]
    trunk = join(
        el("rect", x=456, y=middle - 66, width=212, height=132, rx=6, class_="box trunk"),
        layers(456, middle - 62, 212, 46, frame.trunk),
        lines(464, middle + 2, 212, _trunk_lines(frame.trunk, 212)),
    )
    start = middle - ROW * frame.n_rows / 2
    rows = [_wide_row(frame, task, kinds, start + ROW * (i + 0.5), middle) for i, task in enumerate(frame.shown)]
    return join(into, onto, rows, _rest(frame, 826, start + ROW * (len(frame.shown) + 0.5)), encoders, trunk)


def _wide_row(frame: Frame, task: str, kinds: Mapping[str, str], y: float, middle: float) -> Html:
    head = box(706, y - 12, 88, 24, "head", _head_words(frame.heads[task]))
    flows = join(flow((668, middle), (706, y), arrow=False), flow((794, y), (820, y)))
    return join(flows, head, output(826, y, WIDE - 836, task, kinds.get(task, "")))


def _wide_separate(
    blocks: Sequence[Block],
    frame: Frame,
    kinds: Mapping[str, str],
    y: float,
    h: float,
    inputs: Sequence[tuple[float, float]],
) -> Html:
    """Return a line for each target: encoders, trunk and head of its own."""
    into = [flow(place, (234, y + h / 2), arrow=False) for place in inputs]
    rows = []
    for i, task in enumerate(frame.shown):
        at = y + ROW * (i + 0.5)
        rows.append(join(
            box(250, at - 12, 168, 24, "encoder", "own encoders"),
            el("rect", x=456, y=at - 12, width=212, height=24, rx=6, class_="box trunk"),
            layers(456, at - 10, 212, 20, frame.trunk),
            flow((418, at), (456, at)),
            _wide_row(frame, task, kinds, at, at),
        ))  # fmt: skip
    note = el("text", clipped(f"each trunk: {_trunk_words(frame.trunk)}", 98), x=250, y=y - 13, class_="more")
    return join(into, rows, _rest(frame, 826, y + ROW * (len(frame.shown) + 0.5)), note)


def _trunk_lines(trunk: Mapping[str, Any], width: float) -> list[str]:
    """Return a trunk in at most four lines: its kind, its size, everything else."""
    layers, units = trunk.get("shared_depth"), trunk.get("width")
    size = "" if layers is None or units is None else f"{count(layers, 'layer')} of {units} units"
    others = wrapped(spec(trunk, skip=("kind", "shared_depth", "width")), int((width - 16) / LETTER))
    return [f"{trunk.get('kind', '')} trunk", *([size] if size else []), *others][:4]


def _rest(frame: Frame, x: float, y: float) -> Html | None:
    more = len(frame.heads) - len(frame.shown)
    return el("text", f"and {more:,} more", x=x, y=y + 4.5, class_="more") if more else None


# -- downwards ----------------------------------------------------------------------------------------------------


def _tall(blocks: Sequence[Block], frames: Sequence[Frame], kinds: Mapping[str, str]) -> tuple[Html, int]:
    """Return the picture from top to bottom, and its height."""
    inputs = [box(1, 1 + 56 * i, TALL - 2, 48, "input", b.title, ", ".join(b.columns)) for i, b in enumerate(blocks)]
    y, drawn = 1.0 + 56 * len(blocks), []
    for frame in frames:
        body, height = _tall_frame(blocks, frame, kinds, y + 24)
        drawn += [down(TALL / 2, y - 6, y + 22), body]
        y += 24 + height
    return join(inputs, drawn), int(y + 2)


def _tall_frame(blocks: Sequence[Block], frame: Frame, kinds: Mapping[str, str], y: float) -> tuple[Html, float]:
    words = lines(14, y + 24, TALL, [frame.title, frame.detail])
    at = y + 54
    encoders = "own encoders: " if frame.separate else "encoders: "
    parts = [
        box(12, at, TALL - 24, 30, "encoder", encoders + ", ".join(b.kind for b in blocks)),
        down(TALL / 2, at + 30, at + 46),
    ]
    at += 48
    parts += [
        el("rect", x=12, y=at, width=TALL - 24, height=80, rx=6, class_="box trunk"),
        layers(TALL - 132, at, 112, 80, frame.trunk),
        lines(20, at + 20, 232, _trunk_lines(frame.trunk, 232)),
    ]
    at += 80
    start = at + 12
    spine = el("path", d=f"M24 {at:g}V{start + ROW * (max(1, len(frame.shown)) - 0.5):g}", class_="flow")
    rows = [_tall_row(frame, task, kinds, start + ROW * (i + 0.5)) for i, task in enumerate(frame.shown)]
    height = start + ROW * frame.n_rows + 8 - y
    edge = el("rect", x=1, y=y, width=TALL - 2, height=height, rx=10, class_="frame")
    rest = _rest(frame, 150, start + ROW * (len(frame.shown) + 0.5))
    return join(edge, words, parts, spine, rows, rest), height


def _tall_row(frame: Frame, task: str, kinds: Mapping[str, str], y: float) -> Html:
    head = box(40, y - 12, 84, 24, "head", _head_words(frame.heads[task]))
    return join(
        flow((24, y), (40, y), arrow=False),
        flow((124, y), (144, y)),
        head,
        output(150, y, TALL - 160, task, kinds.get(task, "")),
    )
