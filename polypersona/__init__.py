"""Persona-grounded synthetic survey responses on Ray."""

__version__ = "0.1.0"
