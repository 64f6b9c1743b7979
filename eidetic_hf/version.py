"""The version, importable without the library's dependencies."""

__version__ = "0.1.0"
