"""Files and state dicts: ``save``, ``load``, and the dense view of a sparse model.

``file`` writes and reads checkpoints, ``validate`` refuses a checkpoint that does not fit, ``format1`` reads older
files, ``dense_state`` returns and loads dense weights.
"""
