"""Polynomial arithmetic in F_p[X]/(X^d): the task of Section 4.2 of arXiv 2404.19737."""
