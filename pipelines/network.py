"""The networks, built on MONAI, and their weights as safetensors.

Invariant: a network is made from its architecture document alone, and weights are known by the SHA-256 of their bytes,
which is checked before they are used. Nothing here can run code on load (safetensors, never pickle).

References: MONAI (Cardoso et al., arXiv:2211.02701); residual units, He et al., CVPR 2016; DenseNet, Huang et al.,
CVPR 2017; squeeze and excitation, Hu et al., CVPR 2018; EfficientNet, Tan and Le, ICML 2019; ViT, Dosovitskiy et al.,
ICLR 2021, with the mean over its patches in place of a class token (Beyer et al., arXiv:2205.01580); several networks
as one, Lakshminarayanan et al., NeurIPS 2017. MONAI takes seconds to import, so it is imported when the first network
is built.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipelines import tones
from pipelines.protocol import InputSpec, Protocol
from pipelines.types import Digest


class NetworkError(ValueError):
    """A network cannot be built or its weights cannot be used; the message says why."""


class UnknownNetwork(NetworkError):
    """The architecture names a network that does not exist here."""


class WeightsCorrupt(NetworkError):
    """The weights are not those that the record names, or do not fit the architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """All that is needed to build a network: its name, what it sees and what it tells apart."""

    network: str
    in_channels: int
    classes: tuple[str, ...]
    rows: int
    columns: int
    depth: int | None = None
    """Slices of the volumes that it sees; None: it sees images."""
    gradcam_layer: str
    """Dotted name of the layer whose activations a heat map shows, in each member."""
    members: int = 1
    """Networks that answer as one (`Ensemble`); 1: there is but the one."""
    equalise: bool = False
    """Each sees every channel a second time, its grey levels equalised (`pipelines.tones`)."""

    def document(self) -> dict[str, Any]:
        """The architecture as plain JSON values; what is as usual is left out: one member, no depth, no equalising."""
        document = {**asdict(self), "classes": list(self.classes)}
        usual = {"members": 1, "depth": None, "equalise": False}
        return {name: value for name, value in document.items() if name not in usual or value != usual[name]}

    @property
    def input(self) -> InputSpec:
        """What it sees, as a protocol says it."""
        channels: Literal[1, 3] = 1 if self.in_channels == 1 else 3
        return InputSpec(channels=channels, depth=self.depth, rows=self.rows, columns=self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of what it sees: (rows, columns) or (depth, rows, columns)."""
        plane = (self.rows, self.columns)
        return plane if self.depth is None else (self.depth, *plane)


class Ensemble(nn.Module):
    """Networks of one kind side by side: the logarithm of the mean of their probabilities, one file, one digest."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, classes) logits, of which softmax is the members' mean probability."""
        answers = torch.stack([torch.log_softmax(member(images), dim=1) for member in self.members])
        return torch.logsumexp(answers, dim=0) - math.log(len(self.members))


class PatchMean(nn.Module):
    """A transformer over patches, the mean of them, and a linear layer; `plane` is where its heat maps look."""

    def __init__(self, patches: nn.Module, *, grid: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.patches = patches
        self.plane = nn.Unflatten(2, grid)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, classes) logits."""
        found, _every_layer = self.patches(images)  # (N, patches, width)
        plane: Tensor = self.plane(found.transpose(1, 2))  # (N, width, *grid)
        return self.head(plane.mean(dim=tuple(range(2, plane.ndim))))  # type: ignore[no-any-return]


MONAI_TRIES = (
    *("mlflow", "pandas", "matplotlib", "sklearn", "ignite", "tensorboard", "tensorboardX", "skimage", "nibabel"),
    *("scipy", "scipy.ndimage", "scipy.signal", "scipy.stats", "scipy.interpolate", "torchvision", "torchaudio"),
    *("cucim", "cupy", "itk", "PIL", "pydicom", "requests", "tqdm"),
)

PATCHES = (16, 14, 8, 7, 4, 2)
"""Sides of a ViT's patches: the largest that divides all sides of the image and leaves seven of them, or more."""
VIT_WIDTH = 192

Builder = Callable[[Architecture], nn.Module]


def architecture_for(protocol: Protocol) -> Architecture:
    """Return the architecture that a protocol's recipe asks for. Raises UnknownNetwork."""
    return Architecture(
        network=protocol.recipe.network,
        in_channels=protocol.input.channels,
        classes=protocol.classes,
        rows=protocol.input.rows,
        columns=protocol.input.columns,
        depth=protocol.input.depth,
        gradcam_layer=("network." if protocol.recipe.equalise else "") + _entry(protocol.recipe.network)[1],
        members=protocol.recipe.members,
        equalise=protocol.recipe.equalise,
    )


def from_document(document: Mapping[str, Any]) -> Architecture:
    """Read an architecture document, as stored beside the weights. Raises NetworkError where fields are missing."""
    try:
        return Architecture(
            network=document["network"],
            in_channels=int(document["in_channels"]),
            classes=tuple(document["classes"]),
            rows=int(document["rows"]),
            columns=int(document["columns"]),
            depth=None if document.get("depth") is None else int(document["depth"]),
            gradcam_layer=document["gradcam_layer"],
            members=int(document.get("members", 1)),
            equalise=bool(document.get("equalise", False)),
        )
    except KeyError as error:
        raise NetworkError(f"the architecture document has no field {error.args[0]!r}") from None


def build(architecture: Architecture | Mapping[str, Any]) -> nn.Module:
    """Build the network, (N, in_channels, rows, columns) float32 in [0, 1] -> (N, classes) logits, with new weights.

    One that sees volumes takes (N, 1, depth, rows, columns), and convolves and pools along all three.
    The weights come from torch's global generator: seed it first. Raises UnknownNetwork.
    """
    wanted = architecture if isinstance(architecture, Architecture) else from_document(architecture)
    members = [_one(wanted) for _ in range(wanted.members)]
    return members[0] if len(members) == 1 else Ensemble(members)


def _one(wanted: Architecture) -> nn.Module:
    made = _entry(wanted.network)[0]
    if not wanted.equalise:
        return made(wanted)
    return tones.Equalised(made(replace(wanted, in_channels=2 * wanted.in_channels)))


def members_of(module: nn.Module) -> list[nn.Module]:
    """Return the networks that `module` is made of: its members, or itself."""
    return list(module.members) if isinstance(module, Ensemble) else [module]


def parameter_count(module: nn.Module) -> int:
    """Return the number of trainable numbers in `module`."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def save_weights(module: nn.Module) -> bytes:
    """Return parameters and buffers of `module` as safetensors bytes; equal weights give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return bytes(save_tensors(tensors))


def digest_of_bytes(data: bytes) -> Digest:
    """Return the SHA-256 of `data` in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def load_model(
    weights: Path, *, architecture: Architecture | Mapping[str, Any], expected_digest: str | None = None
) -> nn.Module:
    """Build the network and fill it from a safetensors file; returns it in eval mode.

    Raises WeightsCorrupt where the bytes' SHA-256 is not `expected_digest` or the tensors do not fit, and OSError.
    """
    data = weights.read_bytes()
    if expected_digest is not None and digest_of_bytes(data) != expected_digest:
        raise WeightsCorrupt(f"{weights.name}: SHA-256 {digest_of_bytes(data)} is not the expected {expected_digest}")
    module = build(architecture)
    try:
        module.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsCorrupt(f"{weights.name} does not fit the architecture: {error}") from error
    return module.eval()


def grows_into(old: Architecture, new: Architecture) -> bool:
    """Return whether `new` has all classes of `old`, in any order, and is else the same."""
    return old != new and set(old.classes) <= set(new.classes) and replace(old, classes=new.classes) == new


def head_of(architecture: Architecture) -> frozenset[str]:
    """Name the tensors that have a row for each class: those that one class more makes longer."""
    with torch.random.fork_rng(devices=[]):
        shapes = {name: tensor.shape for name, tensor in build(architecture).state_dict().items()}
        wider = build(replace(architecture, classes=(*architecture.classes, ""))).state_dict()
    return frozenset(name for name, tensor in wider.items() if tensor.shape != shapes[name])


def load_grown(
    weights: Path, *, architecture: Architecture, trained_as: Architecture, expected_digest: str | None = None
) -> nn.Module:
    """Build the network with more classes than it was trained with, or others' order: what it knew stays with its name.

    The rows of new classes come from torch's global generator, as in `build`. Returns it in eval mode. Raises
    WeightsCorrupt where the bytes or tensors are not those of `trained_as`, and OSError.
    """
    known = load_model(weights, architecture=trained_as, expected_digest=expected_digest).state_dict()
    module = build(architecture)
    head, rows = head_of(trained_as), [architecture.classes.index(name) for name in trained_as.classes]
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor[rows if name in head else ...] = known[name]
    return module.eval()


def monai(part: str) -> ModuleType:
    """Import a part of MONAI, such as "networks.nets", without the optional packages that it would try on the way.

    MONAI imports all of itself, and with it MLflow, SciPy and more where they are installed: 4.5 seconds of a processor
    instead of .5, for every training and every gate. Nothing used here needs them.
    """
    hidden = [name for name in MONAI_TRIES if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it fails, as documented
    try:
        return importlib.import_module(f"monai.{part}")
    finally:
        for name in hidden:
            del sys.modules[name]


def _small_cnn(architecture: Architecture) -> nn.Module:
    """About 97,000 parameters at 28 x 28: three residual stages that halve the image each; for a CPU, up to 64 px."""
    return _stages(architecture, channels=(16, 32, 64), strides=(2, 2, 2))


def _medium_cnn(architecture: Architecture) -> nn.Module:
    """About 394,000 parameters at 28 x 28: four residual stages, of which the first keeps the image's size.

    A step takes four times that of `small_cnn`; what it gains is in docs/learning-log.md, 28.
    """
    return _stages(architecture, channels=(16, 32, 64, 128), strides=(1, 2, 2, 2))


def _stages(architecture: Architecture, *, channels: tuple[int, ...], strides: tuple[int, ...]) -> nn.Module:
    """A linear layer on residual stages of two units each."""
    return monai("networks.nets").Classifier(  # type: ignore[no-any-return]
        in_shape=(architecture.in_channels, *architecture.shape),
        classes=len(architecture.classes),
        channels=channels,
        strides=strides,
        kernel_size=3,
        num_res_units=2,
        act="relu",
        norm="batch",
        bias=False,
    )


def _resnet18(architecture: Architecture) -> nn.Module:
    return monai("networks.nets").resnet18(  # type: ignore[no-any-return]
        spatial_dims=len(architecture.shape),
        n_input_channels=architecture.in_channels,
        num_classes=len(architecture.classes),
    )


def _densenet121(architecture: Architecture) -> nn.Module:
    _at_least(32, architecture)
    return monai("networks.nets").DenseNet121(  # type: ignore[no-any-return]
        spatial_dims=len(architecture.shape),
        in_channels=architecture.in_channels,
        out_channels=len(architecture.classes),
    )


def _seresnet50(architecture: Architecture) -> nn.Module:
    return monai("networks.nets").SEResNet50(  # type: ignore[no-any-return]
        spatial_dims=len(architecture.shape),
        in_channels=architecture.in_channels,
        num_classes=len(architecture.classes),
    )


def _efficientnet_b0(architecture: Architecture) -> nn.Module:
    _at_least(32, architecture)
    return monai("networks.nets").EfficientNetBN(  # type: ignore[no-any-return]
        "efficientnet-b0",
        pretrained=False,
        spatial_dims=len(architecture.shape),
        in_channels=architecture.in_channels,
        num_classes=len(architecture.classes),
    )


def _vit_tiny(architecture: Architecture) -> nn.Module:
    """About 5.4 million parameters: twelve layers of width 192, on patches that divide the image evenly."""
    sides = architecture.shape
    patch = next((size for size in PATCHES if all(side % size == 0 and side >= 7 * size for side in sides)), None)
    if patch is None:
        raise NetworkError(f"vit_tiny needs an image that can be cut into patches, such as 28 x 28, not {sides}")
    patches = monai("networks.nets").ViT(
        in_channels=architecture.in_channels,
        img_size=sides,
        patch_size=patch,
        hidden_size=VIT_WIDTH,
        mlp_dim=4 * VIT_WIDTH,
        num_layers=12,
        num_heads=3,
        spatial_dims=len(sides),
        qkv_bias=True,
    )
    grid = tuple(side // patch for side in sides)
    return PatchMean(patches, grid=grid, width=VIT_WIDTH, classes=len(architecture.classes))


def _at_least(side: int, architecture: Architecture) -> None:
    if min(architecture.shape) < side:
        raise NetworkError(f"{architecture.network} needs {side} pixels along each side, not {architecture.shape}")


NETWORKS: Mapping[str, tuple[Builder, str]] = {
    "small_cnn": (_small_cnn, "net.layer_2"),
    "medium_cnn": (_medium_cnn, "net.layer_3"),
    "resnet18": (_resnet18, "layer4"),
    "densenet121": (_densenet121, "class_layers.relu"),
    "seresnet50": (_seresnet50, "layer4"),
    "efficientnet_b0": (_efficientnet_b0, "_bn1"),
    "vit_tiny": (_vit_tiny, "plane"),
}
"""Name in a protocol -> how to build it, and the layer for its heat maps."""


def _entry(name: str) -> tuple[Builder, str]:
    if name not in NETWORKS:
        raise UnknownNetwork(f"no network is called {name!r}; there are {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]
