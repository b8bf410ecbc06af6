"""Work that goes on when a GPU's memory is too small: fewer rows at once, and an error only where one is too many."""
