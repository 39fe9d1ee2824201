"""Take a student to a device: files that run without Python's deep-learning libraries, and their measured parity."""
