"""Loading and exporting checkpoints: files, hub, conversion, and the catalog of model families."""
