"""Reports on runs: HTML, Markdown and JSON."""
