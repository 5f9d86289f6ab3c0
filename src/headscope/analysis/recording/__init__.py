"""Forward passes and what is kept of them: states, layers, means, output weights."""
