"""A site cut along its rows over the ranks of a mesh: the rows that a rank holds (``shard``), and the values outside
the backward set of those rows (``shard_outside``)."""
