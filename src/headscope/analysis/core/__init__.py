"""Ground that every analysis stands on: batches, components, results, statistics."""
