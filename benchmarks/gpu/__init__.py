"""What a CUDA card is asked on the day when one is lent: `make bench-gpu`."""
