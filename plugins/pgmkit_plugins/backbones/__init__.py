"""Generator and discriminator networks, one file per family."""

from pgmkit import Component, hookimpl

_DCGAN = "Radford et al. 2016; layer tables of the LASH paper, appendix A.2"


@hookimpl
def pgmkit_backbones() -> list[Component]:
    """Offers the networks for training."""
    return [
        Component(
            "dcgan",
            "pgmkit_plugins.backbones.dcgan:DCGAN",
            "transposed convolutions with batch norm, 32×32 by default",
            citation=_DCGAN,
        )
    ]


@hookimpl
def pgmkit_generator_loaders() -> list[Component]:
    """Offers the same generators to `config.json` files."""
    return [
        Component(
            "dcgan",
            "pgmkit_plugins.backbones.dcgan:DCGANGenerator",
            "the generator of the backbone dcgan",
            citation=_DCGAN,
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
