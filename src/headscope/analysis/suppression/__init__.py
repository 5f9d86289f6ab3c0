"""Copy suppression, after McDougall et al. 2023 (arXiv 2310.04625)."""
