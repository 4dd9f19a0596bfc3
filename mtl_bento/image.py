"""The image of a Bento: a slim Python, the exact versions installed here, and the variables it runs with."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable

import bentoml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TORCH_BUILD = "UV_TORCH_BACKEND"
"""uv's variable for the build of torch to install."""
RUNTIME = (
    "torch", "bentoml", "pydantic", "pyarrow", "numpy", "safetensors", "httpx", "click", "rich", "pyyaml",
)  # fmt: skip
"""What the served image needs: the wheel's own dependencies but uv, which only builds need."""


def image(requires: Iterable[str] = ()) -> bentoml.images.Image:
    """Return the image of a Bento: a slim Python with the exact versions that are installed here.

    `requires` are the distributions of kinds from elsewhere, as "name==version".
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # distro="": BentoML's Debian installs compilers, which wheels do without.
    slim = bentoml.images.Image(
        base_image=f"python:{python}-slim", distro="", python_version=python, lock_python_packages=False
    )
    return slim.python_packages(*requirements(requires))


def environment() -> list[dict[str, str]]:
    """Return the variables of the image: no usage statistics, and which build of torch it installs.

    That is the build that is installed here; UV_TORCH_BACKEND names another ("cu126"), or none where it is empty.
    """
    variables = [{"name": "BENTOML_DO_NOT_TRACK", "value": "true"}]
    installed = importlib.metadata.version("torch").partition("+")[2]
    # A requirement cannot name the index of a local version such as 2.13.0+cpu; uv knows it by the name of the build.
    known = installed if re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", installed) else ""
    if build := os.environ.get(TORCH_BUILD, known):
        variables.append({"name": TORCH_BUILD, "value": build})
    return variables


def requirements(requires: Iterable[str] = ()) -> list[str]:
    """Return `RUNTIME` and all that it needs, as "name==version" of what is installed here, in order of name."""
    pins: dict[str, str] = {}
    done: set[tuple[str, str]] = {("mtl-bento", "")}  # the Bento carries its source, whoever depends on it
    waiting = [Requirement(line) for line in (*RUNTIME, *requires)]
    for requirement in waiting:  # grows while it is read
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in done:
                continue
            done.add((name, extra))
            try:
                found = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # needed elsewhere only, or bundled with another package
            pins[name] = found.version.partition("+")[0]
            needs = (Requirement(line) for line in found.requires or ())
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    given = {canonicalize_name(need.name): str(need) for need in map(Requirement, requires)}
    return sorted(({name: f"{name}=={version}" for name, version in pins.items()} | given).values())
