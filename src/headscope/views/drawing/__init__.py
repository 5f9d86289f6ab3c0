"""Tools shared by figures and token views: theme, heat maps, options, arrays, packing, saving."""
