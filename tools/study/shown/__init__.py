"""Tables, pictures and the report of the study."""
