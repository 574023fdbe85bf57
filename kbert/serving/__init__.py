"""Models that leave: SavedModels that take text."""
