"""What a forward pass leaves: the cache, its decompositions, the readout to logits."""
