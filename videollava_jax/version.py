"""The version of the package, in the one place that is read for it."""

__version__ = "0.1.0"
