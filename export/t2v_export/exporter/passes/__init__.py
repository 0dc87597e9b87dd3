"""The passes of an export, one file a family.

A pass is a function of a context and the results so far. It returns new results and changes none it was given.
"""
