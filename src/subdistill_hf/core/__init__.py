"""The method's maths, on torch alone: activations, layers, moments, bases and subspaces."""
