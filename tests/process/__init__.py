"""Tests; see ../__init__.py."""
