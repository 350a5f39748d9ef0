"""The self-test: what a machine that nobody has tried yet must show before its numbers are believed (`kit.run`)."""
