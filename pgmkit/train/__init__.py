"""Training of generators and of evaluation classifiers."""
