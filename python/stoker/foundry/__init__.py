"""LLM Foundry's data loading, on stoker's core: the same YAML, the same batches, the same order of samples."""
