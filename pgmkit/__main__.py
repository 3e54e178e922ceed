"""`python -m pgmkit`, and with it `torchrun ... -m pgmkit`."""

from pgmkit.cli import main

if __name__ == "__main__":
    main()
