"""Lets mosaicml-streaming be imported without torchvision, of which it uses two names in parts that we don't."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import transformers  # noqa: F401  # looks whether torchvision is there; it must not find the stand-in

for name, attribute in [
    ("torchvision", None),
    ("torchvision.datasets", "VisionDataset"),
    ("torchvision.transforms", None),
    ("torchvision.transforms.functional", "to_tensor"),
]:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    if attribute is not None:
        setattr(module, attribute, object)
    sys.modules[name] = module

sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))  # helpers of the other tests
