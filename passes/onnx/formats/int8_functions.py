"""Bodies of the functions of our int8 operators: the same integers, and the same bits, by standard operators.

Each row of x gets a scale and a zero point of its own. A row that holds NaN or an infinity, or whose range is not
finite, gives NaN. MatMulInteger's own zero point would have to be one number for all rows, so the sum of the weights
times the zero point is subtracted afterwards, which is the same in integers. Stock ONNX Runtime folds everything that
needs constants only.
"""

# From {x} [..., columns] and "weight" [columns, rows] to {h} [..., rows].
PRODUCT = """
    ints = Cast <to = 3> (weight)
    wide_ints = Cast <to = 6> (ints)
    totals = ReduceSum <keepdims = 0> (wide_ints, zero)
    minus_one = Constant <value_ints = [-1]> ()
    none_f = Constant <value_float = 0.0> ()
    one_f = Constant <value_float = 1.0> ()
    steps = Constant <value_float = 255.0> ()
    least = ReduceMin <keepdims = 1> ({x}, minus_one)
    greatest = ReduceMax <keepdims = 1> ({x}, minus_one)
    lo = Min (least, none_f)
    hi = Max (greatest, none_f)
    range = Sub (hi, lo)
    s_or_0 = Div (range, steps)
    is_0 = Equal (s_or_0, none_f)
    s = Where (is_0, one_f, s_or_0)
    lo_steps = Div (lo, s)
    z_any = Neg (lo_steps)
    z_round = Round (z_any)
    z = Clip (z_round, none_f, steps)
    x_steps = Div ({x}, s)
    x_round = Round (x_steps)
    q_any = Add (x_round, z)
    q_f = Clip (q_any, none_f, steps)
    q = Cast <to = 2> (q_f)
    raw = MatMulInteger (q, ints)
    z_int = Cast <to = 6> (z)
    of_zero = Mul (z_int, totals)
    acc = Sub (raw, of_zero)
    acc_f = Cast <to = 1> (acc)
    x_times_0 = Mul ({x}, none_f)
    zero_or_nan = ReduceSum <keepdims = 1> (x_times_0, minus_one)
    s_times_0 = Mul (s, none_f)
    s_1 = Add (s, zero_or_nan)
    s_2 = Add (s_1, s_times_0)
    factor = Mul (s_2, scale)
    product = Mul (acc_f, factor)
    {h} = Add (product, bias)
"""
# A convolution of 1 x 1 is a product whose rows are the pixels: [batch, in, ...] -> [batch, pixels, in].
BEFORE_CONV = """
    rest_c = Constant <value_ints = [-1]> ()
    keep = Constant <value_ints = [0]> ()
    to_3 = Concat <axis = 0> (keep, columns_1, rest_c)
    channels = Reshape (x, to_3)
    pixels = Transpose <perm = [0, 2, 1]> (channels)
"""
AFTER_CONV = """
    back = Transpose <perm = [0, 2, 1]> (flat)
    batch = Shape <start = 0, end = 1> (x)
    sizes = Shape <start = 2> (x)
    of_y = Concat <axis = 0> (batch, rows_1, sizes)
    h = Reshape <allowzero = 1> (back, of_y)
"""
