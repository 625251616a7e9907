"""Files and state dicts: ``save``, ``load``, and the dense view of a sparse model.

``file`` writes and reads, ``validate`` refuses what does not fit, ``format1`` reads older files, ``dense_state`` gives
and takes dense weights.
"""
