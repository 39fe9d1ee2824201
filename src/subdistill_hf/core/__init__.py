"""The method's maths, on torch and safetensors alone: activations, layers, moments, bases and subspaces."""
