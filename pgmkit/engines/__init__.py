"""Where numbered blocks of work run."""
