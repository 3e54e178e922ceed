"""One module per command that runs: checked before it starts, resumable, complete or absent."""
