"""The explorer's files: writing them, reading them (those of others too), and their schema."""
