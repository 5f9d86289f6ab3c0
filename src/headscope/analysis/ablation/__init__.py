"""Ablation of heads, MLPs and sets of them."""
