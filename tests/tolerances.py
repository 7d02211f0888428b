"""Every tolerance of the comparisons with transformers, by dtype and depth. None is loosened without a reason here."""

# float32, one operation or one layer: rounding of sums in another order.
LAYER = 2e-5
# float32, a whole random model, of transformers' own initialisation or of unit gain (logits up to 5): absolute, on
# logits and features.
MODEL = 1e-4
# float32, the same function computed in another order by ourselves (cache against no cache, blocks against none).
SELF = 1e-5
# bfloat16, one attention of numbers near 1: the queries after scaling, the weights and the result are each rounded by
# up to 2^-9; relative and absolute.
BFLOAT16_ATTENTION = 2**-6
