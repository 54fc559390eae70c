"""Children's stories from a simulator, with two-token names: the task of Section 4.1 of arXiv 2404.19737."""
