"""On Dynamo's graph: ``insert_refresh`` puts the refresh before the first operation of a training graph."""
