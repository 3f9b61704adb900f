"""What is read from tokens and embeddings: scores, captions, answers. Heads take tensors, never paths."""
