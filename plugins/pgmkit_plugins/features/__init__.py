"""Features: they make points of images, among which parts are sought. One file per method."""

from pgmkit import Component, hookimpl


@hookimpl
def pgmkit_features() -> list[Component]:
    """Offers what the built-in partitioners look at."""
    return [
        Component("latents", "pgmkit_plugins.features.latents:Latents", "the latents themselves"),
        Component(
            "pixels",
            "pgmkit_plugins.features.pixels:Pixels",
            "the pixels, shrunk",
            trial={"image_size": 4},
        ),
        Component(
            "pca",
            "pgmkit_plugins.features.pca:PCA",
            "principal components of the pixels, or of other features",
            trial={"num_dims": 5},
        ),
        Component(
            "timm",
            "pgmkit_plugins.features.timm:Timm",
            "what a timm model sees, with weights from the Hub or a file",
            trial={"model": "test_resnet", "pretrained": False, "input_size": 32},
        ),
        Component(
            "network", "pgmkit_plugins.features.network:Network", "what a module of your own sees"
        ),
        Component(
            "classifier",
            "pgmkit_plugins.features.classifier:OfClassifier",
            "what a trained classifier sees",
        ),
        Component(
            "discriminator",
            "pgmkit_plugins.features.discriminator:OfDiscriminator",
            "what the discriminator of a trained GAN sees",
            citation="Liu, Wang, Bau, Zhu and Torralba, Diverse Image Generation via "
            "Self-Conditioned GANs, CVPR 2020",
        ),
        Component(
            "contrastive",
            "pgmkit_plugins.features.contrastive:Contrastive",
            "learned from the images by contrast, without labels",
            citation="Chen et al., SimCLR, 2020, with moves of the latent",
            trial={"steps": 3, "batch_size": 16, "width": 4},
        ),
        Component(
            "fixed",
            "pgmkit.partition.fixed:FixedFeatures",
            "those of a partitioner that was fitted before, unchanged",
        ),
    ]
