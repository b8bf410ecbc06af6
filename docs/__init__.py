"""The documentation: pages in Markdown, the configuration of Sphinx, and the programs that generate the reference."""
