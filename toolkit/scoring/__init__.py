"""Pure scores of text and regions, and statistics over many answers."""
