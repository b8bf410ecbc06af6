"""Export trained weights: formats, verification, model card, push. A format is complete only after verification."""
