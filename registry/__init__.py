"""The generators and classifiers that ship with pgmkit, each laid out as a Hub repository."""
