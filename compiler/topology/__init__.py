"""How sets move and how far two are apart: interchangeable neurons, their matching, distances, dynamics."""
