"""Shared by all commands: the app, their arguments and options, and the work foretold before it starts."""
