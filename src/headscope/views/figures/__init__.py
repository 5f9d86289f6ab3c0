"""Plotly figures, one module per analysis."""
