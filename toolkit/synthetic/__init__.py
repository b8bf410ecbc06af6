"""Drawing of synthetic images whose answers are visible in them."""
