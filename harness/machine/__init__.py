"""What it runs on: devices, what the gate reads, energy, peaks, the environment."""
