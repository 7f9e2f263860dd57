// The kernels for AVX2 with FMA: 16 registers hold 6 x 2 sums, two operands and a broadcast.
#define FASTDIGIN_ISA avx2
#define FASTDIGIN_LANES 8
#define FASTDIGIN_ROWS 6
#include "kernels.inl"
