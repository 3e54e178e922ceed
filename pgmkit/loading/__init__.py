"""From a reference to a generator: folders, Hub repositories, weight files, and the way back."""
