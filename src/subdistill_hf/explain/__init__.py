"""Explanations: which places of an image speak for a class, in teacher and student, and how alike both see it."""
