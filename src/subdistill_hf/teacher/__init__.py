"""The frozen side of a training: the teacher, its fitted subspaces and its targets."""
