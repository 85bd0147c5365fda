"""Surgetank's engine."""

__version__ = "0.1.0"
