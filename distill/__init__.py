"""Gradient-based training of a student: the starting recipe, DMD, and Stream-R1's weights on it."""
