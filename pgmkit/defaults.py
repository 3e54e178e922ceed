"""What is taken where nobody names a method: in Python, on the command line and in config files."""

DENSITY = "lash"
PARTITIONER = "self-trained"
MAPPER = "rejection"
SAMPLER = "partition"
ENGINE = "local"
BACKBONE = "dcgan"
CLASSIFIER = "lash-classifier"

CLUSTERS = 10
REMOVE = 0.2
LATENTS = 20_000
SEED = 0
