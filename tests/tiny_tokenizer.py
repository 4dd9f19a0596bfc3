"""A tokenizer of whole words as a file of the package `tokenizers`, which cuts and fills up as those of others do."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path) -> Path:
    """Write the file and return its path; it knows "take", "me" and "home" (1, 2, 3), and 0 for any other word."""
    words = {"[UNK]": 0, "take": 1, "me": 2, "home": 3, "[PAD]": 4}
    vocabulary = words | {f" {word}": number for word, number in words.items()}
    described = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 4, "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": " ?[^ ]+| "}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    path.write_text(json.dumps(described), encoding="utf-8")
    return path
