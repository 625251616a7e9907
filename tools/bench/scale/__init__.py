"""What FSDP2 holds and sends on each rank, sparse beside dense: computed for large models, checked on small ones."""
