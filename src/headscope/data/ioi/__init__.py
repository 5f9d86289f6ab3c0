"""Indirect object identification, after Wang et al. 2022: sentences that end with one of the two names in them."""

from headscope.data.ioi.dataset import IOIDataset

__all__ = ["IOIDataset"]
