"""Generator and discriminator networks, one file per family."""

from pgmkit import Component, hookimpl

_DCGAN = "Radford et al. 2016; layer tables of the LASH paper, appendix A.2"
_SNGAN = "Miyato et al. 2018; Partition-Guided GANs 2021, table"
_NETWORKS = (
    (
        "dcgan",
        "dcgan:DCGAN",
        "dcgan:dcgan_generator",
        "transposed convolutions with batch norm, 32×32 by default",
        _DCGAN,
    ),
    (
        "mlp-2d",
        "mlp:MLP2D",
        "mlp:MLPGenerator",
        "fully connected, with a maxout discriminator, for points in the plane",
        "Lin et al. 2018 (PacGAN), experiments on ring and grid",
    ),
    (
        "sngan-32",
        "sngan:SNGAN32",
        "sngan:SNGAN32Generator",
        "residual blocks with spectral norm, 32×32",
        f"{_SNGAN} 6",
    ),
    (
        "sngan-48",
        "sngan:SNGAN48",
        "sngan:SNGAN48Generator",
        "residual blocks with spectral norm, 48×48",
        f"{_SNGAN} 7",
    ),
    (
        "biggan-128",
        "biggan:BigGAN128",
        "biggan:BigGANGenerator",
        "residual blocks and self-attention, 128×128",
        "Brock et al. 2019; Partition-Guided GANs 2021, table 8",
    ),
)


@hookimpl
def pgmkit_backbones() -> list[Component]:
    """Offers the networks for training."""
    return [
        Component(name, f"{__name__}.{backbone}", summary, citation=citation)
        for name, backbone, _, summary, citation in _NETWORKS
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
            )
            for name, _, generator, _, citation in _NETWORKS
        ),
        Component(
            "layers",
            "pgmkit_plugins.backbones.layers:LayeredGenerator",
            "any stack of layers and residual blocks, spelt out in model_args",
        ),
        Component(
            "diffusers-decoder",
            "pgmkit.loading.diffusers:build_decoder",
            "the decoder of an AutoencoderKL or VQModel",
            requires=("pgmkit[diffusers]",),
        ),
        Component(
            "one-partition",
            "pgmkit.loading.partitions:build_one_partition",
            "one partition of what another loader builds with num_partitions",
        ),
        Component(
            "all-partitions",
            "pgmkit.loading.partitions:build_all_partitions",
            "all partitions of such a network, told apart by the latents",
        ),
    ]
