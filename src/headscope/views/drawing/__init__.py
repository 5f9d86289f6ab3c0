"""What figures and token views share: theme, heat maps, options, arrays, packing, saving."""
