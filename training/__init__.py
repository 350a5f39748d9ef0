"""How `fastvlm-nano` was made: generated pages in, a checkpoint in FastVLM's released layout out (README.md here)."""
