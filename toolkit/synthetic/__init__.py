"""Drawing primitives for synthetic images whose answers are visible in them."""
