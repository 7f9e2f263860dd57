// The kernels for AVX-512: 32 registers hold 12 x 2 sums.
#define FASTDIGIN_ISA avx512
#define FASTDIGIN_LANES 16
#define FASTDIGIN_ROWS 12
#include "kernels.inl"
