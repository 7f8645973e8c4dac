"""The version of Tocsin that is installed."""

from importlib.metadata import version

VERSION = version("tocsin")
