"""On Dynamo's graph: ``insert_refresh`` puts the refresh in front of a compiled training graph."""
