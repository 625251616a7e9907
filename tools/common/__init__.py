"""What several tools share: measuring in pairs, text, arguments, results."""
