"""k-means on the features that an image network has of the generated images."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from pgmkit.config import check_count
from pgmkit.errors import (
    LoadError,
    ParameterError,
    PgmkitWarning,
    PluginError,
    UnknownNameError,
    first_line,
)
from pgmkit.generator import Generator
from pgmkit.loading.weights import read_weights
from pgmkit.seeds import derive_seed
from pgmkit_plugins.samplers.composed import images_of, with_prefix, without_prefix
from pgmkit_plugins.samplers.output_kmeans import OutputKMeans

_BATCH = 64


class FeatureKMeans(OutputKMeans):
    """k-means on principal components of a network's features of the images G(z).

    A timm model gets the images in colour, resized to its input size (the whole image, not a crop)
    and normalised as its data config says; its pooled features are taken. A `torch.nn.Module` gets
    the images as the generator makes them; wrap it if it wants others. It is put into eval mode in
    place, and such a sampler cannot be saved. Features are divided by their length before their
    components are found.

    The weights of a timm model are saved with the sampler, so loading needs neither the Hub nor the
    file that they came from.

    Args:
        num_clusters: k, at least 1.
        model: name of a timm model, or a module that maps images (B, C, H, W) to features (B, ...).
        pretrained: whether the weights are those that timm fetches from the Hub; without them and
            without `weights` they are random, and a warning says so.
        weights: a file of weights of the timm model, .safetensors or a torch file.
        input_size: side in pixels that images are resized to for a timm model, at least 1; None is
            the model's own, which for many is 224 and slow on a CPU.
        normalize: whether features are divided by their length.
        num_dims: principal components of the features, at least 1.
        num_starts: as for `OutputKMeans`.
        predict_from: as for `OutputKMeans`.
        num_components: as for `ComposedSampler`.
        mapper: as for `ComposedSampler`.
        mapper_args: as for `ComposedSampler`.

    Attributes:
        network_: in eval mode, on the generator's device.
        mean_: of the features, (D,), float64.
        components_: orthonormal, (d, D), float64.
    """

    _name = "feature-kmeans"

    def __init__(
        self,
        num_clusters: int = 10,
        model: str | nn.Module = "resnet18",
        pretrained: bool = True,
        weights: str | None = None,
        input_size: int | None = None,
        normalize: bool = True,
        num_dims: int = 50,
        num_starts: int = 4,
        predict_from: str = "points",
        num_components: int | str = 2,
        mapper: str = "mixture",
        mapper_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            num_clusters=num_clusters,
            num_dims=num_dims,
            num_starts=num_starts,
            predict_from=predict_from,
            num_components=num_components,
            mapper=mapper,
            mapper_args=mapper_args,
        )
        if isinstance(model, str):
            if not timm.is_model(model):
                raise UnknownNameError("timm model", model, timm.list_models())
        elif not isinstance(model, nn.Module):
            raise ParameterError(
                f"model must be the name of a timm model or a torch.nn.Module, not {model!r}"
            )
        elif weights is not None:
            raise ParameterError("weights are for a timm model; load them into the module itself")
        if input_size is not None:
            check_count("input_size", input_size)
        self.model = model
        self.pretrained = pretrained
        self.weights = weights
        self.input_size = input_size
        self.normalize = normalize

    def points_state(self) -> dict[str, Tensor]:
        """Returns what was fitted to turn latents into points, by name.

        Raises:
            PluginError: the network is no timm model.
        """
        if not isinstance(self.model, str):
            raise PluginError(
                "feature-kmeans cannot be saved with a module of your own, "
                f"{type(self.model).__name__}, since it could not be built again; give the name of "
                "a timm model, or keep to samples"
            )
        return super().points_state() | with_prefix("network.", self.network_.state_dict())

    def load_points_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `points_state` returned; there may be more in it."""
        super().load_points_state(state)
        self.network_ = _frozen(_untrained(str(self.model)))
        self.network_.load_state_dict(without_prefix("network.", state))

    def fit_points(self, latents: Tensor, seed: int) -> None:
        """Learns how to turn latents (n, M) into points."""
        generator = images_of(self._generator, self._name)
        self.network_ = _frozen(self._build(derive_seed(seed, "network") % 2**32))
        self._check_network(generator, latents)
        super().fit_points(latents, seed)

    def _rows(self, latents: Tensor) -> Iterator[Tensor]:
        generator = images_of(self._generator, self._name)
        self.network_.to(generator.device)
        for images in generator.image_batches(latents, batch_size=_BATCH):
            yield self._features(images, generator).cpu().double()

    @torch.no_grad()
    def _features(self, images: Tensor, generator: Generator) -> Tensor:
        """Returns features (B, D), float32, of images (B, C, H, W) in the generator's range."""
        images = images.float()
        if isinstance(self.model, str):
            images = self._converted(images, generator.image.range)
        found = self.network_(images).float().flatten(1)
        return functional.normalize(found, dim=1) if self.normalize else found

    def _converted(self, images: Tensor, value_range: tuple[float, float]) -> Tensor:
        """Returns images as the timm model expects them."""
        config = resolve_model_data_config(self.network_)
        channels, *size = config["input_size"]
        if self.input_size is not None:
            size = [self.input_size, self.input_size]
        low, high = value_range
        images = ((images - low) / (high - low)).clamp(0, 1)
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        if images.shape[1] != channels:
            raise ParameterError(
                f"{self.model} looks at images of {channels} channels, and the generator's have "
                f"{images.shape[1]}; wrap a network that fits in a torch.nn.Module"
            )
        if list(images.shape[-2:]) != list(size):
            images = functional.interpolate(
                images, tuple(size), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        mean, std = (images.new_tensor(config[name])[:, None, None] for name in ("mean", "std"))
        return (images - mean) / std

    def _check_network(self, generator: Generator, latents: Tensor) -> None:
        """Runs the network once, so that what does not fit is said clearly."""
        try:
            rows = next(self._rows(latents[:2]))
        except ParameterError:
            raise
        except Exception as error:
            raise ParameterError(
                f"the network of feature-kmeans cannot look at images of "
                f"{generator.image.shape}: {type(error).__name__}: {error}; choose another model "
                "or input_size"
            ) from error
        if not rows.isfinite().all():
            raise ParameterError(
                "the network of feature-kmeans returns values that are not finite; check its "
                "weights"
            )

    def _build(self, seed: int) -> nn.Module:
        """Returns the network with its weights.

        Raises:
            LoadError: they cannot be fetched or read, or do not fit.
        """
        if not isinstance(self.model, str):
            return self.model
        if self.weights is not None:
            return _with_weights(_untrained(self.model), Path(self.weights))
        if self.pretrained:
            try:
                fetched: nn.Module = timm.create_model(self.model, pretrained=True, num_classes=0)
                return fetched
            except Exception as error:  # whatever the Hub's client or timm raises
                raise LoadError(
                    f"the pretrained weights of the timm model {self.model!r} cannot be fetched "
                    f"({first_line(error)}); check the connection, or give a file as "
                    "weights='/path/to/model.safetensors'"
                ) from error
        warnings.warn(
            f"the weights of {self.model!r} are random, so its features mean little; take "
            "pretrained=True, or give a file as weights=...",
            PgmkitWarning,
            stacklevel=6,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _untrained(self.model)


def _untrained(model: str) -> nn.Module:
    network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
    return network


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _with_weights(network: Any, path: Path) -> nn.Module:
    """Loads a file whose head, if it has one, is not needed.

    Raises:
        LoadError: the file is missing or damaged, or belongs to another model.
    """
    if not path.is_file():
        raise LoadError(f"there is no file of weights {path}; give the path of one that is there")
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    head = tuple(f"{name}." for name in heads)
    state = {n: v for n, v in read_weights(path).items() if not n.startswith(head)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise LoadError(
            f"{path} holds weights of another model than {network.pretrained_cfg['architecture']}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    loaded: nn.Module = network
    return loaded
