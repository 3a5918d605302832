"""Where pickles of earlier releases look for STAC."""

from stac_torch._stac import STAC

__all__ = ["STAC"]
