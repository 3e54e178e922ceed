"""Metrics, figures and reports of what was shattered."""
