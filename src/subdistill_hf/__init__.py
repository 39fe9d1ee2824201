"""SubDistill for the Hugging Face ecosystem."""
