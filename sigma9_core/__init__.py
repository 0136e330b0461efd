"""The minimal core: it moves money carefully; plugins decide, integrations talk."""

__version__ = "0.1.0"
CONTRACT = 1
"""Version of the wire contract that this release speaks."""

__all__ = ["CONTRACT", "__version__"]
