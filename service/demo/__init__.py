"""Trying it out."""
