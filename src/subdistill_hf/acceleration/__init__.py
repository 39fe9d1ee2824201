"""How fast a training is, never what it computes: CUDA graphs, memory format, batch size, threads, freed memory."""
