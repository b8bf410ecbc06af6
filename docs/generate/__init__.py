"""Generate the reference pages from the code: ``python -m docs.generate``, or with ``--check`` compare only.

A generated text is a whole file, or the part of a page between the comments ``<!-- NAME:begin -->`` and
``<!-- NAME:end -->``. Everything outside the comments is written by hand and stays.
"""
