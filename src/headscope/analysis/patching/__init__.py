"""Activation, attribution and path patching."""
