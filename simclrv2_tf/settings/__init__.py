"""Settings: the frozen config, recipes, and how they are merged."""
