"""Teachers without a student: their subspaces and the accuracy of projections."""
