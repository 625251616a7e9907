"""Sites whose values FSDP2 has cut into parts, a part for each rank: what a rank holds, and how it changes its part."""
