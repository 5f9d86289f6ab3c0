"""The traces of a forward pass: the cache, its decompositions, the readout to logits."""
