"""Reductions of a tile of logits over the vocabulary, once for each kind of hardware.

`interface` says what a set of kernels does, `torch_kernels` is the reference, which runs anywhere, `cpu_kernels` fuses
it into loops (`loops`, compiled by numba), and `dispatch` chooses by device. The products that make the logits are
PyTorch's in every set; `products` has the faster of its two libraries make them.
"""
