"""Expert ratings of images: reading, splits, expert weights, rating sheets, and synthetic ratings."""
