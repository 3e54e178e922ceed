"""Generator and discriminator networks, one file per family."""

from typing import Any

from pgmkit import Component, hookimpl

_DCGAN = "Radford et al. 2016; layer tables of the LASH paper, appendix A.2"
_SNGAN = "Miyato et al. 2018; Partition-Guided GANs 2021, table"
_NETWORKS: tuple[tuple[str, str, str, str, str, dict[str, Any]], ...] = (
    (
        "dcgan",
        "dcgan:DCGAN",
        "dcgan:dcgan_generator",
        "transposed convolutions with batch norm, 32×32 by default",
        _DCGAN,
        {"latent_dim": 4, "channels": [6, 5]},
    ),
    (
        "mlp-2d",
        "mlp:MLP2D",
        "mlp:MLPGenerator",
        "fully connected, with a maxout discriminator, for points in the plane",
        "Lin et al. 2018 (PacGAN), experiments on ring and grid",
        {"width": 24, "depth": 2},
    ),
    (
        "sngan-32",
        "sngan:SNGAN32",
        "sngan:SNGAN32Generator",
        "residual blocks with spectral norm, 32×32",
        f"{_SNGAN} 6",
        {"latent_dim": 4, "width": 5},
    ),
    (
        "sngan-48",
        "sngan:SNGAN48",
        "sngan:SNGAN48Generator",
        "residual blocks with spectral norm, 48×48",
        f"{_SNGAN} 7",
        {"latent_dim": 4, "width": 2, "image_channels": 1},
    ),
    (
        "biggan-128",
        "biggan:BigGAN128",
        "biggan:BigGANGenerator",
        "residual blocks and self-attention, 128×128",
        "Brock et al. 2019; Partition-Guided GANs 2021, table 8",
        {"latent_dim": 6, "width": 2, "embedding_dim": 3, "image_channels": 1},
    ),
)

"""Name, backbone, generator, summary, citation, and parameters that make it small."""

_CONDITIONAL = {
    "architecture": "dcgan",
    "model_args": {"latent_dim": 4, "channels": [6, 5], "num_partitions": 3},
}
_DECODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 2,
    "sample_size": 8,
}


@hookimpl
def pgmkit_backbones() -> list[Component]:
    """Offers the networks for training."""
    return [
        Component(name, f"{__name__}.{backbone}", summary, citation=citation, trial=trial)
        for name, backbone, _, summary, citation, trial in _NETWORKS
    ]


@hookimpl
def pgmkit_generator_loaders() -> list[Component]:
    """Offers the same generators to `config.json` files."""
    return [
        *(
            Component(
                name,
                f"{__name__}.{generator}",
                f"the generator of the backbone {name}",
                citation=citation,
                trial=trial,
            )
            for name, _, generator, _, citation, trial in _NETWORKS
        ),
        Component(
            "layers",
            "pgmkit_plugins.backbones.layers:LayeredGenerator",
            "any stack of layers and residual blocks, spelt out in model_args",
            trial={
                "latent_dim": 2,
                "layers": [
                    {"op": "linear", "inputs": 2, "outputs": 48},
                    {"op": "reshape", "shape": [3, 4, 4]},
                ],
            },
        ),
        Component(
            "diffusers-decoder",
            "pgmkit.loading.diffusers:build_decoder",
            "the decoder of an AutoencoderKL or VQModel",
            requires=("pgmkit[diffusers]",),
            trial={"config": _DECODER},
        ),
        Component(
            "one-partition",
            "pgmkit.loading.partitions:build_one_partition",
            "one partition of what another loader builds with num_partitions",
            trial={**_CONDITIONAL, "partition": 1},
        ),
        Component(
            "all-partitions",
            "pgmkit.loading.partitions:build_all_partitions",
            "all partitions of such a network, told apart by the latents",
            trial={**_CONDITIONAL, "partitions": [0, 1, 2], "latent_dim": 4},
        ),
    ]
