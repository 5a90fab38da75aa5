"""Measures the service against what it is compared with, in one run: `python -m bench`."""
