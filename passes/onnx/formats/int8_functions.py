"""Bodies of the functions of our int8 operators: the same integers, and the same bits, by standard operators.

Each row of x gets a scale and a zero point of its own. A row that holds NaN or an infinity, or whose range is not
finite, gives NaN. ONNX's operators on integers take only one zero point for all rows, so the sum of the weights times
the zero point is subtracted afterwards, which is the same in integers. Stock ONNX Runtime folds everything that needs
constants only.
"""

# From {x}, rows, to numbers "q" (uint8), a zero point "z_int" (int32) and a scale "s_2" for each row.
QUANTISE = """
    minus_one = Constant <value_ints = [-1]> ()
    none_f = Constant <value_float = 0.0> ()
    one_f = Constant <value_float = 1.0> ()
    steps = Constant <value_float = 255.0> ()
    smallest = Constant <value_float = 1.1754943508222875e-38> ()
    least = ReduceMin <keepdims = 1> ({x}, minus_one)
    greatest = ReduceMax <keepdims = 1> ({x}, minus_one)
    lo = Min (least, none_f)
    hi = Max (greatest, none_f)
    range = Sub (hi, lo)
    s_or_0 = Div (range, steps)
    s = Max (s_or_0, smallest)
    inverse = Div (one_f, s)
    lo_steps = Mul (lo, inverse)
    z_any = Neg (lo_steps)
    z_round = Round (z_any)
    z = Clip (z_round, none_f, steps)
    x_steps = Mul ({x}, inverse)
    x_round = Round (x_steps)
    q_any = Add (x_round, z)
    q_f = Clip (q_any, none_f, steps)
    q = Cast <to = 2> (q_f)
    z_int = Cast <to = 6> (z)
    x_times_0 = Mul ({x}, none_f)
    zero_or_nan = ReduceSum <keepdims = 1> (x_times_0, minus_one)
    s_times_0 = Mul (s, none_f)
    s_1 = Add (s, zero_or_nan)
    s_2 = Add (s_1, s_times_0)
"""
# From sums of integers "raw" and the sums of the weights "totals" to results {h}.
SCALE = """    of_zero = Mul ({z}, totals)
    acc = Sub (raw, of_zero)
    acc_f = Cast <to = 1> (acc)
    factor = Mul ({s}, {scale})
    product = Mul (acc_f, factor)
    {h} = Add (product, {bias})
"""
# From {x} [..., columns] and "weight" [columns, rows] to {h} [..., rows].
PRODUCT = (
    """
    ints = Cast <to = 3> (weight)
    wide_ints = Cast <to = 6> (ints)
    totals = ReduceSum <keepdims = 0> (wide_ints, zero)
"""
    + QUANTISE
    + """
    raw = MatMulInteger (q, ints)
"""
    + SCALE.format(z="z_int", s="s_2", scale="scale", bias="bias", h="{h}")
)
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
# A convolution of any kernel, whose rows are the images, with numbers of 0 around them. The convolution of an image of
# ones is the sum of the weights that meet no border; the zero point times that sum is subtracted.
CONV_PER_IMAGE = (
    """
    flat = Flatten <axis = 1> (x)
"""
    + QUANTISE.format(x="flat")
    + """
    sizes = Shape (x)
    numbers = Reshape <allowzero = 1> (q, sizes)
    ints = Cast <to = 3> (filters)
    raw = ConvInteger <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
                       dilations: ints = @dilations, group: int = @group> (numbers, ints)
    of_image = Shape <start = 1> (x)
    of_one = Concat <axis = 0> (one, of_image)
    full = ConstantOfShape <value = uint8[1] {1}> (of_one)
    totals = ConvInteger <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
                          dilations: ints = @dilations, group: int = @group> (full, ints)
    batch = Shape <start = 0, end = 1> (x)
    dims = Shape (kernel)
    flat_dims = ConstantOfShape <value = int64[1] {1}> (dims)
    by_image = Concat <axis = 0> (batch, one, flat_dims)
    by_row = Concat <axis = 0> (rows_1, flat_dims)
    z_image = Reshape <allowzero = 1> (z_int, by_image)
    s_image = Reshape <allowzero = 1> (s_2, by_image)
    scale_row = Reshape (scale, by_row)
    bias_row = Reshape (bias, by_row)
"""
    + SCALE.format(z="z_image", s="s_image", scale="scale_row", bias="bias_row", h="h")
)
