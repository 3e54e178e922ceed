"""The methods that come with pgmkit, registered like those of any other plugin."""
