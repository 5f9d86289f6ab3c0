"""Text in and text out: tokens, generation, inputs, sample texts."""
