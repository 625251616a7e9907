"""What int8 adds to an export: its options, the check of its integers to the bit, and the change on the user's batches.

The room hands out :func:`.int8_options.read_int8_options`, :func:`.check_integers.check_integers` and
:func:`.calibrate.calibrate`.
"""
