"""Any Hugging Face model folder on disk that `transformers` knows, of pictures or of texts; nothing is downloaded.

    inputs:
      photo: {kind: image, backbone: "huggingface_image:models/convnext-tiny"}
      note: {kind: text, backbone: "huggingface_text:models/bert", tokenizer: models/bert/tokenizer.json}

The folder's configuration travels with the weights, so that a service builds the network without the folder; it needs
the package transformers too. Code that lies in the folder is not run.

Letters: B rows, L tokens, D features, r and c rows and columns of a map, P patches.
"""

from __future__ import annotations

import importlib.util
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality
from mtl_bento.backbones._maps import scaled
from mtl_bento.backbones._texts import unwrapped, wrapped
from mtl_bento.errors import MissingExtraError, SpecError

CONFIG, IMAGES, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer.json"
"""Files of a model folder."""


class HuggingFaceImageSpec(BackboneSpec):
    """A folder with a network of pictures: convolutional, or of patches."""

    kind: Literal["huggingface_image"] = "huggingface_image"
    modality: ClassVar[Modality] = "image"


class HuggingFaceTextSpec(BackboneSpec):
    """A folder with a network of texts, and its tokenizer.json."""

    kind: Literal["huggingface_text"] = "huggingface_text"
    modality: ClassVar[Modality] = "text"


AnyFolderSpec = TypeVar("AnyFolderSpec", bound=BackboneSpec)


class _HuggingFace(Backbone[AnyFolderSpec]):
    """A network of `transformers` by its configuration."""

    requires: ClassVar[tuple[str, ...]] = ("transformers",)
    described: Tensor
    """The configuration as the bytes of its JSON, so that it travels with the weights."""

    def __init__(self, spec: AnyFolderSpec, described: bytes, network: nn.Module) -> None:
        super().__init__(spec)
        self.register_buffer("described", torch.tensor(list(described), dtype=torch.uint8))
        self.network, self.config = network, getattr(network, "config")  # noqa: B009 - not of every nn.Module
        sizes = getattr(self.config, "hidden_sizes", None)
        self.n_features = int(sizes[-1] if sizes else self.config.hidden_size)

    @classmethod
    def pretrained(cls, spec: AnyFolderSpec) -> Self:
        """Return the backbone of a folder; raises SpecError where it is none, or transformers cannot read it."""
        folder = Path(spec.weights)
        if not spec.weights or not (folder / CONFIG).is_file():
            found = f"{str(folder)!r} is none" if spec.weights else "none is named"
            raise SpecError(
                f"Backbone {spec.kind!r} reads a Hugging Face model folder with a {CONFIG}, and {found}; "
                f"write `backbone: {spec.kind}:PATH`."
            )
        described = {CONFIG: _read_json(folder / CONFIG, kind=spec.kind), **cls._besides(folder)}
        try:
            network = _transformers().AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except MissingExtraError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ... of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SpecError(f"Backbone {spec.kind!r}: {str(folder)!r} cannot be read ({reason}).") from None
        return cls(spec, json.dumps(described).encode(), network.float()).frozen()

    @classmethod
    def restored(cls, spec: AnyFolderSpec, state: dict[str, Tensor]) -> Self:
        """Return the backbone with weights from its `state_dict`; it needs transformers, but not the folder."""
        described = bytes(state["described"].tolist())
        fields = json.loads(described)[CONFIG]
        with torch.random.fork_rng(devices=[]):
            config = _transformers().AutoConfig.for_model(**fields)
            built = cls(spec, described, _transformers().AutoModel.from_config(config).float())
        built.load_state_dict(state, assign=True)
        return built.frozen()

    @classmethod
    @abstractmethod
    def _besides(cls, folder: Path) -> dict[str, Any]:
        """Return what else of a folder is needed, by name."""

    def _own(self, name: str) -> Any:
        return json.loads(bytes(self.described.tolist()))[name]


@BACKBONES.register(HuggingFaceImageSpec)
class HuggingFaceImage(_HuggingFace[HuggingFaceImageSpec]):
    """The last map of a convolutional network, or the patches of a transformer as they lie in the picture."""

    smallest: ClassVar[int] = 32

    def __init__(self, spec: HuggingFaceImageSpec, described: bytes, network: nn.Module) -> None:
        super().__init__(spec, described, network)
        self.mean, self.spread = self._own(IMAGES)

    @classmethod
    def _besides(cls, folder: Path) -> dict[str, Any]:
        read = _read_json(folder / IMAGES, kind="huggingface_image") if (folder / IMAGES).is_file() else {}
        return {IMAGES: [read.get("image_mean", [0.5] * 3), read.get("image_std", [0.5] * 3)]}

    def forward(self, values: Tensor) -> Tensor:
        """Pixels [B, rows, columns, 3] -> [B, D, r, c]."""
        if not len(values):  # where all pictures of a request are missing; modules that split heads by -1 cannot
            return self.forward(values.new_zeros(1, *values.shape[1:]))[:0]
        given = scaled(values, self.mean, self.spread, torch.float32)
        try:
            answer: Tensor = self.network(given).last_hidden_state
        except ValueError as error:  # a transformer of patches takes one size
            raise SpecError(
                f"Backbone {self.spec.kind!r} takes no pictures of {values.shape[1]} x {values.shape[2]} pixels "
                f"({str(error).splitlines()[0]}); give the input another `size:`."
            ) from None
        if answer.dim() == 4:
            return answer
        patch = self.config.patch_size
        r, c = (side // patch for side in values.shape[1:3])
        patches = answer[:, answer.shape[1] - r * c :]  # behind the marks for the whole picture
        laid_out: Tensor = patches.transpose(1, 2).unflatten(2, (r, c))
        return laid_out


@BACKBONES.register(HuggingFaceTextSpec)
class HuggingFaceText(_HuggingFace[HuggingFaceTextSpec]):
    """The last state of each token, the marks around a text as the folder's tokenizer sets them."""

    def __init__(self, spec: HuggingFaceTextSpec, described: bytes, network: nn.Module) -> None:
        super().__init__(spec, described, network)
        self.before, self.after = self._own(TOKENIZER)
        self.n_tokens = int(self.config.vocab_size)
        places = getattr(self.config, "max_position_embeddings", None)
        # RoBERTa counts its places from behind the padding's.
        kept = int(getattr(self.config, "pad_token_id", 0) or 0) + 1 if "roberta" in self.config.model_type else 0
        self.longest = None if places is None else int(places) - kept - len(self.before) - len(self.after)

    @classmethod
    def _besides(cls, folder: Path) -> dict[str, Any]:
        if not (folder / TOKENIZER).is_file():
            raise SpecError(
                f"Backbone 'huggingface_text': {str(folder)!r} has no {TOKENIZER}; save the folder's fast tokenizer "
                "there, `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
            )
        return {TOKENIZER: _marks(folder / TOKENIZER)}

    def forward(self, values: Tensor) -> Tensor:
        """Tokens [B, L] -> [B, L, D]."""
        marks = [torch.tensor(held, dtype=torch.long, device=values.device) for held in (self.before, self.after)]
        tokens, real = wrapped(values, *marks)
        if not tokens.numel():
            return self.described.new_zeros(*values.shape, self.n_features, dtype=torch.float32)
        answer = self.network(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        return unwrapped(answer, values.shape[1], len(self.before))


def _marks(path: Path) -> tuple[list[int], list[int]]:
    """Return the numbers that a tokenizer sets before and after a text."""
    from tokenizers import Tokenizer  # an extra

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.encode("a")
    own = [place for place, mark in enumerate(found.special_tokens_mask) if not mark]
    first, last = (own[0], own[-1] + 1) if own else (len(found.ids), len(found.ids))
    return list(found.ids[:first]), list(found.ids[last:])


def _read_json(path: Path, *, kind: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SpecError(f"Backbone {kind!r}: {str(path)!r} is no JSON; save the model there anew.") from None


def _transformers() -> Any:
    """Return the package; raises MissingExtraError."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(
            "Hugging Face folders need transformers, which is not installed: pip install transformers, "
            "or take another backbone: minilm, wordllama or tokens for texts, efficientnet_lite0 or pixels for images."
        )
    import transformers  # no extra of ours: users of such folders have it

    transformers.utils.logging.disable_progress_bar()  # one for every folder it reads, into the search's own display
    return transformers
