"""The report's facts in each form in which a reader meets them: ``screen`` (rich), ``plain_text``, ``page`` (HTML), and
the ``table`` behind the three."""
